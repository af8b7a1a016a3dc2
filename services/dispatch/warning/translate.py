"""Between the messages of the streams and what warnings are made of; and how what a person was told is written down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from services.common import fields, ids, times
from services.common.messaging import stored
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.events import Demand
from services.dispatch.domain.warning import Notice, Occurrence, Threat, Told
from services.dispatch.warning.tables import ContactRow
from tandem.common.v1 import alert_pb2, exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

NOTICES: Mapping[int, Notice] = {
    alert_pb2.RING_ENTERED: Notice.APPROACH,
    alert_pb2.RING_CLEARED: Notice.APPROACH,
    alert_pb2.DISTANCE_CHANGED: Notice.CHANGED,
    alert_pb2.CONTACT_PREDICTED: Notice.COMING,
    alert_pb2.UNKNOWN_NEAR: Notice.UNSEEN,
    alert_pb2.TAMPERED: Notice.TAMPERED,
    alert_pb2.PANIC: Notice.NEUTRAL,  # whoever presses it silently mustn't be given away by her own telephone
    alert_pb2.PROTECTED_DEVICE_LOST: Notice.PHONE_SILENT,
}
"""What a person is told of an alert; of any other that there is a warning of."""
_DEMANDS = frozenset(int(demand) for demand in Demand)


_ADVICE = {dispatch_pb2.STAY_INSIDE: Notice.STAY_INSIDE, dispatch_pb2.LEAVE: Notice.LEAVE}


@dataclass(frozen=True, slots=True)
class WarnableAlert:
    """An alert that may be told to somebody."""

    occurrence: Occurrence
    person_ids: tuple[str, ...]
    """Whom the log has warned of it."""
    order_id: str
    partition: int
    drill: bool
    """It isn't in earnest, and says so."""
    decided_ms: int | None = None
    """When the log decided it, mesh time; None where it doesn't say."""


def alert(payload: bytes, subject: str | None = None) -> WarnableAlert | None:
    """What an alert is to those who are warned; None where it is nothing to anybody. Raises InvalidField."""
    message = stored.alert(payload, subject)
    alert_id = message.alert_id
    if int(message.demand) not in _DEMANDS:
        raise InvalidField("demand", "is missing or unknown")
    if message.exercise == exercise_pb2.CANARY:
        return None  # nobody is there to be warned; the leg's own steps are what the canary looks for
    demand, notice = Demand(message.demand), NOTICES.get(message.kind, Notice.NEUTRAL)
    persons = [destination.subject_id for destination in message.destinations if destination.leg == alert_pb2.WARNING]
    if notice is Notice.PHONE_SILENT:
        # The police are told by the alert itself. Where she said so herself it is no news to her.
        if demand is not Demand.NOTIFY or message.HasField("cause") or not message.target_id:
            return None if not message.incident_ends else _seen(message, alert_id, demand, Notice.NEUTRAL, persons)
        persons = [message.target_id]
    elif not message.incident_id or not (persons or message.incident_ends or demand is Demand.RECORD):
        return None
    return _seen(message, alert_id, demand, notice, persons)


def advice(payload: bytes, subject: str | None = None) -> WarnableAlert | None:
    """What the police's leg advises, to whom it names, or else to all who were told of that order in the incident; None where an
    earlier advice no longer holds, of which nobody is told: it would be taken for "safe". Raises InvalidField."""
    message = stored.advice(payload, subject)
    notice = _ADVICE.get(message.advice)
    if notice is None:
        return None
    subject_id = message.subject_id
    of_place = "/" in subject_id
    order_ids = [subject_id.partition("/")[0]] if of_place else list(message.order_ids)
    occurrence = Occurrence(
        alert_id=message.advice_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        notice=notice,
        demand=Demand.RESPOND,
        threat=ids.hash_id("threat", "race", subject_id),
        of_place=of_place,
    )
    if not order_ids:
        raise InvalidField("order_ids", "is missing")
    persons = () if of_place else (fields.required_id("subject_id", subject_id),)
    return WarnableAlert(occurrence, persons, order_ids[0], 0, False, times.from_timestamp(message.at))


def _seen(message: alert_pb2.Alert, alert_id: str, demand: Demand, notice: Notice, persons: list[str]) -> WarnableAlert:
    for number, person_id in enumerate(persons):
        for part in person_id.split("/", 1):
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
        # A place's alert warns persons whose id it doesn't bear.
        of_place=bool(message.ring_m and message.target_id and message.target_id not in persons),
    )
    order_id = fields.required_id("order_id", message.order_id)
    drill = message.exercise != exercise_pb2.EXERCISE_UNSPECIFIED
    decided_ms = times.from_timestamp(message.decided_at) if message.HasField("decided_at") else None
    return WarnableAlert(occurrence, tuple(dict.fromkeys(persons)), order_id, message.partition, drill, decided_ms)


def _threat(message: alert_pb2.Alert) -> str:
    if message.kind in (alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED):
        return ids.hash_id("threat", message.order_id, message.target_id, str(message.ring_m))
    if message.kind == alert_pb2.UNKNOWN_NEAR:
        return ids.hash_id("threat", message.order_id, message.kind, message.target_id)
    # Without the target: of a device that the case has given up, the end comes without one.
    return ids.hash_id("threat", message.order_id, message.kind)


def case(payload: bytes, subject: str | None = None) -> tuple[str, int, list[ContactRow]] | None:
    """A case's id and version, and how those are reached whom it protects; None where the entry is none. Raises InvalidField."""
    told = stored.case(payload)
    if told is None:
        return None
    persons = [
        ContactRow(
            case_id=told.case_id,
            person_id=person.person_id,
            version=told.version,
            sealed=person.sealed_contact,
            device_ids=list(person.device_ids),
            valid_until_ms=told.valid_until_ms,
        )
        for person in told.persons
    ]
    return told.case_id, told.version, persons


def told_to_json(told: Told) -> dict[str, Any]:
    """What a person was told, as it is kept."""
    threats = {key: [*one.place, one.holds, int(one.demand), one.ring_m] for key, one in sorted(told.threats.items())}
    return {"threats": threats, "last_ms": told.last_ms, "open": told.open}


def told_from_json(kept: Mapping[str, Any]) -> Told:
    """The same, read."""
    threats = {
        key: Threat((sequence, ordinal), holds, Demand(demand), ring_m)
        for key, (sequence, ordinal, holds, demand, ring_m) in kept["threats"].items()
    }
    return Told(MappingProxyType(threats), kept["last_ms"], kept["open"])
