"""Prints a feasibility study: as one JSON object, and as tables for a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, assert_never

from rich.table import Column, Table

from services.cli.feasibility.expectation import AlertCause, Expectation
from services.cli.feasibility.stays import Stay
from services.cli.feasibility.study import Change, ExceptionAdded, ExceptionLeftOut, Feasibility, SmallerRing
from services.common import times
from services.geofence.domain.kinematics.geometry import lat_lon_deg


def to_json(study: Feasibility) -> dict[str, Any]:
    """The JSON object that `tandem feasibility --json` prints. A candidate place has its coordinates."""
    expectation, coverage, best = study.expectation, study.coverage, study.best
    return {
        "order_id": study.case.order_id,
        "wearer_id": study.case.wearer_id,
        "history": {
            "from": times.to_rfc3339(coverage.from_ms),
            "until": times.to_rfc3339(coverage.until_ms),
            "days": round(coverage.days, 2),
            "positions": study.reports,
            "breaks": [
                [times.to_rfc3339(from_ms), times.to_rfc3339(until_ms)] for from_ms, until_ms in coverage.breaks
            ],
        },
        "rings": [{"radius_m": ring.radius_mm / 1000, "action": ring.action.name} for ring in study.case.rings],
        "exceptions": [encounter.encounter_id for encounter in study.case.encounters],
        **_counts(study, expectation),
        "by_cause": [
            {**cause._asdict(), "count": count, "a_week": round(expectation.a_week(count), 2)}
            for cause, count in _causes(expectation)
        ],
        "unseen_within_reach_min_a_day": round(study.unseen_min_a_day, 1),
        "visits": [
            {
                "target_id": visit.target_id,
                "from": times.to_rfc3339(visit.from_ms),
                "until": times.to_rfc3339(visit.until_ms),
                "missed": visit in expectation.missed,
            }
            for visit in study.visits
        ],
        "alternatives": [
            {**_change_json(alternative.change), **_counts(study, alternative.expectation)}
            for alternative in study.alternatives
        ],
        "best": study.alternatives.index(best) if best else None,
    }


def tables(study: Feasibility) -> Iterator[Table | str]:
    """The study as a person reads it."""
    expectation, coverage = study.expectation, study.coverage
    breaks = f", without {len(coverage.breaks)} breaks of more than a day" if coverage.breaks else ""
    rings = ", ".join(f"{ring.radius_mm / 1000:g} m {ring.action.name}" for ring in study.case.rings)
    yield (
        f"order {study.case.order_id} ({rings}; {len(study.case.encounters)} exceptions) on {coverage.days:.1f} days of "
        f"{study.case.wearer_id}, {study.reports} positions{breaks}"
    )
    summary = Table(Column(), Column(justify="right"), title="to expect", title_justify="left", show_header=False)
    for name, count in _totals(expectation):
        summary.add_row(f"{name} a week", f"{expectation.a_week(count):.1f}")
    summary.add_row("minutes a day unseen within reach", f"{study.unseen_min_a_day:.1f}")
    summary.add_row("visits within the ring that demands a response", str(len(study.visits)))
    summary.add_row("of them without a response", str(len(expectation.missed)))
    summary.add_row("median notice before a visit", _minutes(expectation.notice_s))
    yield summary
    causes = Table("demand", "ring, m", "cause", Column("a week", justify="right"), Column("in all", justify="right"))
    causes.title, causes.title_justify = "dispatches and notices", "left"
    for cause, count in _causes(expectation):
        ring = f"{cause.ring_m:g}" if cause.ring_m is not None else "-"
        causes.add_row(cause.demand, ring, cause.kind, f"{expectation.a_week(count):.1f}", str(count))
    yield causes
    yield _alternatives(study)
    yield _best(study)


def _alternatives(study: Feasibility) -> Table:
    view = Table(Column("change", overflow="fold"), title="what a change of the order would do", title_justify="left")
    for name in ("dispatches", "notices", "pushes", "missed more", "notice"):
        view.add_column(name, justify="right")
    for alternative in study.alternatives:
        changed = alternative.expectation
        view.add_row(
            change_text(alternative.change),
            *(
                f"{study.expectation.a_week(after - before):+.1f}"
                for (_, before), (_, after) in zip(_totals(study.expectation), _totals(changed), strict=True)
            ),
            str(_missed_more(study, changed)),
            _minutes(changed.notice_s),
        )
    return view


def _best(study: Feasibility) -> str:
    best = study.best
    if best is None:
        return "no change that was tried removes dispatches, notices or pushes at no more misses"
    removed = ", ".join(
        f"{study.expectation.a_week(before - after):.1f} {name}"
        for (name, before), (_, after) in zip(_totals(study.expectation), _totals(best.expectation), strict=True)
    )
    return f"most is removed at no more misses by: {change_text(best.change)} ({removed} a week less)"


def change_text(change: Change) -> str:
    """A change in words."""
    match change:
        case SmallerRing():
            return f"ring {change.ring.radius_mm / 1000:g} m {change.ring.action.name}: {change.radius_mm / 1000:g} m"
        case ExceptionLeftOut():
            return f"without exception {change.encounter_id}"
        case ExceptionAdded():
            stay = change.stay
            return (
                f"new exception: a place {change.distance_m:.0f} m away, {_hours(stay)}, "
                f"{stay.total_ms / 3_600_000:.0f} h on {stay.days} days"
            )
        case _:
            assert_never(change)


def _hours(stay: Stay) -> str:
    if not stay.daily_until_s:
        return "at all hours"
    return " to ".join(f"{s // 3600:02}:{s % 3600 // 60:02}" for s in (stay.daily_from_s, stay.daily_until_s))


def _change_json(change: Change) -> dict[str, Any]:
    shown = {"text": change_text(change)}
    match change:
        case SmallerRing():
            return {
                "change": "SMALLER_RING",
                **shown,
                "ring_m": change.ring.radius_mm / 1000,
                "radius_m": change.radius_mm / 1000,
            }
        case ExceptionLeftOut():
            return {"change": "EXCEPTION_LEFT_OUT", **shown, "encounter_id": change.encounter_id}
        case ExceptionAdded():
            stay = change.stay
            lat_deg, lon_deg = lat_lon_deg(stay.middle)
            return {
                "change": "EXCEPTION_ADDED",
                **shown,
                "lat_deg": lat_deg,
                "lon_deg": lon_deg,
                "distance_m": round(change.distance_m, 1),
                "daily_from_s": stay.daily_from_s,
                "daily_until_s": stay.daily_until_s,
                "days": stay.days,
                "hours": round(stay.total_ms / 3_600_000, 1),
            }
        case _:
            assert_never(change)


def _counts(study: Feasibility, expectation: Expectation) -> dict[str, Any]:
    return {
        **{f"{name}_a_week": round(expectation.a_week(count), 2) for name, count in _totals(expectation)},
        "missed": len(expectation.missed),
        "missed_more": _missed_more(study, expectation),
        "notice_s": None if expectation.notice_s is None else round(expectation.notice_s),
    }


def _missed_more(study: Feasibility, expectation: Expectation) -> int:
    """Number of visits that are missed now and weren't under the proposed order."""
    return len(set(expectation.missed) - set(study.expectation.missed))


def _totals(expectation: Expectation) -> list[tuple[str, int]]:
    return [
        ("dispatches", expectation.dispatches.total()),
        ("notices", expectation.notices.total()),
        ("pushes", expectation.pushes),
    ]


def _causes(expectation: Expectation) -> list[tuple[AlertCause, int]]:
    """Causes of dispatches, then of notices; the most frequent first."""
    return [*expectation.dispatches.most_common(), *expectation.notices.most_common()]


def _minutes(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds / 60:.1f} min"
