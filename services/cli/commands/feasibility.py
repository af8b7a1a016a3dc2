"""`tandem feasibility`: what a proposed order would have caused on the past days of its wearer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, assert_never

import typer
import uvloop
from rich.table import Column, Table

from services.cli import usage
from services.cli.simulate import tracks
from services.cli.simulate.files import FileError, InputPlace, load_reports, load_scenario
from services.cli.terminal import for_results
from services.client import mesh
from services.client.actors import Report
from services.client.mesh import DEFAULT_FOLDER, MeshConnection
from services.client.scenario import Scenario
from services.common import fields, times
from services.common.errors import InvalidField
from services.common.failure import MISUSED, CommandFailed
from services.common.privacy.grounds import Purpose
from services.court import from_mesh
from services.court.feasibility import study
from services.court.feasibility.history import DAY_MS, History, HistoryEntry, Stay
from services.court.feasibility.study import (
    AlertCause,
    Change,
    ExceptionAdded,
    ExceptionLeftOut,
    Expectation,
    Feasibility,
    SmallerRing,
)
from services.geofence import translate
from services.geofence.domain.entries import Body, Case, Demand
from services.geofence.domain.geometry import lat_lon_deg
from services.ingest import translate as ingest_translate
from services.ingest.domain import Positions
from services.registry.cases import translate as snapshots
from services.registry.domain.cases import build_case
from services.registry.domain.records import is_match
from services.registry.records import translate as registry_translate
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2, presence_pb2
from tandem.registry.v1 import registry_pb2

ACCURACY_M = 10.0


def feasibility(
    order: Annotated[
        str,
        typer.Option(help="Scenario file with the proposed order (a name with .json), or the id of a stored order."),
    ],
    history: Annotated[
        Path, typer.Option(help="Past days of the wearer: a track (.gpx, .csv), or reports of all devices (.ndjson).")
    ],
    device: Annotated[str, typer.Option(help="Tag of a .gpx or .csv track; the order's first tag if left out.")] = "",
    *,
    accuracy: Annotated[
        float, typer.Option(metavar="METRES", help="Accuracy of positions of a track without one.")
    ] = ACCURACY_M,
    wearer: Annotated[str, typer.Option(help="Stored order: the wearer, if it restrains several.")] = "",
    folder: Annotated[Path, typer.Option("--dir", help="Stored order: folder of the mesh.")] = DEFAULT_FOLDER,
    legal_basis: Annotated[str, typer.Option(metavar="CODE", help="Stored order: code of the legal basis.")] = "",
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="Stored order: name of the reader.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="Stored order: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.AUDIT,
    as_json: usage.AsJson = False,
) -> None:
    """Fold past days of a wearer under a proposed order: dispatches and notices to expect, and what would spare most of them."""
    try:
        if _is_file(order):
            scenario, case = load_order(Path(order))
        else:
            case = _stored(mesh.load(folder), order, wearer, to_name=reviewer, legal_basis=legal_basis, purpose=purpose)
            scenario = _devices_of(case)
        past = load_history(history, scenario, case, device_id=device, accuracy_m=accuracy)
    except FileError as error:
        raise CommandFailed(str(error), MISUSED) from None
    case, unknown = without_unknown_devices(case, past)
    console = for_results(stderr=as_json)
    with console.status("folding") as status:
        known = study.study(case, past, progress=lambda done, of: status.update(f"fold {done} of {of}"))
    if as_json:
        print(json.dumps({**study_to_json(known), "devices_without_history": unknown}))
        return
    console.print(*study_tables(known), sep="\n")
    if unknown:
        console.print(f"the history has no report of {', '.join(unknown)}: only what the places cause is counted")


def _is_file(order: str) -> bool:
    return order.endswith(".json") or Path(order).exists()


def _stored(
    running: MeshConnection, order_id: str, wearer_id: str, *, to_name: str, legal_basis: str, purpose: Purpose
) -> Case:
    try:
        fields.required_id("--order", order_id)
    except InvalidField as error:
        raise CommandFailed(f"{error}, nor is there such a file (example: proposal.json)", MISUSED) from None
    to = from_mesh.checked_reader(
        to_name, legal_basis, purpose, now_ms=running.clock.now_ms(), needed_by="--order with a stored order"
    )
    case = uvloop.run(from_mesh.read_stored_order(running, order_id, wearer_id, to=to))
    if not _demands_response(case):
        raise CommandFailed(f"--order: {case.order_id} has no ring that demands RESPOND {RING_EXAMPLE}")
    return case


def _demands_response(case: Case) -> bool:
    return any(ring.action is Demand.RESPOND for ring in case.rings)


def _devices_of(case: Case) -> Scenario:
    """The records of a case that reports are checked against."""
    persons = [target for target in case.targets if target.is_person]
    return Scenario(
        tags=[registry_pb2.Tag(device_id=id_, wearer_id=case.wearer_id) for id_ in case.tag_device_ids],
        devices=[
            registry_pb2.Device(device_id=id_, person_id=target.target_id)
            for target in persons
            for id_ in target.device_ids
        ],
    )


RING_EXAMPLE = '(example: "rings": [{"radius_m": 1000, "action": "NOTIFY"}, {"radius_m": 100, "action": "RESPOND"}])'
PLACE_EXAMPLE = (
    '(example: "places": [{"place_id": "home", "circle": {"lat_deg": 37.5, "lon_deg": 127.0, "radius_m": 30}}])'
)


def load_order(path: Path) -> tuple[Scenario, Case]:
    """Reads a scenario with one order, as `tandem backtest` takes it, and joins the order with its wearer. Raises FileError."""
    scenario, place = load_scenario(path), InputPlace(path)
    if len(scenario.orders) != 1:
        raise FileError(place.of("orders"), f"must hold one order, not {len(scenario.orders)}: one is judged at a time")
    order = registry_translate.parse_order(scenario.orders[0])
    wearers = [registry_translate.parse_wearer(wearer) for wearer in scenario.wearers]
    matched = [wearer for wearer in wearers if is_match(order.respondent, wearer)]
    if len(matched) != 1:
        raise FileError(
            place.of("orders[0].respondent.national_id"),
            f"is the number of {len(matched)} wearers of the file; it must be that of one (example: 000000-0000001 in both)",
        )
    if not order.rings:
        raise FileError(place.of("orders[0].rings"), f"is missing: propose rings {RING_EXAMPLE}")
    joined = build_case(
        order,
        matched[0],
        [registry_translate.parse_tag(tag) for tag in scenario.tags],
        devices=[registry_translate.parse_device(device) for device in scenario.devices],
    )
    case = translate.case_of(snapshots.case_to_proto(joined, 1))
    if not case.tag_device_ids:
        raise FileError(
            place.of("tags"), f'has none of {case.wearer_id} (example: {{"device_id": "tag-1", "wearer_id": "W-1"}})'
        )
    if not _demands_response(case):
        raise FileError(place.of("orders[0].rings"), f"has no ring that demands RESPOND {RING_EXAMPLE}")
    return scenario, case


def load_history(path: Path, scenario: Scenario, case: Case, *, device_id: str, accuracy_m: float) -> History:
    """Reads the days of a wearer: a track of one tag (GPX, CSV), or reports of all devices (NDJSON, as `tandem backtest` takes them).

    Raises FileError or CommandFailed.
    """
    if device_id and device_id not in case.tag_device_ids:
        known = ", ".join(case.tag_device_ids)
        raise CommandFailed(f"--device: {device_id} isn't a tag of {case.wearer_id} (tags: {known})", MISUSED)
    if path.suffix.lower() == ".ndjson":
        entries = _reports(path, scenario)
    else:
        entries = _track(path, device_id or case.tag_device_ids[0], accuracy_m)
    history = History(tuple(sorted(entries, key=lambda entry: entry.stamp_ms)), case.tag_device_ids)
    fixes = history.tag_fixes()
    if not fixes:
        tags = ", ".join(case.tag_device_ids)
        raise FileError(InputPlace(path), f"holds no position of {tags}, the wearer's tag in the order")
    if fixes[-1].time_ms - fixes[0].time_ms < DAY_MS:
        hours = (fixes[-1].time_ms - fixes[0].time_ms) / 3_600_000
        raise FileError(
            InputPlace(path),
            f"holds {hours:.1f} h of the wearer's positions, which say nothing about a week: give at least a day, better two weeks",
        )
    if all(later.time_ms - fix.time_ms > DAY_MS for fix, later in pairwise(fixes)):
        raise FileError(
            InputPlace(path), "has more than a day between all positions: give one at least every few minutes"
        )
    return history


def without_unknown_devices(case: Case, history: History) -> tuple[Case, list[str]]:
    """Returns the case without the protective devices that the history says nothing about, and their ids.

    Raises CommandFailed if then nothing is left to come near to.
    """
    heard = set(history.tracks())
    unknown = [id_ for target in case.targets for id_ in target.device_ids if id_ not in heard]
    targets = tuple(
        replace(target, device_ids=tuple(id_ for id_ in target.device_ids if id_ in heard)) for target in case.targets
    )
    if all(target.is_person and not target.device_ids for target in targets):
        raise CommandFailed(
            f"the order protects no place, and the history has no report of a protective device: add places {PLACE_EXAMPLE} or "
            "reports of her device",
            MISUSED,
        )
    return replace(case, targets=targets), unknown


def _track(path: Path, device_id: str, accuracy_m: float) -> list[HistoryEntry]:
    read = tracks.read(path, device_id, accuracy_m)
    if read.faults:
        fault = read.faults[0]
        raise CommandFailed(f"{path}: {fault}{_and_more(len(read.faults) - 1)}", MISUSED)
    if not read.timed:
        raise FileError(
            InputPlace(path), "has no times, so days can't be counted (example: <time>2026-07-06T00:00:00Z</time>)"
        )
    return [HistoryEntry(tracks.time_ms(report), _body(report)) for report in read.reports]


def _and_more(count: int) -> str:
    return f" (and {count} more faults)" if count else ""


def _reports(path: Path, scenario: Scenario) -> list[HistoryEntry]:
    entries = []
    for line in load_reports(path, scenario):
        match line.what:
            case ingest_pb2.Position() | ingest_pb2.EquipmentEvent():
                entries.append(HistoryEntry(line.received_ms, _body(line.what)))
            case log_pb2.Rules():
                entries.append(HistoryEntry(line.received_ms, translate.rules_of(line.what)))
            case _:
                raise FileError(
                    InputPlace(path, line.number, "kind"),
                    "is a record: a history holds only position, equipment and rules; records belong into the order's file",
                )
    return entries


def _body(report: Report) -> Body:
    """The log entry that ingest would write, passed through the wire format so that numbers round alike."""
    match report:
        case ingest_pb2.Position():
            positions = Positions.of([ingest_translate.parse_position(report)])
            entry = ingest_translate.positions_entry(positions, received_wall_us=0)
        case ingest_pb2.EquipmentEvent():
            entry = ingest_translate.equipment_entry(ingest_translate.parse_equipment(report), received_wall_us=0)
        case presence_pb2.Presence():
            entry = ingest_translate.presences_entry([ingest_translate.parse_presence(report)], received_wall_us=0)
        case _:
            assert_never(report)
    return translate.entry_body(entry.SerializeToString())


def study_to_json(study: Feasibility) -> dict[str, Any]:
    """The JSON object that `tandem feasibility --json` prints. A candidate place has its coordinates."""
    expectation = study.expectation
    coverage = study.coverage
    best = study.best
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


def study_tables(study: Feasibility) -> Iterator[Table | str]:
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
