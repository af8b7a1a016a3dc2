"""Read stored messages: one function for each kind in the flow table, and the only place where a reader turns their bytes into fields.

Each function returns a message whose ids, numbers and moments every reader can store, or raises InvalidField, whatever the bytes are.
Where a `subject` is given, the message must be the one that this subject names.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, times
from services.common.messaging import flow
from services.common.rpc.errors import InvalidField
from tandem.common.v1 import alert_pb2, command_pb2, ledger_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.ingest.v1 import ingest_pb2

SEQUENCE_MAX = (1 << 63) - 1
"""The greatest sequence that a database column holds."""
MOMENT_MAX_MS = 9_000_000_000_000
"""In the year 2255: later moments don't fit into the nanoseconds of a span."""
COUNT_MAX = (1 << 32) - 1
_M = TypeVar("_M", bound=Message)


def alert(data: bytes, subject: str | None = None) -> alert_pb2.Alert:
    """An alert of ALERTS. Raises InvalidField."""
    message = _parsed("alert", alert_pb2.Alert, data)
    alert_id = fields.required_id("alert_id", message.alert_id)
    if message.incident_id:
        fields.required_id("incident_id", message.incident_id)
        if not message.sequence:
            raise InvalidField("sequence", "is missing")
    _sequence("sequence", message.sequence)
    _optional_ids({"order_id": message.order_id, "case_id": message.case_id, "wearer_id": message.wearer_id})
    if not math.isfinite(message.ring_m) or message.ring_m < 0:
        message.ring_m = 0.0  # no distance; what the alert demands doesn't rest on it
    _timestamp("decided_at", message.decided_at)
    _moment("cause.received_wall_us", message.cause.received_wall_us // 1000)
    _named(subject, "alert_id", flow.alert_subject(message.partition, alert_id))
    return message


def measure(data: bytes) -> alert_pb2.Measure:
    """The figures of an alert, from MEASURES. Raises InvalidField."""
    return _parsed("measure", alert_pb2.Measure, data)


def step(data: bytes, subject: str | None = None) -> dispatch_pb2.Step:
    """A step of INCIDENTS. Raises InvalidField."""
    message = _parsed("step", dispatch_pb2.Step, data)
    fields.required_id("step_id", message.step_id)
    if not message.number:
        raise InvalidField("number", "is missing")
    _timestamp("at", message.at)
    assignment = message.assignment
    fields.required_id("assignment.assignment_id", assignment.assignment_id)
    incident_id = fields.required_id("assignment.incident_id", assignment.incident_id)
    _subject_id("assignment.subject_id", assignment.subject_id)
    for number, order_id in enumerate(assignment.order_ids):
        fields.required_id(f"assignment.order_ids[{number}]", order_id)
    for name in ("offered_at", "acknowledged_at", "received_at", "due_at", "nobody_available_at"):
        _timestamp(f"assignment.{name}", getattr(assignment, name))
    _moment("assignment.cause.received_wall_us", assignment.cause.received_wall_us // 1000)
    if assignment.HasField("person_flag"):
        flag = assignment.person_flag
        _timestamp("assignment.person_flag.at", flag.at)
        _optional_ids({"assignment.person_flag.alert_id": flag.alert_id})
        _sequence("assignment.person_flag.sequence", flag.sequence)
    leg = alert_pb2.Leg.Name(assignment.leg).lower() if assignment.leg in alert_pb2.Leg.values() else ""
    if leg not in flow.LEGS:
        raise InvalidField("assignment.leg", "is missing or unknown")
    _named(subject, "assignment.leg", flow.incident_subject(leg, incident_id))
    return message


def advice(data: bytes, subject: str | None = None) -> following_pb2.AdviceGiven:
    """An advice of ADVICE. Raises InvalidField."""
    message = _parsed("advice", following_pb2.AdviceGiven, data)
    fields.required_id("advice_id", message.advice_id)
    incident_id = fields.required_id("incident_id", message.incident_id)
    _subject_id("subject_id", message.subject_id)
    for number, order_id in enumerate(message.order_ids):
        fields.required_id(f"order_ids[{number}]", order_id)
    _timestamp("at", message.at)
    _sequence("sequence", message.sequence)
    _named(subject, "incident_id", flow.advice_subject(incident_id))
    return message


def entry(data: bytes) -> log_pb2.LogEntry:
    """An entry of the log, for readers other than the fold, which has rules of its own. Raises InvalidField."""
    return _parsed("entry", log_pb2.LogEntry, data)


def positions(data: bytes) -> log_pb2.PositionBatch:
    """The positions of an entry of the log, none where it is something else. Raises InvalidField."""
    batch = entry(data).positions
    columns = (batch.report_id, batch.fix_time_ms, batch.lat_e7, batch.lon_e7, batch.accuracy_mm)
    if any(len(column) != len(batch.device_id) for column in columns):
        raise InvalidField("positions", "has columns of unequal length")
    return batch


def case(data: bytes) -> log_pb2.CaseSnapshot | None:
    """The case snapshot of an entry of the log; None where the entry is something else. Raises InvalidField."""
    message = entry(data)
    if message.WhichOneof("body") != "case":
        return None
    found = message.case
    fields.required_id("case.case_id", found.case_id)
    person_ids = [person.person_id for person in found.persons]
    for number, person in enumerate(found.persons):
        fields.required_id(f"case.persons[{number}].person_id", person.person_id)
        for device_id in person.device_ids:
            fields.required_id(f"case.persons[{number}].device_ids", device_id)
    if len(set(person_ids)) != len(person_ids):
        raise InvalidField("case.persons", "names a person twice")
    return found


def command(data: bytes, subject: str | None = None) -> command_pb2.Command:
    """A command of COMMANDS. Raises InvalidField.

    With its subject it must also be its publisher's to give: the warning leg gives notices and nothing else, under ids of its own.
    """
    message = _parsed("command", command_pb2.Command, data)
    command_id = fields.required_id("command_id", message.command_id)
    fields.required_id("device_id", message.device_id)
    _moment("issued_at_ms", message.issued_at_ms)
    _moment("expires_at_ms", message.expires_at_ms)
    if subject is not None:
        _, by, *_ = (*subject.split("."), "")
        _named(subject, "command_id", flow.command_subject(by, command_id))
        _given_by(by, message)
    return message


def command_step(data: bytes, subject: str | None = None) -> command_pb2.CommandStep:
    """A step of a command, from COMMANDS. Raises InvalidField."""
    message = _parsed("step", command_pb2.CommandStep, data)
    command_id = fields.required_id("command_id", message.command_id)
    if not message.state or message.state not in command_pb2.CommandState.values():
        raise InvalidField("state", "is missing or unknown")
    _moment("at_ms", message.at_ms)
    state = command_pb2.CommandState.Name(message.state).removeprefix("COMMAND_STATE_")
    _named(subject, "command_id", flow.command_step_subject(command_id, state))
    return message


def quarantine_counts(data: bytes) -> ingest_pb2.QuarantineCounts:
    """Counts of refused reports, from QUARANTINE. Raises InvalidField."""
    message = _parsed("counts", ingest_pb2.QuarantineCounts, data)
    for number, counted in enumerate(message.quarantined):
        if counted.count > COUNT_MAX:
            raise InvalidField(f"quarantined[{number}].count", "is more than a process can have refused")
        _timestamp(f"quarantined[{number}].first", counted.first)
        _timestamp(f"quarantined[{number}].last", counted.last)
    return message


def route(data: bytes, partitions: int) -> log_pb2.DeviceRoute:
    """A device's route, from the bucket; the log has so many partitions. Raises InvalidField."""
    if not data:
        raise InvalidField("route", "is empty: a device keeps its route for good")
    message = _parsed("route", log_pb2.DeviceRoute, data)
    if any(partition >= partitions for partition in message.partitions):
        raise InvalidField("partitions", f"must be below {partitions}")
    return message


def disclosure(data: bytes) -> ledger_pb2.Disclosure:
    """A disclosure of DISCLOSURES. Raises InvalidField."""
    message = _parsed("", ledger_pb2.Disclosure, data)
    _moment("at_ms", message.at_ms)
    _moment("expires_at_ms", message.expires_at_ms)
    return message


def dead_letter(data: bytes, subject: str | None = None) -> alert_pb2.DeadLetter:
    """A dead letter of DEAD_LETTERS. Raises InvalidField, with its subject also where another user than its reader's published it."""
    message = _parsed("dead_letter", alert_pb2.DeadLetter, data)
    if message.by not in flow.PARKING_USERS:
        raise InvalidField("by", "is no reader that sets messages aside")
    _named(subject, "by", flow.dead_letter_subject(message.by, message.stream, message.sequence))
    return message


def log_meta(data: bytes) -> log_pb2.LogMetadata:
    """The metadata of the log. Raises InvalidField."""
    message = _parsed("log_meta", log_pb2.LogMetadata, data)
    if not message.partitions or not message.clock_rate or not message.log_id:
        raise InvalidField("log_meta", "lack the number of partitions, the clock rate or the log's id")
    return message


def _parsed(field: str, kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidField(field, f"isn't a {kind.DESCRIPTOR.full_name}") from None


def _named(subject: str | None, field: str, named: str) -> None:
    if subject is not None and subject != named:
        raise InvalidField(field, "isn't that of the subject")


def _given_by(by: str, command: command_pb2.Command) -> None:
    warning = flow.leg_user("warning")
    of_warning = by == warning
    kind = command.instruction.WhichOneof("kind")
    if kind is None:
        raise InvalidField("instruction", "is missing")
    if (kind == "show_notice") is not of_warning:
        raise InvalidField("instruction", f"{kind} isn't for {by} to give")
    if command.command_id.startswith(flow.NOTICE_IDS) is not of_warning:
        raise InvalidField("command_id", f"isn't one that {by} may give")
    if (command.issued_by == warning) is not of_warning:
        raise InvalidField("issued_by", f"isn't anybody for whom {by} publishes")


def _optional_ids(values: dict[str, str]) -> None:
    for field, value in values.items():
        if value:
            fields.required_id(field, value)


def _subject_id(field: str, value: str) -> None:
    """The id of a wearer or person, or `order/place`; or nothing."""
    parts: Iterable[str] = value.split("/", 1) if value else ()
    for part in parts:
        fields.required_id(field, part)


def _sequence(field: str, value: int) -> None:
    if value > SEQUENCE_MAX:
        raise InvalidField(field, "is no sequence of a stream")


def _timestamp(field: str, value: Timestamp) -> None:
    _moment(field, times.from_timestamp(value))


def _moment(field: str, ms: Any) -> None:
    if not 0 <= ms <= MOMENT_MAX_MS:
        raise InvalidField(field, "must be a moment between 1970 and 2255")
