"""Converts messages of the streams to domain objects of warnings, and threats and instructions from and to JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.common import fields, ids, times
from services.common.errors import InvalidField
from services.common.messaging import flow, stored
from services.common.privacy.notices import NoticeGround
from services.dispatch.domain.enums import Advice, Demand
from services.dispatch.domain.events import LogPosition
from services.dispatch.warning.domain import (
    CalledSilently,
    Cleared,
    DistanceChanged,
    Figure,
    IncidentThreats,
    InstructedAct,
    Instruction,
    Level,
    NoticeAlert,
    Rank,
    SilentCall,
    Threat,
    Threatened,
    ThreatKind,
)
from services.dispatch.warning.tables import ContactRow
from tandem.common.v1 import alert_pb2, command_pb2, exercise_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2

THREATS: Mapping[int, ThreatKind] = {
    alert_pb2.RING_ENTERED: ThreatKind.RING,
    alert_pb2.DISTANCE_CHANGED: ThreatKind.RING,
    alert_pb2.CONTACT_PREDICTED: ThreatKind.COMING,
    alert_pb2.UNKNOWN_NEAR: ThreatKind.UNSEEN,
    alert_pb2.TAMPERED: ThreatKind.TAMPERED,
}
"""Threat that each alert kind raises. Any other kind with a warning raises OTHER."""
_RINGS = (alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED, alert_pb2.DISTANCE_CHANGED)
_DEMANDS = frozenset(int(demand) for demand in Demand)
_ADVICE = frozenset(int(advice) for advice in Advice)


@dataclass(frozen=True, slots=True)
class PhoneSilent:
    """An alert that a person's own device isn't reporting. It threatens nobody."""


@dataclass(frozen=True, slots=True)
class WarnableAlert:
    """An alert that may cause a message to a person."""

    alert_id: str
    incident_id: str
    place: LogPosition
    demand: Demand
    occurrence: Threatened | DistanceChanged | Cleared | CalledSilently | PhoneSilent
    person_ids: tuple[str, ...]
    """Persons whom the alert names. The end of a threat also concerns all others who were warned in the incident."""
    order_id: str
    partition: int
    drill: bool
    """The alert belongs to an exercise. The text of the message says that it is a drill."""
    decided_ms: int | None = None
    """Time of the decision, milliseconds of mesh time; None if the alert has none."""
    notice: NoticeAlert | None = None
    """Notice of the Ministry that is due with the alert, or has ended with it; None if there is none."""

    @property
    def ends_incident(self) -> bool:
        """Whether the alert ends the incident."""
        return isinstance(self.occurrence, Cleared) and self.occurrence.ends_incident


def alert(payload: bytes, subject: str | None = None) -> WarnableAlert | None:
    """Parses an alert; None if it concerns no protected person. Raises InvalidField."""
    message = stored.alert(payload, subject)
    if int(message.demand) not in _DEMANDS:
        raise InvalidField("demand", "is missing or unknown")
    if message.exercise == exercise_pb2.CANARY:
        return None  # a canary has no person to warn; it checks only the steps of the leg
    persons = [destination.subject_id for destination in message.destinations if destination.leg == alert_pb2.WARNING]
    for number, person_id in enumerate(persons):
        fields.required_id(f"destinations[{number}].subject_id", person_id)
    occurrence = _occurrence(message, persons)
    if occurrence is None:
        return None
    if isinstance(occurrence, CalledSilently | PhoneSilent):
        persons = [fields.required_id("target_id", message.target_id)]
    return WarnableAlert(
        alert_id=message.alert_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        demand=Demand(message.demand),
        occurrence=occurrence,
        person_ids=tuple(dict.fromkeys(persons)),
        order_id=fields.required_id("order_id", message.order_id),
        partition=message.partition,
        drill=message.exercise != exercise_pb2.EXERCISE_UNSPECIFIED,
        decided_ms=times.from_timestamp(message.decided_at) if message.HasField("decided_at") else None,
        notice=_notice(message, persons) if message.HasField("ministry_notice") else None,
    )


def _occurrence(
    message: alert_pb2.Alert, persons: Sequence[str]
) -> Threatened | DistanceChanged | Cleared | CalledSilently | PhoneSilent | None:
    """What an alert says about her threats; None if it says nothing."""
    place, decided_ms = (message.sequence, message.ordinal), times.from_timestamp(message.decided_at)
    if message.incident_ends or int(message.demand) == Demand.RECORD:
        # A record without a destination ends nothing: the decision keeps it from the legs, so that none reads it as an end.
        is_end = message.incident_id and (message.incident_ends or message.destinations)
        cleared = Cleared(message.alert_id, place, _threat(message), ends_incident=message.incident_ends)
        return cleared if is_end else None
    if message.kind == alert_pb2.PROTECTED_DEVICE_LOST:
        # The alert itself notifies the police. If her own device reported the cause, she already knows.
        is_new = int(message.demand) == Demand.NOTIFY and not message.HasField("cause") and message.target_id
        return PhoneSilent() if is_new else None
    if message.kind == alert_pb2.PANIC:
        # She knows that she called. A message would show somebody else what she did.
        is_silent = message.silent and message.incident_id and message.target_id
        return CalledSilently(message.alert_id, place, decided_ms) if is_silent else None
    if not message.incident_id or not persons:
        return None
    # The target of an alert about a place is the place, not one of the persons whom the alert warns.
    of_place = message.target_id and message.target_id not in persons
    raised = Threatened(
        alert_id=message.alert_id,
        place=place,
        decided_ms=decided_ms,
        key=_threat(message),
        kind=THREATS.get(message.kind, ThreatKind.OTHER),
        demand=Demand(message.demand),
        order_id=message.order_id,
        place_id=f"{message.order_id}/{message.target_id}" if of_place else "",
        ring_m=message.ring_m if message.kind in _RINGS else 0.0,
        partition=message.partition,
    )
    return DistanceChanged(raised) if message.kind == alert_pb2.DISTANCE_CHANGED else raised


@dataclass(frozen=True, slots=True)
class GivenAdvice:
    """Advice of the police in an incident, or its withdrawal."""

    advice_id: str
    incident_id: str
    subject_id: str
    """Where the wearer would arrive: a person, or `order/place`. Advice for a place is for all whom the order protects."""
    advice: Advice
    """NONE withdraws earlier advice."""
    number: int
    """Number of the assignment's step. A greater one is later."""
    place: LogPosition
    """Log position of the last alert that demanded a response there."""
    at_ms: int


def advice(payload: bytes, subject: str | None = None) -> GivenAdvice:
    """Parses advice of the police leg, or its withdrawal. Raises InvalidField.

    Nobody is notified of a withdrawal alone, since it would be understood as "safe": the instruction that follows says what to do.
    """
    message = stored.advice(payload, subject)
    return GivenAdvice(
        advice_id=message.advice_id,
        incident_id=message.incident_id,
        subject_id=message.subject_id,
        advice=Advice(message.advice) if message.advice in _ADVICE else Advice.NONE,
        number=message.number,
        place=(message.sequence, message.ordinal),
        at_ms=times.from_timestamp(message.at),
    )


@dataclass(frozen=True, slots=True)
class ClosedAssignment:
    """The police have closed their assignment to a protected person or place."""

    step_id: str
    incident_id: str
    subject_id: str
    """Destination of the assignment: a person, or `order/place`."""
    closed_ms: int
    found_nobody: bool


def closing(payload: bytes, subject: str | None = None) -> ClosedAssignment | None:
    """Parses a step of the police leg; None unless it closes the response to a protected person or place. Raises InvalidField."""
    step = stored.step(payload, subject)
    assignment = step.assignment
    if assignment.state != dispatch_pb2.CLOSED or assignment.task != notice_pb2.TASK_UNSPECIFIED:
        return None
    return ClosedAssignment(
        step_id=step.step_id,
        incident_id=assignment.incident_id,
        subject_id=assignment.subject_id,
        closed_ms=times.from_timestamp(step.at),
        found_nobody=assignment.close_cause == dispatch_pb2.NOBODY_FOUND,
    )


def _notice(message: alert_pb2.Alert, warned_ids: Sequence[str]) -> NoticeAlert:
    """The Ministry's notice in an alert. Persons whom the alert doesn't warn get none. An unknown ground is no ground."""
    known, ground = notice_pb2.NoticeGround, message.ministry_notice.ground
    is_known = bool(ground and ground in known.values() and message.wearer_id and message.case_id)
    return NoticeAlert(
        ground=NoticeGround(known.Name(ground)) if is_known else None,
        person_ids=tuple(dict.fromkeys(id_ for id_ in message.ministry_notice.person_ids if id_ in warned_ids)),
        ended=message.ministry_notice.ended,
        wearer_id=message.wearer_id,
        case_id=message.case_id,
    )


def _threat(message: alert_pb2.Alert) -> str:
    if message.kind in _RINGS:
        return ids.hash_id("threat", message.order_id, message.target_id, str(message.ring_m))
    if message.kind == alert_pb2.UNKNOWN_NEAR:
        return ids.hash_id("threat", message.order_id, message.kind, message.target_id)
    # The key leaves the target out: if the case has dropped the device, the alert that ends the threat names no target.
    return ids.hash_id("threat", message.order_id, message.kind)


@dataclass(frozen=True, slots=True)
class CaseContacts:
    """Contacts of the protected persons of a case."""

    case_id: str
    version: int
    contacts: tuple[ContactRow, ...]


def case(payload: bytes, _subject: str | None = None) -> CaseContacts | None:
    """Parses the contacts of a case snapshot; None if the entry isn't a case. Raises InvalidField."""
    snapshot = stored.case(payload)
    if snapshot is None:
        return None
    contacts = tuple(
        ContactRow(
            case_id=snapshot.case_id,
            person_id=person.person_id,
            version=snapshot.version,
            sealed=person.sealed_contact,
            device_ids=list(person.device_ids),
            valid_until_ms=snapshot.valid_until_ms or None,
            order_id=snapshot.order_id,
            valid_from_ms=snapshot.valid_from_ms,
        )
        for person in snapshot.persons
    )
    return CaseContacts(snapshot.case_id, snapshot.version, contacts)


def notice_step(payload: bytes, subject: str | None = None) -> command_pb2.CommandStep | None:
    """Parses the step of a command that carries a warning; None for another service's command. Raises InvalidField."""
    step = stored.command_step(payload, subject)
    return step if step.command_id.startswith(flow.NOTICE_IDS) else None


# ── JSON of the database ─────────────────────────────────────────────────────────────────────────────────────────────


def threats_to_json(state: IncidentThreats) -> dict[str, Any]:
    """Encodes a person's threats in an incident."""
    return {
        "threats": {key: _threat_to_json(threat) for key, threat in sorted(state.threats.items())},
        "calm": state.calm,
        "ended": state.ended,
        "silent_call": state.silent_call,
    }


def threats_from_json(encoded: Mapping[str, Any]) -> IncidentThreats:
    """Decodes a person's threats in an incident."""
    silent_call = encoded["silent_call"]
    return IncidentThreats(
        threats=MappingProxyType({key: _threat_from_json(threat) for key, threat in encoded["threats"].items()}),
        calm=_position(encoded["calm"]),
        ended=_position(encoded["ended"]),
        silent_call=SilentCall(_position(silent_call[0]), silent_call[1]) if silent_call else None,
    )


def _threat_to_json(threat: Threat) -> dict[str, Any]:
    return {
        "kind": threat.kind.value,
        "place": threat.place,
        "holds": threat.holds,
        "demand": int(threat.demand),
        "order_id": threat.order_id,
        "place_id": threat.place_id,
        "alert_id": threat.alert_id,
        "partition": threat.partition,
        "begun_ms": threat.begun_ms,
        "decided_ms": threat.decided_ms,
        "ring_m": threat.ring_m,
        "figure": threat.figure,
        "closed": threat.closed,
    }


def _threat_from_json(encoded: Mapping[str, Any]) -> Threat:
    converted = {
        "kind": ThreatKind(encoded["kind"]),
        "place": _position(encoded["place"]),
        "demand": Demand(encoded["demand"]),
        "figure": _figure(encoded["figure"]),
    }
    return Threat(**{**encoded, **converted})


def instruction_to_json(instruction: Instruction) -> str:
    """Encodes an instruction."""
    encoded = {
        "rank": instruction.rank,
        "act": instruction.act.value,
        "kind": instruction.kind.value,
        "ring_m": instruction.ring_m,
        "of_place": instruction.of_place,
        "is_unseen": instruction.is_unseen,
        "order_id": instruction.order_id,
        "drill": instruction.drill,
        "incident_id": instruction.incident_id,
        "alert_id": instruction.alert_id,
        "place": instruction.place,
        "partition": instruction.partition,
        "since_ms": instruction.since_ms,
        "figure": instruction.figure,
    }
    return json.dumps(encoded)


def instruction_from_json(text: str) -> Instruction:
    """Decodes an instruction."""
    encoded = json.loads(text)
    level, demand, advised, nearness_m = encoded["rank"]
    converted = {
        "rank": Rank(Level(level), demand=Demand(demand), advice=advised, nearness_m=nearness_m),
        "act": InstructedAct(encoded["act"]),
        "kind": ThreatKind(encoded["kind"]),
        "place": _position(encoded["place"]),
        "figure": _figure(encoded["figure"]),
    }
    return Instruction(**{**encoded, **converted})


def _position(encoded: Sequence[int]) -> LogPosition:
    sequence, ordinal = encoded
    return sequence, ordinal


def _figure(encoded: Sequence[Any] | None) -> Figure | None:
    if encoded is None:
        return None
    alert_id, place, at_ms, before_alert_id = encoded
    return Figure(alert_id, place=_position(place), at_ms=at_ms, before_alert_id=before_alert_id)
