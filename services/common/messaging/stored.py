"""Parsing and validation of stored messages, with one function for each message type of the flow table.

Readers parse stored bytes only here. For any bytes, each function returns a parsed message or raises InvalidField. It checks the ids,
numbers and times that readers store. With a `subject`, the message must also match the ids in its NATS subject.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, ids, times
from services.common.errors import InvalidField
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2, command_pb2, exercise_pb2, ledger_pb2, log_pb2, sensing_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.ingest.v1 import ingest_pb2

MAX_SEQUENCE = (1 << 63) - 1
"""Maximum sequence that a database column can hold."""
MAX_TIME_MS = 9_000_000_000_000
"""Latest accepted time, in the year 2255, milliseconds since 1970 UTC. Later times overflow the nanoseconds of a trace span."""
MAX_NEED_MS = 3_600_000
"""Maximum duration of a request for data of a device, milliseconds."""
MAX_INTERVAL_S = 3_600
"""Maximum interval between a device's reports that can be asked, seconds."""
MAX_COUNT = (1 << 32) - 1
"""Maximum count of rejected reports that one process can plausibly have."""
_M = TypeVar("_M", bound=Message)


def alert(data: bytes, subject: str | None = None) -> alert_pb2.Alert:
    """Parses an alert from ALERTS. Raises InvalidField."""
    message = _parsed("alert", alert_pb2.Alert, data)
    alert_id = fields.required_id("alert_id", message.alert_id)
    if message.incident_id:
        fields.required_id("incident_id", message.incident_id)
        if not message.sequence:
            raise InvalidField("sequence", "is missing")
    _sequence("sequence", message.sequence)
    _optional_ids({"order_id": message.order_id, "case_id": message.case_id, "wearer_id": message.wearer_id})
    if message.exercise == exercise_pb2.CANARY and not (
        message.order_id.startswith(ids.CANARY_IDS) and message.wearer_id.startswith(ids.CANARY_IDS)
    ):
        # No desk sees a canary, so an alert of any other records would be lost in silence.
        raise InvalidField("exercise", f"must not be CANARY unless order_id and wearer_id begin with {ids.CANARY_IDS}")
    if not math.isfinite(message.ring_m) or message.ring_m < 0:
        message.ring_m = 0.0  # 0 means no distance; the alert's demands don't depend on it
    _timestamp("at", message.at)
    _timestamp("decided_at", message.decided_at)
    _moment("cause.received_wall_us", message.cause.received_wall_us // 1000)
    _check_subject(subject, "alert_id", flow.alert_subject(message.partition, alert_id))
    return message


def measure(data: bytes) -> alert_pb2.Measure:
    """Parses an alert's measure from MEASURES. Raises InvalidField."""
    return _parsed("measure", alert_pb2.Measure, data)


def step(data: bytes, subject: str | None = None) -> dispatch_pb2.Step:
    """Parses a leg's step from INCIDENTS. Raises InvalidField."""
    message = _parsed("step", dispatch_pb2.Step, data)
    fields.required_id("step_id", message.step_id)
    if not message.number:
        raise InvalidField("number", "is missing")
    _timestamp("at", message.at)
    assignment = message.assignment
    fields.required_id("assignment.assignment_id", assignment.assignment_id)
    incident_id = fields.required_id("assignment.incident_id", assignment.incident_id)
    _destination_id("assignment.subject_id", assignment.subject_id)
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
    if message.HasField("note"):
        _timestamp("note.at", message.note.at)
    leg = alert_pb2.Leg.Name(assignment.leg).lower() if assignment.leg in alert_pb2.Leg.values() else ""
    if leg not in flow.LEGS:
        raise InvalidField("assignment.leg", "is missing or unknown")
    _check_subject(subject, "assignment.leg", flow.incident_subject(leg, incident_id))
    return message


def advice(data: bytes, subject: str | None = None) -> following_pb2.AdviceGiven:
    """Parses advice from ADVICE. Raises InvalidField."""
    message = _parsed("advice", following_pb2.AdviceGiven, data)
    fields.required_id("advice_id", message.advice_id)
    incident_id = fields.required_id("incident_id", message.incident_id)
    _destination_id("subject_id", message.subject_id)
    for number, order_id in enumerate(message.order_ids):
        fields.required_id(f"order_ids[{number}]", order_id)
    _timestamp("at", message.at)
    _sequence("sequence", message.sequence)
    _check_subject(subject, "incident_id", flow.advice_subject(incident_id))
    return message


def entry(data: bytes) -> log_pb2.LogEntry:
    """Parses an entry of the log, for all readers but the fold, which validates entries itself. Raises InvalidField."""
    return _parsed("entry", log_pb2.LogEntry, data)


def positions(data: bytes) -> log_pb2.PositionBatch:
    """Parses the positions of a log entry; an entry of another kind has none. Raises InvalidField."""
    batch = entry(data).positions
    columns = (batch.report_id, batch.fix_time_ms, batch.lat_e7, batch.lon_e7, batch.accuracy_mm)
    if any(len(column) != len(batch.device_id) for column in columns) or len(batch.source) not in (
        0,
        len(batch.device_id),
    ):
        raise InvalidField("positions", "has columns of unequal length")
    return batch


def case(data: bytes) -> log_pb2.CaseSnapshot | None:
    """Parses the case snapshot of a log entry, or returns None for an entry of another kind. Raises InvalidField."""
    message = entry(data)
    if message.WhichOneof("body") != "case":
        return None
    snapshot = message.case
    fields.required_id("case.case_id", snapshot.case_id)
    person_ids = [person.person_id for person in snapshot.persons]
    for number, person in enumerate(snapshot.persons):
        fields.required_id(f"case.persons[{number}].person_id", person.person_id)
        for device_id in person.device_ids:
            fields.required_id(f"case.persons[{number}].device_ids", device_id)
    if len(set(person_ids)) != len(person_ids):
        raise InvalidField("case.persons", "names a person twice")
    return snapshot


def command(data: bytes, subject: str | None = None) -> command_pb2.Command:
    """Parses a command from COMMANDS. Raises InvalidField.

    With a subject, the user in the subject must also be permitted to give the command. Only the warning leg gives notices, and it
    gives nothing else. Its command ids, and no others, begin with `flow.NOTICE_IDS`.
    """
    message = _parsed("command", command_pb2.Command, data)
    command_id = fields.required_id("command_id", message.command_id)
    fields.required_id("device_id", message.device_id)
    _moment("issued_at_ms", message.issued_at_ms)
    _moment("expires_at_ms", message.expires_at_ms)
    if subject is not None:
        _, by, *_ = (*subject.split("."), "")
        _check_subject(subject, "command_id", flow.command_subject(by, command_id))
        _check_publisher(by, message)
    return message


def command_step(data: bytes, subject: str | None = None) -> command_pb2.CommandStep:
    """Parses a step of a command from COMMANDS. Raises InvalidField."""
    message = _parsed("step", command_pb2.CommandStep, data)
    command_id = fields.required_id("command_id", message.command_id)
    if not message.state or message.state not in command_pb2.CommandState.values():
        raise InvalidField("state", "is missing or unknown")
    _moment("at_ms", message.at_ms)
    state = command_pb2.CommandState.Name(message.state).removeprefix("COMMAND_STATE_")
    _check_subject(subject, "command_id", flow.command_step_subject(command_id, state))
    return message


def sensing_request(data: bytes, subject: str | None = None) -> sensing_pb2.SensingRequest:
    """Parses a request for data of a device from SENSING. Raises InvalidField.

    Of the subject, only the request's id is compared: readers don't need the partition.
    """
    message = _parsed("request", sensing_pb2.SensingRequest, data)
    request_id = fields.required_id("request_id", message.request_id)
    fields.required_id("device_id", message.device_id)
    match message.WhichOneof("need"):
        case "report_every":
            fields.number("report_every.interval_s", message.report_every.interval_s, 1, greatest=MAX_INTERVAL_S)
        case "locate_now":
            pass
        case "remind_wearer":
            if not request_id.startswith(flow.CONTACT_IDS):
                raise InvalidField("request_id", f"must begin with {flow.CONTACT_IDS}, as it is the id of a contact")
        case _:
            raise InvalidField("need", "is missing")
    _moment("decided_at_ms", message.decided_at_ms)
    _moment("until_ms", message.until_ms)
    if not 0 < message.until_ms - message.decided_at_ms <= MAX_NEED_MS:
        raise InvalidField("until_ms", f"must be after decided_at_ms, by at most {MAX_NEED_MS} ms")
    _sequence("sequence", message.sequence)
    if subject is not None:
        _, partition, *_ = (*subject.split("."), "")
        _check_subject(subject, "request_id", f"sensing.{partition}.{request_id}")
    return message


def observed_fixes(data: bytes) -> ingest_pb2.ObservedFixes:
    """Parses times of fixes from OBSERVED. Raises InvalidField."""
    message = _parsed("fixes", ingest_pb2.ObservedFixes, data)
    if len(message.device_ids) != len(message.fix_times_ms):
        raise InvalidField("fix_times_ms", "must have as many items as device_ids")
    for device_id, fix_time_ms in zip(message.device_ids, message.fix_times_ms, strict=True):
        fields.required_id("device_ids", device_id)
        _moment("fix_times_ms", fix_time_ms)
    charges = message.charges
    if not len(charges.device_ids) == len(charges.charge_pcts) == len(charges.fix_times_ms):
        raise InvalidField("charges", "must have as many charges and times as device ids")
    for device_id, charge_pct, fix_time_ms in zip(
        charges.device_ids, charges.charge_pcts, charges.fix_times_ms, strict=True
    ):
        fields.required_id("charges.device_ids", device_id)
        fields.number("charges.charge_pcts", charge_pct, 0, greatest=100)
        _moment("charges.fix_times_ms", fix_time_ms)
    return message


def quarantine_counts(data: bytes) -> ingest_pb2.QuarantineCounts:
    """Parses counts of rejected reports from QUARANTINE. Raises InvalidField."""
    message = _parsed("counts", ingest_pb2.QuarantineCounts, data)
    for number, counted in enumerate(message.quarantined):
        if counted.count > MAX_COUNT:
            raise InvalidField(f"quarantined[{number}].count", f"must be at most {MAX_COUNT}")
        _timestamp(f"quarantined[{number}].first", counted.first)
        _timestamp(f"quarantined[{number}].last", counted.last)
    return message


def route(data: bytes, partitions: int) -> log_pb2.DeviceRoute:
    """Parses a device's route from the KV bucket. `partitions` is the log's number of partitions. Raises InvalidField."""
    if not data:
        raise InvalidField(
            "route",
            "is empty, as after a deletion. Tandem never deletes routes, so somebody changed the bucket by hand",
        )
    message = _parsed("route", log_pb2.DeviceRoute, data)
    if any(partition >= partitions for partition in message.partitions):
        raise InvalidField("partitions", f"must be below {partitions}")
    return message


def disclosure(data: bytes) -> ledger_pb2.Disclosure:
    """Parses a disclosure from DISCLOSURES. Raises InvalidField."""
    message = _parsed("", ledger_pb2.Disclosure, data)
    _moment("at_ms", message.at_ms)
    _moment("expires_at_ms", message.expires_at_ms)
    return message


def dead_letter(data: bytes, subject: str | None = None) -> alert_pb2.DeadLetter:
    """Parses a dead letter from DEAD_LETTERS. Raises InvalidField.

    A given `subject` must be the one built from the dead letter's `by`, stream and sequence.
    """
    message = _parsed("dead_letter", alert_pb2.DeadLetter, data)
    if message.by not in flow.DEAD_LETTER_USERS:
        raise InvalidField("by", "isn't a reader that stores dead letters")
    _check_subject(subject, "by", flow.dead_letter_subject(message.by, message.stream, message.sequence))
    return message


def log_meta(data: bytes) -> log_pb2.LogMetadata:
    """Parses the metadata of the log from LOG_META. Raises InvalidField."""
    message = _parsed("log_meta", log_pb2.LogMetadata, data)
    if not message.partitions or not message.clock_rate or not message.log_id:
        raise InvalidField("log_meta", "lacks the number of partitions, the clock rate or the log's id")
    return message


def _parsed(field: str, kind: type[_M], data: bytes) -> _M:
    try:
        return kind.FromString(data)
    except DecodeError:
        raise InvalidField(field, f"isn't a {kind.DESCRIPTOR.full_name}") from None


def _check_subject(subject: str | None, field: str, named: str) -> None:
    if subject is not None and subject != named:
        raise InvalidField(field, "differs from the message's subject")


def _check_publisher(by: str, command: command_pb2.Command) -> None:
    warning = flow.leg_user("warning")
    of_warning = by == warning
    kind = command.instruction.WhichOneof("kind")
    if kind is None:
        raise InvalidField("instruction", "is missing")
    if (kind == "show_notice") is not of_warning:
        raise InvalidField("instruction", f"{by} may not give a command of the kind {kind}")
    if command.command_id.startswith(flow.NOTICE_IDS) is not of_warning:
        raise InvalidField(
            "command_id", f'{by} may not use this id: the prefix "{flow.NOTICE_IDS}" is for {warning} only'
        )
    if (command.issued_by == warning) is not of_warning:
        raise InvalidField("issued_by", f"{by} may not publish commands of this issuer")


def _optional_ids(values: dict[str, str]) -> None:
    for field, value in values.items():
        if value:
            fields.required_id(field, value)


def _destination_id(field: str, value: str) -> None:
    """Checks an assignment's destination: a wearer's or person's id, `order/place`, or empty."""
    parts: Iterable[str] = value.split("/", 1) if value else ()
    for part in parts:
        fields.required_id(field, part)


def _sequence(field: str, value: int) -> None:
    if value > MAX_SEQUENCE:
        raise InvalidField(field, f"must be at most {MAX_SEQUENCE}, the greatest sequence of a stream")


def _timestamp(field: str, value: Timestamp) -> None:
    _moment(field, times.from_timestamp(value))


def _moment(field: str, ms: Any) -> None:
    if not 0 <= ms <= MAX_TIME_MS:
        raise InvalidField(field, "must be a time between the years 1970 and 2255")
