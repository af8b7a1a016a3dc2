"""Converts messages of the streams to domain objects of warnings, and the state of a warned person from and to JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.common import fields, ids, times
from services.common.ids import PlaceId
from services.common.messaging import flow, stored
from services.common.privacy.notices import NoticeGround
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.enums import Demand
from services.dispatch.domain.events import BEFORE_ALL
from services.dispatch.notices.domain import NoticeAlert
from services.dispatch.warning.domain import Notice, NotifiedState, Occurrence, Threat
from services.dispatch.warning.tables import ContactRow
from tandem.common.v1 import alert_pb2, command_pb2, exercise_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2

NOTICES: Mapping[int, Notice] = {
    alert_pb2.RING_ENTERED: Notice.APPROACH,
    alert_pb2.RING_CLEARED: Notice.APPROACH,
    alert_pb2.DISTANCE_CHANGED: Notice.CHANGED,
    alert_pb2.CONTACT_PREDICTED: Notice.COMING,
    alert_pb2.UNKNOWN_NEAR: Notice.UNSEEN,
    alert_pb2.TAMPERED: Notice.TAMPERED,
    alert_pb2.PANIC: Notice.NEUTRAL,  # her own telephone mustn't reveal that she pressed the panic button silently
    alert_pb2.PROTECTED_DEVICE_LOST: Notice.PHONE_SILENT,
}
"""Notice of each alert kind. Any other kind with a warning gets NEUTRAL."""
_DEMANDS = frozenset(int(demand) for demand in Demand)


_ADVICE = {dispatch_pb2.STAY_INSIDE: Notice.STAY_INSIDE, dispatch_pb2.LEAVE: Notice.LEAVE}


@dataclass(frozen=True, slots=True)
class WarnableAlert:
    """An alert or advice that may cause a message to a person."""

    occurrence: Occurrence
    person_ids: tuple[str, ...]
    """Persons whom the alert or advice names."""
    order_id: str
    partition: int
    drill: bool
    """The alert or advice belongs to an exercise. The text of the message says that it is a drill."""
    decided_ms: int | None = None
    """Time of the decision, milliseconds of mesh time; None if the alert has none."""
    notice: NoticeAlert | None = None
    """Notice of the Ministry that is due with the alert, or has ended with it; None if there is none."""


def alert(payload: bytes, subject: str | None = None) -> WarnableAlert | None:
    """Parses an alert; None if it concerns no protected person. Raises InvalidField."""
    message = stored.alert(payload, subject)
    alert_id = message.alert_id
    if int(message.demand) not in _DEMANDS:
        raise InvalidField("demand", "is missing or unknown")
    if message.exercise == exercise_pb2.CANARY:
        return None  # a canary has no person to warn; it checks only the steps of the leg
    demand, notice = Demand(message.demand), NOTICES.get(message.kind, Notice.NEUTRAL)
    persons = [destination.subject_id for destination in message.destinations if destination.leg == alert_pb2.WARNING]
    if notice is Notice.PHONE_SILENT:
        # The alert itself notifies the police. If her own device reported the cause, she already knows.
        if demand is not Demand.NOTIFY or message.HasField("cause") or not message.target_id:
            return (
                None
                if not message.incident_ends
                else _warnable(message, alert_id, demand, notice=Notice.NEUTRAL, persons=persons)
            )
        persons = [message.target_id]
    elif not message.incident_id or not (persons or message.incident_ends or demand is Demand.RECORD):
        return None
    return _warnable(message, alert_id, demand, notice=notice, persons=persons)


def advice(payload: bytes, subject: str | None = None) -> WarnableAlert | None:
    """Parses advice of the police leg. Advice about a place names no person: it is for all persons warned under the place's order.

    Returns None if the message only withdraws earlier advice. Nobody is notified of that, since it would be understood as "safe".
    Raises InvalidField.
    """
    message = stored.advice(payload, subject)
    notice = _ADVICE.get(message.advice)
    if notice is None:
        return None
    subject_id = message.subject_id
    place = PlaceId.parse(subject_id)
    order_ids = [place.order_id] if place else list(message.order_ids)
    occurrence = Occurrence(
        alert_id=message.advice_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        notice=notice,
        demand=Demand.RESPOND,
        threat=ids.hash_id("threat", "race", subject_id),
        of_place=place is not None,
    )
    if not order_ids:
        raise InvalidField("order_ids", "is missing")
    persons = () if place else (fields.required_id("subject_id", subject_id),)
    return WarnableAlert(
        occurrence=occurrence,
        person_ids=persons,
        order_id=order_ids[0],
        partition=0,
        drill=False,
        decided_ms=times.from_timestamp(message.at),
    )


def _warnable(
    message: alert_pb2.Alert, alert_id: str, demand: Demand, *, notice: Notice, persons: list[str]
) -> WarnableAlert:
    for number, person_id in enumerate(persons):
        for part in PlaceId.parse(person_id) or (person_id,):
            fields.required_id(f"destinations[{number}].subject_id", part)
    occurrence = Occurrence(
        alert_id=alert_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        notice=notice,
        demand=demand,
        threat=_threat(message),
        ends=message.incident_ends,
        ring_m=message.ring_m,
        # The target of an alert about a place is the place, not one of the persons whom the alert warns.
        of_place=bool(message.ring_m and message.target_id and message.target_id not in persons),
    )
    order_id = fields.required_id("order_id", message.order_id)
    drill = message.exercise != exercise_pb2.EXERCISE_UNSPECIFIED
    decided_ms = times.from_timestamp(message.decided_at) if message.HasField("decided_at") else None
    return WarnableAlert(
        occurrence=occurrence,
        person_ids=tuple(dict.fromkeys(persons)),
        order_id=order_id,
        partition=message.partition,
        drill=drill,
        decided_ms=decided_ms,
        notice=_notice(message, persons) if message.HasField("ministry_notice") else None,
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
    if message.kind in (alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED, alert_pb2.DISTANCE_CHANGED):
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
        )
        for person in snapshot.persons
    )
    return CaseContacts(snapshot.case_id, snapshot.version, contacts)


def notice_step(payload: bytes, subject: str | None = None) -> command_pb2.CommandStep | None:
    """Parses the step of a command that carries a warning; None for another service's command. Raises InvalidField."""
    step = stored.command_step(payload, subject)
    return step if step.command_id.startswith(flow.NOTICE_IDS) else None


def notified_to_json(state: NotifiedState) -> dict[str, Any]:
    """Encodes the state of a warned person for the database."""
    threats = {
        key: [*threat.place, threat.holds, int(threat.demand), threat.ring_m, *([True] if threat.of_place else [])]
        for key, threat in sorted(state.threats.items())
    }
    encoded: dict[str, Any] = {"threats": threats, "last_ms": state.last_ms, "open": state.open}
    return encoded | ({"ended": state.ended} if state.ended != BEFORE_ALL else {})


def notified_from_json(stored_state: Mapping[str, Any]) -> NotifiedState:
    """Decodes the state of a warned person from the database."""
    threats = {
        key: Threat((sequence, ordinal), holds, demand=Demand(demand), ring_m=ring_m, of_place=bool(of_place))
        for key, (sequence, ordinal, holds, demand, ring_m, *of_place) in stored_state["threats"].items()
    }
    sequence, ordinal = stored_state.get("ended", BEFORE_ALL)
    return NotifiedState(
        threats=MappingProxyType(threats),
        last_ms=stored_state["last_ms"],
        open=stored_state["open"],
        ended=(sequence, ordinal),
    )
