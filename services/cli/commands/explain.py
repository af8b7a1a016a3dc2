"""`tandem explain`: why an alert was decided, with the figures of the fold."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Annotated

import typer
import uvloop
from rich.console import RenderableType
from rich.status import Status
from rich.table import Column, Table

from services.cli import usage
from services.cli.terminal import SafeConsole, fitted, for_results, styled
from services.client import mesh
from services.client.mesh import DEFAULT_FOLDER
from services.common import times
from services.common.alert_phases import AlertPhase, phase_of
from services.common.failure import FAILED
from services.common.ids import INCIDENT_IDS
from services.common.messaging import flow
from services.common.observability import telemetry
from services.common.privacy import notices
from services.common.privacy.grounds import Purpose
from services.common.privacy.notices import NoticeGround
from services.common.words import HELD_BACK_WORDS, within_a_line
from services.court import from_mesh
from services.court.explain import explanation
from services.court.explain.explanation import (
    Explanation,
    case_json,
    is_too_late,
    rules_json,
    source_in_words,
    what_decided,
)
from services.court.explain.refold import LoggedPosition, Refold
from services.geofence.domain.demands import AlertKind, AlertType
from services.geofence.domain.detectors.pipeline import WHY
from services.geofence.domain.entries import Case, Demand
from services.geofence.domain.her_map import ViewOutcome
from tandem.common.v1 import alert_pb2, first_contact_pb2, geometry_pb2, notice_pb2


def explain(
    id_: Annotated[str, typer.Argument(metavar="ALERT", help="Id of the alert; of an incident, to list its alerts.")],
    folder: usage.MeshFolder = DEFAULT_FOLDER,
    positions: Annotated[
        bool,
        typer.Option("--positions", help="Show coordinates, distances and times inside. The ledger records it."),
    ] = False,
    *,
    legal_basis: Annotated[
        str,
        typer.Option(metavar="CODE", help="With --positions: code of the legal basis, such as TAG_DECREE_23_10."),
    ] = "",
    reviewer: Annotated[str, typer.Option(metavar="NAME", help="With --positions: name of the reader.")] = "",
    purpose: Annotated[
        Purpose, typer.Option(help="With --positions: purpose of the disclosure.", case_sensitive=False)
    ] = Purpose.AUDIT,
    as_json: usage.AsJson = False,
) -> None:
    """Refold the log up to an alert, and show its evidence and the missing reports. Of an incident, list the alerts."""
    usage.required_id("ALERT", id_)
    telemetry.configure("explain", sys.stderr)
    running = mesh.load(folder)
    if id_.startswith(INCIDENT_IDS):
        _print_alerts(uvloop.run(from_mesh.incident_alerts(running, id_)), as_json)
        return
    now_ms = running.clock.now_ms()
    to = (
        from_mesh.checked_reader(reviewer, legal_basis, purpose, now_ms=now_ms, needed_by="--positions")
        if positions
        else None
    )
    console = SafeConsole(stderr=as_json, highlight=False, soft_wrap=True)
    with console.status("looking for the alert") as status:
        explained = uvloop.run(from_mesh.explain(running, id_, to, progress=partial(_show_progress, status)))
    if as_json:
        print(json.dumps(explained.to_json(positions)))
    else:
        console.print(*tables(explained, positions), sep="\n")
    if explained.differences:
        raise typer.Exit(FAILED)


def _print_alerts(alerts: list[alert_pb2.Alert], as_json: bool) -> None:
    rows = [
        {
            "at": times.to_rfc3339(times.from_timestamp(alert.at)),
            "kind": alert_pb2.AlertKind.Name(alert.kind),
            "phase": phase_of(alert).value,
            "ring_m": alert.ring_m or None,
            "target_id": alert.target_id,
            "demand": geometry_pb2.Demand.Name(alert.demand),
            "alert_id": alert.alert_id,
        }
        for alert in alerts
    ]
    if as_json:
        print(json.dumps({"alerts": rows}))
        return
    console = for_results()
    table = Table("holds for", "what", "demand", "alert")
    for alert, row in zip(alerts, rows, strict=True):
        ring = f" {alert.ring_m:g} m" if alert.ring_m else ""
        what = f"{alert_in_words(alert)}{ring}"
        table.add_row(str(row["at"])[11:], what, str(row["demand"]), alert.alert_id)
    console.print(fitted(console, table))
    console.print(IN_UTC)
    gravest = max(alerts, key=lambda alert: alert.demand)
    console.print(f"why one was given: tandem explain {gravest.alert_id}")


def _show_progress(status: Status, sequence: int, last: int) -> None:
    status.update(f"entry {sequence} of {last}")


IN_UTC = "All times are UTC (Z). Consoles and reports show Korean time, 9 hours ahead."
EARLIER_SHOWN = 12
"""Number of earlier reports shown: the last ones before the decision."""
_HELD_BACK = within_a_line(HELD_BACK_WORDS)
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

_CONTACT_PLANS = {
    first_contact_pb2.CONTACT_PLAN_TAG: "the tag tells the wearer to turn round; if that doesn't help, an officer calls",
    first_contact_pb2.CONTACT_PLAN_CALL: "an officer calls the wearer, as no tag was heard within 3 minutes",
    first_contact_pb2.CONTACT_PLAN_OUT_OF_BUDGET: "nobody contacts the wearer, as the order's budget is used up",
    first_contact_pb2.CONTACT_PLAN_TURNED_BACK: "the wearer turned back",
}
_CONTACT_WITHHELD = {
    first_contact_pb2.CONTACT_WITHHELD_JUST_CONTACTED: "the wearer was contacted within 10 minutes",
    first_contact_pb2.CONTACT_WITHHELD_KNOWN_STAY: "the wearer has lately stayed within the ring for hours",
    first_contact_pb2.CONTACT_WITHHELD_PAST: "it is of a time that is over",
}
_MAP_OUTCOMES = {
    ViewOutcome.UNKNOWN: "unknown: the newest position is older than 3 minutes, or the tag is off",
    ViewOutcome.NOT_URGENT: "withheld: the rule of urgency doesn't hold",
    ViewOutcome.FAR: "withheld: the region begins beyond the distance of the rule of urgency",
    ViewOutcome.AT_REST: "withheld: the wearer stays at a place",
    ViewOutcome.LEAVING: "withheld: the wearer is moving away",
    ViewOutcome.SHOWN: "a region",
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
    if (views := _her_map(refold, positions)) is not None:
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
        AlertType(AlertKind(alert_pb2.AlertKind.Name(alert.kind)), Demand(alert.demand))
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
        view.add_row("first contact", _contact_in_words(alert.contact))
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
            _HELD_BACK["ENTERED" if held_back_by is None else held_back_by.name][1],
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


def _her_map(refold: Refold, positions: bool) -> Table | None:
    """A table of the views; None if no person has an open notice."""
    made = list(explanation.map_views(refold))
    if not made:
        return None
    printed = Table("person", "what her map could show", title="her map at the decision", title_justify="left")
    for view in made:
        shown = _MAP_OUTCOMES[view.outcome]
        if view.outcome is ViewOutcome.SHOWN and positions:
            shown = "; ".join(f"{c.radius_m} m round {c.lat_e7 / 1e7:.4f}, {c.lon_e7 / 1e7:.4f}" for c in view.circles)
        printed.add_row(view.person_id, shown)
    return printed


def _contact_in_words(contact: first_contact_pb2.FirstContact) -> str:
    """A sentence about a contact; the name of the plan if this version doesn't know it."""
    if contact.plan == first_contact_pb2.CONTACT_PLAN_WITHHELD:
        return f"withheld: {_CONTACT_WITHHELD.get(contact.withheld, 'for a reason that this version does not know')}"
    return _CONTACT_PLANS.get(contact.plan, f"plan {int(contact.plan)}")


def _pairs(title: str) -> Table:
    return Table(Column(), Column(overflow="fold"), title=title, title_justify="left", show_header=False)


def _moment(ms: int) -> str:
    return times.to_rfc3339(ms)


def _time(ms: int) -> str:
    return times.to_rfc3339(ms)[11:]


def _seconds(ms: int) -> str:
    return f"{ms / 1000:.1f} s"
