"""Parsing of stored messages: any bytes give a message that a reader can store, or InvalidField."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import InvalidField
from services.common.messaging import flow, stored
from services.registry.agencies.exercises import ExerciseRecords
from services.registry.domain.records import ExerciseKind
from tandem.common.v1 import alert_pb2, command_pb2, exercise_pb2, ledger_pb2, log_pb2, sensing_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.dispatch.dispatch import alert

READERS: dict[str, Callable[[bytes], Any]] = {
    "alert": partial(stored.alert, subject="alert.0.a"),
    "measure": stored.measure,
    "step": partial(stored.step, subject="incident.police.i"),
    "advice": partial(stored.advice, subject="advice.i"),
    "entry": stored.entry,
    "positions": stored.positions,
    "case": stored.case,
    "command": partial(stored.command, subject="command.ingest.c"),
    "command_step": partial(stored.command_step, subject="command_step.c.SENT"),
    "sensing_request": partial(stored.sensing_request, subject="sensing.0.s"),
    "observed_fixes": stored.observed_fixes,
    "quarantine_counts": stored.quarantine_counts,
    "route": partial(stored.route, partitions=1),
    "disclosure": stored.disclosure,
    "dead_letter": stored.dead_letter,
    "log_meta": stored.log_meta,
}
NEEDS_CONTENT = ("alert", "step", "advice", "command", "command_step", "sensing_request", "route", "log_meta")
"""Message types with required fields."""


@pytest.mark.parametrize("kind", READERS)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_parsed_or_refused(kind: str, data: bytes) -> None:
    try:
        READERS[kind](data)
    except InvalidField as error:
        assert str(error)


@pytest.mark.parametrize("data", [b"{}", b"\xff", b"\x0a\x02\xff\xfe"], ids=["json", "cut", "no text"])
@pytest.mark.parametrize("kind", READERS)
def test_garbage_is_refused(kind: str, data: bytes) -> None:
    with pytest.raises(InvalidField):
        READERS[kind](data)


@pytest.mark.parametrize("kind", NEEDS_CONTENT)
def test_an_empty_message_is_refused(kind: str) -> None:
    with pytest.raises(InvalidField):
        READERS[kind](b"")


def an_alert(**changes: Any) -> bytes:
    message = alert(5)
    message.ClearField("incident_ends")
    for name, value in changes.items():
        setattr(message, name, value)
    return message.SerializeToString()


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"alert_id": "a b"}, "alert_id"),
        ({"incident_id": "i\0"}, "incident_id"),
        ({"sequence": 0}, "sequence"),
        ({"sequence": 1 << 63}, "sequence"),
        ({"partition": 7}, "alert_id"),
        ({"order_id": "o/1"}, "order_id"),
        ({"exercise": exercise_pb2.CANARY}, "exercise"),
        ({"exercise": exercise_pb2.CANARY, "order_id": "exercise.canary.a.order-0"}, "exercise"),
        ({"exercise": exercise_pb2.CANARY, "wearer_id": "exercise.canary.a.wearer-0"}, "exercise"),
    ],
)
def test_an_invalid_alert_is_refused_with_its_field(changes: dict[str, Any], field: str) -> None:
    subject = flow.alert_subject(0, "alert-incident-1-5")
    assert stored.alert(an_alert(), subject).sequence == 5
    with pytest.raises(InvalidField) as refused:
        stored.alert(an_alert(**changes), subject)
    assert refused.value.field == field


def test_an_alert_of_a_canarys_records_may_be_a_canary() -> None:
    records = ExerciseRecords(ExerciseKind.CANARY, "a")
    given = {"exercise": exercise_pb2.CANARY, "order_id": records.order_id(0), "wearer_id": records.wearer_id(0)}
    assert stored.alert(an_alert(**given)).exercise == exercise_pb2.CANARY


def test_a_time_that_overflows_a_span_is_refused() -> None:
    message = alert(5)
    message.decided_at.seconds = 253_402_300_799
    with pytest.raises(InvalidField, match="2255"):
        stored.alert(message.SerializeToString())
    message = alert(5)
    message.cause.received_wall_us = -1_000_000
    with pytest.raises(InvalidField, match="2255"):
        stored.alert(message.SerializeToString())
    with pytest.raises(InvalidField, match="2255"):
        stored.disclosure(ledger_pb2.Disclosure(at_ms=-1).SerializeToString())


def a_step(**changes: Any) -> bytes:
    assignment = dispatch_pb2.Assignment(
        assignment_id="a", incident_id="i", leg=alert_pb2.POLICE, subject_id="p1", order_ids=["o"]
    )
    for name, value in changes.items():
        if name == "order_ids":
            assignment.order_ids[:] = value
        else:
            setattr(assignment, name, value)
    return dispatch_pb2.Step(step_id="s", number=1, assignment=assignment).SerializeToString()


@pytest.mark.parametrize(
    "changes",
    [
        {"assignment_id": ""},
        {"incident_id": "other"},
        {"leg": alert_pb2.WARNING},
        {"leg": 9},
        {"subject_id": "p1\0"},
        {"order_ids": ["\0"]},
    ],
)
def test_an_invalid_step_is_refused(changes: dict[str, Any]) -> None:
    assert stored.step(a_step(), "incident.police.i").number == 1
    with pytest.raises(InvalidField):
        stored.step(a_step(**changes), "incident.police.i")


@pytest.mark.parametrize(
    ("by", "changes"),
    [
        ("dispatch-warning", {"instruction": command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))}),
        ("dispatch-warning", {"instruction": command_pb2.Instruction()}),
        ("dispatch-warning", {"command_id": "pursuit-1"}),
        ("dispatch-warning", {"issued_by": "spiffe://npa/desk/seoul"}),
        ("ingest", {}),
        ("registry", {}),
    ],
)
def test_only_the_warning_leg_gives_notices_and_it_gives_nothing_else(by: str, changes: dict[str, Any]) -> None:
    notice = command_pb2.Instruction(show_notice=command_pb2.ShowNotice(warning_id="w", text="t", language="en"))
    content = {"command_id": "notice-1", "device_id": "d", "instruction": notice, "issued_by": "dispatch-warning"}
    valid = command_pb2.Command(**content)  # type: ignore[arg-type]
    assert stored.command(valid.SerializeToString(), "command.dispatch-warning.notice-1") == valid
    forged = command_pb2.Command(**content | changes)  # type: ignore[arg-type]
    with pytest.raises(InvalidField):
        stored.command(forged.SerializeToString(), f"command.{by}.{forged.command_id}")


def test_a_command_and_its_step_must_match_their_subjects() -> None:
    vibrate = command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=1))
    command = command_pb2.Command(command_id="c", device_id="d", expires_at_ms=9, instruction=vibrate)
    assert stored.command(command.SerializeToString(), "command.ingest.c").device_id == "d"
    with pytest.raises(InvalidField):
        stored.command(command.SerializeToString(), "command.ingest.other")
    step = command_pb2.CommandStep(command_id="c", state=command_pb2.COMMAND_STATE_SENT)
    assert stored.command_step(step.SerializeToString(), "command_step.c.SENT").command_id == "c"
    for subject in ("command_step.c.RECEIVED", "command_step.other.SENT"):
        with pytest.raises(InvalidField):
            stored.command_step(step.SerializeToString(), subject)
    step.state = 77  # type: ignore[assignment]
    with pytest.raises(InvalidField):
        stored.command_step(step.SerializeToString())


def test_a_case_that_names_a_person_twice_is_refused() -> None:
    person = log_pb2.ProtectedTarget(person_id="p1")
    entry = log_pb2.LogEntry(case=log_pb2.CaseSnapshot(case_id="case-1", persons=[person]))
    snapshot = stored.case(entry.SerializeToString())
    assert snapshot is not None and snapshot.case_id == "case-1"
    entry.case.persons.append(person)
    with pytest.raises(InvalidField, match="twice"):
        stored.case(entry.SerializeToString())


def test_positions_with_columns_of_unequal_length_are_refused() -> None:
    entry = log_pb2.LogEntry(positions=log_pb2.PositionBatch(device_id=["d"], report_id=[]))
    with pytest.raises(InvalidField, match="unequal"):
        stored.positions(entry.SerializeToString())


def test_a_route_to_a_missing_partition_is_refused() -> None:
    route = log_pb2.DeviceRoute(partitions=[0, 2], subject_id="w1").SerializeToString()
    assert list(stored.route(route, 3).partitions) == [0, 2]
    with pytest.raises(InvalidField):
        stored.route(route, 2)


def test_counts_that_could_overflow_are_refused() -> None:
    counts = ingest_pb2.QuarantineCounts(quarantined=[ingest_pb2.Quarantined(count=(1 << 64) - 1)])
    with pytest.raises(InvalidField):
        stored.quarantine_counts(counts.SerializeToString())


def test_advice_must_match_its_subject() -> None:
    advice = following_pb2.AdviceGiven(advice_id="a", incident_id="i", order_ids=["o"], subject_id="o/p")
    assert stored.advice(advice.SerializeToString(), "advice.i").subject_id == "o/p"
    with pytest.raises(InvalidField):
        stored.advice(advice.SerializeToString(), "advice.j")


def test_a_message_to_the_wearer_has_the_id_of_a_contact() -> None:
    request = sensing_pb2.SensingRequest(
        request_id="contact-1", device_id="tag", decided_at_ms=1, until_ms=2, sequence=1
    )
    request.remind_wearer.SetInParent()
    assert stored.sensing_request(request.SerializeToString()).HasField("remind_wearer")
    request.request_id = "sensing-1"
    with pytest.raises(InvalidField, match="request_id"):
        stored.sensing_request(request.SerializeToString())
