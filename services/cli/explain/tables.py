"""Show an explanation of an alert as tables on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby

from rich.console import RenderableType
from rich.table import Column, Table

from services.cli.explain import contacts, her_map
from services.cli.explain.cases import case_json
from services.cli.explain.explanation import (
    Explanation,
    is_too_late,
    rules_json,
    source_in_words,
    what_decided,
)
from services.cli.explain.refold import LoggedPosition
from services.cli.terminal import styled
from services.common import times
from services.common.alert_phases import AlertPhase, phase_of
from services.common.messaging import flow
from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors.pipeline import WHY
from services.geofence.domain.entries import Case, Demand
from tandem.common.v1 import alert_pb2, geometry_pb2, notice_pb2

IN_UTC = "All times are UTC (Z). Consoles and reports show Korean time, 9 hours ahead."
EARLIER_SHOWN = 12
"""Number of earlier reports shown: the last ones before the decision."""
_CLEARED_BY_RECORD = (
    "a record changed or the order ended: no position shows that the wearer left. A distance is the ring's radius"
)
_UNCONFIRMED = "no report shows that it is over"
_UNCONFIRMED_BY_TIME = (
    f"half an hour has passed since the record of a device ended, and nothing answered what was open: {_UNCONFIRMED}"
)
_SHOWN_BY_ANOTHER_TAG = (
    "the record of the opened tag has ended, and since then a whole tag has shown where the wearer is"
)
_ANOMALIES = {
    "JUMP": "the device's recent movement doesn't lead there, and no second position agrees",
    "VAGUE": "the accuracy is too poor to tell whether the wearer is inside",
    "CLOCK": "the times of all its reports are too far off to be used",
    "FROZEN": "identical positions to the digit for 10 minutes, from a device whose positions had always differed",
    "COPIED": "a run of positions that repeats an earlier run to the digit",
    "PRESENCE": "a home unit or beacon claims a presence that positions or another unit contradict",
}


def tables(explained: Explanation, positions: bool) -> Iterator[RenderableType]:
    """The tables and lines of an explanation. Coordinates, and figures that follow from them, only if `positions` is set."""
    stream = flow.log_stream(explained.alert.partition)
    entries = f"{stream}, entries {explained.refold.first} to {explained.alert.sequence}"
    if explained.refold.first > 1:
        entries += "; earlier entries have aged out"
    if explained.differences:
        yield styled(("DIFFERENT", "bold red"), f": the refold ({entries}) gives another result:")
        yield from (f"  {difference}" for difference in explained.differences)
    else:
        yield styled(("the same again", "bold green"), f", byte for byte ({entries})")
    yield IN_UTC
    yield _decision(explained, positions)
    yield _log_meta(explained)
    for side in explained.sides:
        if side.reports:
            yield _reports(
                explained, f"{side.who}, {side.device_id}: last reports before it", side.reports, positions=positions
            )
    refold = explained.refold
    optional: tuple[tuple[Sequence[object], Callable[[Explanation], Table]], ...] = (
        (refold.earlier, partial(_earlier, positions=positions)),
        (explained.sides, _missing),
        (explained.requests, _requests),
        (refold.messages, _messages),
    )
    yield from (table(explained) for rows, table in optional if rows)
    if (views := her_map.table(refold, positions)) is not None:
        yield views
    for device_id, late in groupby(sorted(explained.later, key=_device_id), key=_device_id):
        yield _reports(
            explained, f"{device_id}: arrived after it, of a time before it", list(late), positions=positions
        )
    if not explained.later:
        yield f"no report of a time before the decision has arrived after it, up to entry {refold.read_to}"


def _device_id(report: LoggedPosition) -> str:
    return report.device_id


def _decision(explained: Explanation, positions: bool) -> Table:
    alert, figures = explained.alert, explained.figures
    view = _pairs(alert.alert_id)
    what = alert_in_words(alert)
    if alert.target_id:
        what += f", {alert.ring_m:g} m round {alert.target_id}" if alert.ring_m else f", of {alert.target_id}"
    view.add_row("what", what)
    view.add_row("demands", geometry_pb2.Demand.Name(alert.demand))
    view.add_row("goes to", ", ".join(f"{alert_pb2.Leg.Name(to.leg)} {to.subject_id}" for to in alert.destinations))
    _add_notice(view, alert, figures)
    if alert.anomaly:
        name = alert_pb2.AnomalyKind.Name(alert.anomaly)
        view.add_row("anomaly", f"{name}: {_ANOMALIES[name]}")
    elif why := _why_ended(explained) or WHY.get(
        (AlertKind(alert_pb2.AlertKind.Name(alert.kind)), Demand(alert.demand))
    ):
        view.add_row("why", why)
    elif alert.kind == alert_pb2.UNKNOWN_NEAR and alert.HasField("cause") and figures.HasField("probability"):
        view.add_row("anomaly", "the positions are good, and so near the ring's edge that the wearer may be inside")
    if alert.amends:
        view.add_row("amends", f"the account of {alert.amends}")
    view.add_row("holds for", _moment(times.from_timestamp(alert.at)))
    view.add_row("decided", _moment(explained.decided_ms) + (", late" if alert.late else ""))
    if positions:
        _add_figures(view, figures)
    elif figures.HasField("distance_m") or figures.HasField("min_distance_m"):
        view.add_row("figures", "distance, probability and times inside: with --positions, which the ledger records")
    view.add_row("incident", alert.incident_id or "none")
    if alert.HasField("contact"):
        view.add_row("first contact", contacts.in_words(alert.contact))
    return view


def _why_ended(explained: Explanation) -> str | None:
    """Why an alert ends something for another reason than its own kind of report; None if it doesn't."""
    alert, refold = explained.alert, explained.refold
    if _is_cleared_by_record(explained):
        return _CLEARED_BY_RECORD
    if alert.unconfirmed and refold.case is not None and refold.case.is_over(explained.decided_ms):
        return f"the order ended: {_UNCONFIRMED}"
    if alert.unconfirmed:
        return f"a record changed: {_UNCONFIRMED}" if isinstance(refold.body, Case) else _UNCONFIRMED_BY_TIME
    is_tampering_over = alert.kind == alert_pb2.TAMPERED and alert.demand == geometry_pb2.RECORD
    return _SHOWN_BY_ANOTHER_TAG if is_tampering_over and explained.decisive else None


def _is_cleared_by_record(explained: Explanation) -> bool:
    """Whether a ring was cleared by a snapshot of its case, by the end of the order, or because no device measures the distance any
    more. Only reports clear it otherwise."""
    alert, refold = explained.alert, explained.refold
    if alert.kind != alert_pb2.RING_CLEARED:
        return False
    is_amended = isinstance(refold.body, Case) and refold.body.case_id == alert.case_id
    if is_amended or refold.case is None:
        return is_amended
    is_unmeasured = refold.target is not None and not refold.case.can_locate(refold.target)
    return is_unmeasured or refold.case.is_over(explained.decided_ms)


def alert_in_words(alert: alert_pb2.Alert) -> str:
    """The kind of an alert, and whether what it names is over."""
    phase = phase_of(alert)
    return alert_pb2.AlertKind.Name(alert.kind) + ("" if phase is AlertPhase.BEGUN else f" {phase.value.lower()}")


def _add_figures(view: Table, figures: alert_pb2.Measure) -> None:
    if figures.HasField("distance_m"):
        view.add_row("distance", f"{figures.distance_m:.3f} m")
    if figures.HasField("probability"):
        view.add_row("probability inside", f"{figures.probability:.6f}")
    for stretch in figures.inside:
        from_ms, to_ms = times.from_timestamp(getattr(stretch, "from")), times.from_timestamp(stretch.to)
        view.add_row("inside", f"{_moment(from_ms)} to {_moment(to_ms)}")
    if figures.HasField("min_distance_m"):
        assumed = ", assumed at the entry: one side didn't report then" if figures.min_distance_assumed else ""
        view.add_row("least distance", f"{figures.min_distance_m:.3f} m{assumed}")


def _add_notice(view: Table, alert: alert_pb2.Alert, figures: alert_pb2.Measure) -> None:
    if alert.HasField("ministry_notice"):
        view.add_row("Ministry's notice", _notice(alert, figures))
    if alert.checks:
        view.add_row("must check", ", ".join(f"{alert_pb2.Leg.Name(to.leg)} {to.subject_id}" for to in alert.checks))


def _notice(alert: alert_pb2.Alert, figures: alert_pb2.Measure) -> str:
    """A notice of the Ministry in words, with its articles."""
    ground = NoticeGround(notice_pb2.NoticeGround.Name(alert.ministry_notice.ground))
    to = ", ".join(alert.ministry_notice.person_ids)
    if alert.ministry_notice.ended:
        return f"{ground.value} has ended for {to}"
    location = (
        f"with a location ({notices.location_basis(ground)})" if figures.location_allowed else "without a location"
    )
    return f"{ground.value} to {to}, {location}"


def _log_meta(explained: Explanation) -> Table:
    refold, alert = explained.refold, explained.alert
    view = _pairs("rests on")
    view.add_row("entry", f"{alert.sequence}: {what_decided(refold)}, stamp {_moment(refold.stamp_ms)}")
    if explained.decisive:
        view.add_row("report", f"{explained.decisive.report_id} of {explained.decisive.device_id}")
    view.add_row("fold", f"version {alert.fold_version}")
    settings = rules_json(refold)
    settings.pop("rules_id")
    view.add_row("rules", f"{alert.rules_id}: " + ", ".join(f"{name} {value}" for name, value in settings.items()))
    if refold.case:
        case = case_json(refold.case)
        view.add_row("case", f"{case['case_id']}, version {case['version']}, order {case['order_id']}")
        view.add_row(
            "notice ground", case["notice_ground"] or "none: no notice of the Ministry and no location for her"
        )
        view.add_row("valid", f"{case['valid_from']} until {case['valid_until'] or 'the court decides'}")
        if duty := case["tag_duty"]:
            view.add_row("tag", f"to be fitted by {duty['fit_by']}" + (", refused" if duty["refused"] else ""))
            for cause in duty["good_causes"]:
                view.add_row("good cause", f"{cause['cause_id']}, {cause['from']} until {cause['until']}")
        for removal in case["removals"]:
            view.add_row("removal", f"{removal['removal_id']}, {removal['from']} until {removal['until']}")
        view.add_row("rings", ", ".join(f"{ring['radius_m']:g} m {ring['action']}" for ring in case["rings"]))
    else:
        view.add_row("case", "the remaining log doesn't contain it")
    return view


def _reports(explained: Explanation, title: str, reports: Sequence[LoggedPosition], *, positions: bool) -> Table:
    coordinate_columns = ("latitude", "longitude") if positions else ()
    columns = ("entry", "time", "arrived", "age", "accuracy", "source", *coordinate_columns)
    view = Table(*columns, title=title, title_justify="left")
    for report in reports:
        coordinates = (f"{report.lat_e7 / 1e7:.7f}", f"{report.lon_e7 / 1e7:.7f}") if positions else ()
        view.add_row(
            f"{report.sequence}{' decided' if report == explained.decisive else ''}",
            _time(report.time_ms),
            _time(report.arrived_ms) + (", too late" if is_too_late(report) else ""),
            _seconds(explained.decided_ms - report.time_ms),
            f"{report.accuracy_mm / 1000:g} m",
            source_in_words(report),
            *coordinates,
        )
    return view


def _earlier(explained: Explanation, positions: bool) -> Table:
    """The last reports before the decision, each with the rule that held the entry of the ring back."""
    columns = ("entry", "arrived", "device", *(("probability",) if positions else ()), "held back, because")
    view = Table(*columns, title="why not earlier: the ring after each report before it", title_justify="left")
    for earlier in explained.refold.earlier[-EARLIER_SHOWN:]:
        held_back_by, _, p = earlier.evaluation
        view.add_row(
            str(earlier.sequence),
            _time(earlier.arrived_ms),
            earlier.device_id,
            *(("" if p is None else f"{p:.6f}",) if positions else ()),
            "entered" if held_back_by is None else held_back_by.value,
        )
    return view


def _missing(explained: Explanation) -> Table:
    columns = ("side", "device", "reported", "longest silence", "newest position")
    view = Table(*columns, title="contacts in the 10 minutes before it", title_justify="left")
    for side in explained.sides:
        if not side.device_id:
            view.add_row(side.who, f"{side.subject_id} has none", "", "", "unknown")
            continue
        newest = "none" if side.newest_ms is None else f"{_seconds(explained.decided_ms - side.newest_ms)} old"
        view.add_row(side.who, side.device_id, f"{side.contacts} times", _seconds(side.silence_ms), newest)
    return view


def _requests(explained: Explanation) -> Table:
    columns = ("entry", "device", "asked at", "for", "next position")
    view = Table(*columns, title="reports that the decision asked for before it", title_justify="left")
    for each in explained.requests:
        request, following = each.request, each.next_position
        if request.interval_s is None:
            asked = f"the position at once, until {_time(request.until_ms)}"
        else:
            asked = f"a report every {request.interval_s} s, until {_time(request.until_ms)}"
        came = f"{_seconds(following.arrived_ms - request.decided_at_ms)} later" if following else "none came"
        view.add_row(str(request.sequence), request.device_id, _time(request.decided_at_ms), asked, came)
    return view


def _messages(explained: Explanation) -> Table:
    view = Table(
        *("entry", "device", "decided at", "contact"),
        title="messages to the wearer that the decision asked for before it",
        title_justify="left",
    )
    for message in explained.refold.messages:
        view.add_row(str(message.sequence), message.device_id, _time(message.decided_at_ms), message.request_id)
    return view


def _pairs(title: str) -> Table:
    return Table(Column(), Column(overflow="fold"), title=title, title_justify="left", show_header=False)


def _moment(ms: int) -> str:
    return times.to_rfc3339(ms)


def _time(ms: int) -> str:
    return times.to_rfc3339(ms)[11:]


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"
