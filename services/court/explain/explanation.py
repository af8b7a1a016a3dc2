"""Explain an alert: its evidence, whether a refold reproduces it, which reports were missing, and the case and map that it rests on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, assert_never

from google.protobuf import json_format
from google.protobuf.message import Message

from services.common import times
from services.common.messaging import flow
from services.court.explain.refold import EarlierReport, LoggedPosition, Refold
from services.geofence import translate
from services.geofence.domain import her_map
from services.geofence.domain.alerts import Alert, ContactRequest, SensingRequest
from services.geofence.domain.entries import (
    Case,
    EquipmentReport,
    FoldVersion,
    Heard,
    Positions,
    PositionSource,
    Presences,
    Rules,
    TagDuty,
    Tick,
)
from services.geofence.domain.her_map import MapView, ViewOutcome
from services.geofence.domain.kinematics.track import WINDOW_MS
from tandem.common.v1 import alert_pb2

LOOK_BACK_MS = 600_000
"""Time before the decision in which contacts are counted and silences measured, ms."""
REPORTS_SHOWN = 5
"""Number of reports shown per device: the last ones before the decision."""


@dataclass(frozen=True, slots=True)
class DeviceExplanation:
    """A device of the wearer or a protected person, with the reports that the fold had received at the decision."""

    who: str
    """Side of the device: "wearer" or "protected"."""
    subject_id: str
    device_id: str
    """Device id; empty if the person has no device."""
    reports: Sequence[LoggedPosition]
    """The last REPORTS_SHOWN reports before the decision, in order of arrival."""
    contacts: int
    """Number of contacts in the 10 min before the decision, a shorter time if the log began or the device got its owner later."""
    silence_ms: int
    """Longest time without a contact in the period of `contacts`, ms."""
    newest_ms: int | None
    """Time of the newest position that the fold used, mesh time; None if the fold used none."""


@dataclass(frozen=True, slots=True)
class ExplainedRequest:
    """A request of the fold for reports of the wearer's tag, and the next position of that tag."""

    request: SensingRequest
    next_position: LoggedPosition | None
    """The first position of the tag that arrived after the request; None if the log has none."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything that `tandem explain` shows of an alert."""

    refold: Refold
    differences: Sequence[str]
    """Differences between the refold and the stored alert; empty if both are the same, byte for byte."""
    decisive: LoggedPosition | None
    """The position that decided; None if something else decided, such as a tick or an equipment event."""
    sides: Sequence[DeviceExplanation]
    later: Sequence[LoggedPosition]
    """Positions that arrived after the decision, but whose time is before the decision."""
    requests: Sequence[ExplainedRequest]
    """Requests to the wearer's tags that counted at the decision or were made in the 10 min before it."""

    @property
    def alert(self) -> alert_pb2.Alert:
        """The stored alert."""
        return self.refold.stored.alert

    @property
    def figures(self) -> alert_pb2.Measure:
        """The stored figures of the alert; empty if none are stored."""
        return alert_pb2.Measure.FromString(self.refold.stored.figures or b"")

    @property
    def decided_ms(self) -> int:
        """Time of the decision, mesh time, milliseconds since 1970 UTC."""
        return self.refold.decided_ms

    def to_json(self, positions: bool) -> dict[str, Any]:
        """The JSON object that `tandem explain` prints. Coordinates, and figures that follow from them, only if `positions` is set."""
        alert, refolded = self.alert, self.refold

        def as_json(report: LoggedPosition) -> dict[str, Any]:
            return report_json(report, self.decided_ms, positions)

        return {
            "alert": _plain(alert),
            "figures": _plain(self.figures) if positions else None,
            "again": "DIFFERENT" if self.differences else "SAME",
            "differences": list(self.differences),
            "log": {
                "stream": flow.log_stream(alert.partition),
                "folded_from": refolded.first,
                "to": alert.sequence,
                "read_to": refolded.read_to,
            },
            "entry": {
                "sequence": alert.sequence,
                "stamp": times.to_rfc3339(refolded.stamp_ms),
                "what": what_decided(refolded),
                "decisive": as_json(self.decisive) if self.decisive else None,
            },
            "rules": rules_json(refolded),
            "case": case_json(refolded.case) if refolded.case else None,
            "sides": [
                {
                    "side": side.who,
                    "subject_id": side.subject_id,
                    "device_id": side.device_id or None,
                    "last_reports": [as_json(report) for report in side.reports],
                    "contacts_in_10_minutes": side.contacts,
                    "longest_silence_s": side.silence_ms / 1000,
                    "newest_position_age_s": None
                    if side.newest_ms is None
                    else (self.decided_ms - side.newest_ms) / 1000,
                }
                for side in self.sides
            ],
            "came_later": [as_json(report) for report in self.later],
            "requests": [_request_json(explained) for explained in self.requests],
            "earlier": [_earlier_json(earlier, positions) for earlier in refolded.earlier],
            "her_map": her_map_json(refolded, positions),
            "messages_to_wearer": [_message_json(message) for message in self.refold.messages],
        }


def explain(refold: Refold) -> Explanation:
    """The explanation of an alert whose log was refolded."""
    cause = refold.stored.alert.cause
    decisive = next(
        (
            report
            for report in refold.reports.get(cause.device_id, ())
            if (report.sequence, report.report_id) == (refold.stored.alert.sequence, cause.report_id)
        ),
        None,
    )
    return Explanation(
        refold=refold,
        differences=_differences(refold),
        decisive=decisive,
        sides=_sides(refold, decisive),
        later=_later(refold, decisive),
        requests=_requests(refold),
    )


def _earlier_json(earlier: EarlierReport, positions: bool) -> dict[str, Any]:
    held_back_by, distance_mm, p = earlier.evaluation
    fields: dict[str, Any] = {
        "sequence": earlier.sequence,
        "arrived": times.to_rfc3339(earlier.arrived_ms),
        "device_id": earlier.device_id,
        "held_back_by": held_back_by.name if held_back_by else None,
    }
    if positions:
        fields |= {
            "distance_m": None if distance_mm is None else round(distance_mm / 1000, 3),
            "probability": None if p is None else round(p, 6),
        }
    return fields


def _requests(refold: Refold) -> list[ExplainedRequest]:
    """The requests of the 10 min before the decision, and each tag's last interval before that."""
    from_ms = refold.decided_ms - LOOK_BACK_MS
    recent = [request for request in refold.requests if request.decided_at_ms >= from_ms]
    older = {
        request.device_id: request
        for request in refold.requests
        if request.interval_s is not None and request.decided_at_ms < from_ms <= request.until_ms
    }
    return [ExplainedRequest(request, _next_position(refold, request)) for request in (*older.values(), *recent)]


def _next_position(refold: Refold, request: SensingRequest) -> LoggedPosition | None:
    reports = refold.reports.get(request.device_id, ())
    return next((report for report in reports if report.sequence > request.sequence), None)


def _request_json(explained: ExplainedRequest) -> dict[str, Any]:
    request, following = explained.request, explained.next_position
    return {
        "request_id": request.request_id,
        "device_id": request.device_id,
        "interval_s": request.interval_s,
        "decided_at": times.to_rfc3339(request.decided_at_ms),
        "until": times.to_rfc3339(request.until_ms),
        "next_position_at": times.to_rfc3339(following.arrived_ms) if following else None,
    }


def _message_json(message: ContactRequest) -> dict[str, Any]:
    return {
        "contact_id": message.request_id,
        "device_id": message.device_id,
        "sequence": message.sequence,
        "decided_at": times.to_rfc3339(message.decided_at_ms),
    }


def what_decided(refold: Refold) -> str:
    """The content of the log entry that decided, in words."""
    match refold.body:
        case Positions() as batch:
            count = len(batch.device_ids)
            return f"{count} positions" if count != 1 else "a position"
        case EquipmentReport() as report:
            return f"{report.event.value} of {report.device_id}, {times.to_rfc3339(report.event_time_ms)}"
        case Case() as case:
            return f"version {case.version} of {case.case_id}"
        case Heard():
            return "contact without a position"
        case Presences() as batch:
            return _presences_in_words(batch)
        case None:
            return "an unreadable entry"
        case Rules():
            return "rules"
        case FoldVersion():
            return "version of the fold"
        case Tick():
            return "the passing of time"
        case _:
            assert_never(refold.body)


def _presences_in_words(batch: Presences) -> str:
    described = []
    for report in batch.reports:
        seen = times.to_rfc3339(report.seen_ms)
        stay = f"left at {seen}" if report.left else f"since {times.to_rfc3339(report.since_ms)}, seen at {seen}"
        described.append(f"presence of {report.device_id} at {report.unit_id}, {stay}")
    return "; ".join(described)


def report_json(report: LoggedPosition, decided_ms: int, positions: bool) -> dict[str, Any]:
    """The JSON object of a position, with its age at the decision; with coordinates only if `positions` is set."""
    fields: dict[str, Any] = {
        "sequence": report.sequence,
        "device_id": report.device_id,
        "report_id": report.report_id,
        "time": times.to_rfc3339(report.time_ms),
        "arrived": times.to_rfc3339(report.arrived_ms),
        "age_s": (decided_ms - report.time_ms) / 1000,
        "accuracy_m": report.accuracy_mm / 1000,
        "source": PositionSource(report.source).name,
        "too_late": is_too_late(report),
    }
    if positions:
        fields |= {"lat_deg": report.lat_e7 / 1e7, "lon_deg": report.lon_e7 / 1e7}
    return fields


_SOURCES = {
    PositionSource.UNSPECIFIED: "not stated",
    PositionSource.GNSS: "GNSS",
    PositionSource.WIFI: "Wi-Fi",
    PositionSource.CELL: "radio cell",
}


def source_in_words(report: LoggedPosition) -> str:
    """Where a position comes from, in words."""
    return _SOURCES[PositionSource(report.source)]


def is_too_late(report: LoggedPosition) -> bool:
    """Whether a position arrived too late for the fold to use it."""
    return report.arrived_ms - report.time_ms > WINDOW_MS


def rules_json(refold: Refold) -> dict[str, Any]:
    """The rules in force at the decision."""
    rules = translate.rules_entry(refold.state.rules).rules
    return {field.name: getattr(rules, field.name) for field in rules.DESCRIPTOR.fields}


def _plain(message: Message) -> dict[str, Any]:
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


# ── comparison with the stored alert ─────────────────────────────────────────────────────────────────────────────────


def _differences(refold: Refold) -> list[str]:
    stored = refold.stored
    ordinal = stored.alert.ordinal
    refolded = refold.outputs[ordinal] if ordinal < len(refold.outputs) else None
    if not isinstance(refolded, Alert):
        return ["the fold gives no alert there"]
    message = translate.alert_to_proto(refolded, stored.alert.partition)
    before, now = _plain(stored.alert), _plain(message)
    names = _different(before, now)
    differences = [f"{name}: was {before.get(name)}, is {now.get(name)}" for name in names]
    if not names and message.SerializeToString() != stored.data:
        differences = ["bytes"]
    if stored.figures is None:
        return [*differences, "its figures aren't stored"]
    measure = translate.measure_to_proto(refolded)
    if measure.SerializeToString() == stored.figures:
        return differences
    # Figures follow from positions, so a difference is named without them.
    names = _different(_plain(alert_pb2.Measure.FromString(stored.figures)), _plain(measure))
    return differences + [f"figures.{name}: differs" for name in names or ("bytes",)]


def _different(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [name for name in {**before, **now} if before.get(name) != now.get(name)]


# ── received and missing reports ─────────────────────────────────────────────────────────────────────────────────────


def _is_before(refold: Refold, decisive: LoggedPosition | None, report: LoggedPosition) -> bool:
    """Whether the fold had received this report when it decided."""
    sequence = refold.stored.alert.sequence
    if report.sequence == sequence and decisive is not None:
        return report.index <= decisive.index
    return report.sequence <= sequence


def _sides(refold: Refold, decisive: LoggedPosition | None) -> list[DeviceExplanation]:
    case = refold.case or refold.before
    if case is None:
        return []
    devices = [("wearer", case.wearer_id, device_id) for device_id in case.tag_device_ids]
    for person in (refold.target,) if refold.target else case.targets:
        if person.is_person:
            devices += [("protected", person.target_id, device_id) for device_id in person.device_ids or ("",)]
    return [
        _side(refold, decisive, who, subject_id=subject_id, device_id=device_id)
        for who, subject_id, device_id in devices
    ]


def _side(
    refold: Refold, decisive: LoggedPosition | None, who: str, *, subject_id: str, device_id: str
) -> DeviceExplanation:
    decided_ms = refold.decided_ms
    known = [report for report in refold.reports.get(device_id, ()) if _is_before(refold, decisive, report)]
    track = refold.state.tracks.get(device_id)
    used = [report.time_ms for report in known if not is_too_late(report)]
    older = track.last() if track and not used else None  # the fold keeps the two newest positions, however old
    newest_ms = max(used, default=older.time_ms if older else None)
    from_ms = max(decided_ms - LOOK_BACK_MS, refold.began_ms, refold.theirs_since_ms(device_id))
    contacts = [at_ms for at_ms in refold.contacts.get(device_id, ()) if from_ms <= at_ms <= decided_ms]
    moments = [from_ms, *contacts, decided_ms]
    silence_ms = max(after - before for before, after in pairwise(moments))
    return DeviceExplanation(
        who=who,
        subject_id=subject_id,
        device_id=device_id,
        reports=known[-REPORTS_SHOWN:],
        contacts=len(contacts),
        silence_ms=silence_ms,
        newest_ms=newest_ms,
    )


def _later(refold: Refold, decisive: LoggedPosition | None) -> list[LoggedPosition]:
    later = []
    for reports in refold.reports.values():
        ids: set[str] = set()
        for report in reports:
            if report.report_id in ids:
                continue  # a resent report
            ids.add(report.report_id)
            if report.time_ms <= refold.decided_ms and not _is_before(refold, decisive, report):
                later.append(report)
    return sorted(later, key=lambda report: (report.sequence, report.index))


def case_json(case: Case) -> dict[str, Any]:
    """The JSON object of a case, without its geometry."""
    return {
        "case_id": case.case_id,
        "version": case.version,
        "order_id": case.order_id,
        "wearer_id": case.wearer_id,
        "tags": list(case.tag_device_ids),
        "persons": {target.target_id: list(target.device_ids) for target in case.targets if target.is_person},
        "places": [target.target_id for target in case.targets if not target.is_person],
        "named_places": [target.target_id for target in case.targets if target.is_named],
        "rings": [{"radius_m": ring.radius_mm / 1000, "action": ring.action.name} for ring in case.rings],
        "notice_ground": case.notice_ground.value if case.notice_ground else None,
        "police_must_check": case.police_must_check,
        "valid_from": times.to_rfc3339(case.valid_from_ms),
        "valid_until": None if case.valid_until_ms is None else times.to_rfc3339(case.valid_until_ms),
        "tag_duty": _tag_duty_json(case.tag_duty) if case.tag_duty else None,
        "removals": [
            {
                "removal_id": removal.removal_id,
                "device_id": removal.device_id,
                "from": times.to_rfc3339(removal.from_ms),
                "until": times.to_rfc3339(removal.until_ms),
            }
            for removal in case.removals
        ],
    }


def _tag_duty_json(duty: TagDuty) -> dict[str, Any]:
    return {
        "fit_by": times.to_rfc3339(duty.fit_by_ms),
        "refused": None if duty.refused_ms is None else times.to_rfc3339(duty.refused_ms),
        "good_causes": [
            {
                "cause_id": cause.cause_id,
                "from": times.to_rfc3339(cause.from_ms),
                "until": times.to_rfc3339(cause.until_ms),
            }
            for cause in duty.good_causes
        ],
    }


def her_map_json(refold: Refold, positions: bool) -> list[dict[str, Any]]:
    """A JSON object for each person with an open notice. Circles, distances and directions only if `positions` is set."""
    rows = []
    for view in map_views(refold):
        row: dict[str, Any] = {"person_id": view.person_id, "outcome": view.outcome.value}
        if view.outcome is ViewOutcome.SHOWN and positions:
            row["grows_mps"] = round(view.grows_mps, 1)
            row["circles"] = [
                {"lat_deg": lat_e7 / 1e7, "lon_deg": lon_e7 / 1e7, "radius_m": radius_m}
                for lat_e7, lon_e7, radius_m in view.circles
            ]
            row["from_her"] = view.from_her._asdict() if view.from_her else None
        rows.append(row)
    return rows


def map_views(refold: Refold) -> Iterator[MapView]:
    """The view of the case on the first device of each person who has an open notice."""
    case = refold.case
    for target in case.targets if case else ():
        if target.is_person and target.device_ids:
            seen = her_map.views(refold.state, target.device_ids[0], refold.decided_ms)
            yield from (view for view in seen if view.case_id == refold.stored.alert.case_id)
