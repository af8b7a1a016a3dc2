"""The answers that the console offers equal those that the leg accepts, state by state; forms are read and checked."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition
from services.console.domain import desk
from services.console.domain.board import AssignmentCard
from services.console.domain.desk import BadField
from services.console.pages.texts import TEXTS
from services.dispatch.domain import answers
from services.dispatch.domain.answers import Acknowledge, Close, Progress, Reject
from services.dispatch.domain.assignment import Assignment as LegAssignment
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.decisions import Command
from services.dispatch.domain.enums import CloseCause, Demand
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.incident import Incident
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.translate import CLOSE_NOTE_MAX_CHARS, REASON_MAX_CHARS
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.incidents import DEADLINES

OFFER = AssignmentCard("a-1", "i-1", "police", "P-1", ("O-1",), "OFFERED", "RESPOND", "RING_ENTERED", offer_number=1)
FORM = {"assignment": "a-1", "offer": "3", "seen": "EN_ROUTE"}


def accepts(state: AssignmentState, command: Command) -> bool:
    """Returns whether the leg accepts an answer in a state."""
    assignment = LegAssignment("a-1", "P-1", state, Demand.RESPOND, (1, 0), number=1, offer_number=1)
    incident = Incident("i-1", Leg.POLICE, assignments={"a-1": assignment})
    try:
        return bool(list(answers.decide(incident, command, Situation(5, DEADLINES))))  # type: ignore[arg-type]
    except FailedPrecondition:
        return False


@pytest.mark.parametrize("state", AssignmentState)
def test_a_desk_is_offered_exactly_the_answers_that_its_leg_accepts(state: AssignmentState) -> None:
    choices = desk.choices(replace(OFFER, state=state.name))
    assert choices.acknowledge is accepts(state, Acknowledge("a-1", "x", 1))
    assert choices.reject is accepts(state, Reject("a-1", "x", 1, "no", seen=state))
    assert choices.close is accepts(state, Close("a-1", "x", CloseCause.OTHER, "n", 1, state))
    steps = [step for step in AssignmentState if step.name in desk.PROGRESSION[1:]]
    accepted = [step.name for step in steps if accepts(state, Progress("a-1", "x", step, 1, state))]
    assert ([choices.next_state] if choices.next_state else []) == accepted
    assert choices.any is (choices.acknowledge or choices.reject or choices.close or bool(accepted))
    assert (state.name in desk.SEEN) is choices.any


def test_the_forms_have_the_causes_lengths_and_codes_of_the_leg() -> None:
    assert {*desk.CAUSES} == {*dispatch_pb2.CloseCause.keys()} - {"CLOSE_CAUSE_UNSPECIFIED"}
    assert (desk.MAX_REASON, desk.MAX_NOTE) == (REASON_MAX_CHARS, CLOSE_NOTE_MAX_CHARS)
    codes = {name for name, value in vars(answers).items() if name.isupper() and value == name}
    assert codes and {code for code in codes if f"answer_{code}" not in TEXTS} == set()


def test_a_form_is_read_into_one_answer() -> None:
    assert desk.read_answer("acknowledge", FORM) == desk.DeskAnswer("acknowledge", "a-1", 3, "EN_ROUTE")
    assert desk.read_answer("progress", FORM | {"state": "ON_SCENE"}).state == "ON_SCENE"
    assert desk.read_answer("reject", FORM | {"reason": " 차량 없음 ", "note": "x"}).reason == "차량 없음"
    closed = desk.read_answer("close", FORM | {"cause": "OTHER", "note": "went home"})
    assert (closed.cause, closed.note) == ("OTHER", "went home")
    assert desk.read_answer("close", FORM | {"cause": "EQUIPMENT"}).note == ""
    assert desk.read_answer("send", {"assignment": "a-1", "offer": "0", "unit": "car-7"}).unit == "car-7"
    assert desk.read_answer("radio", FORM | {"unit_name": " 순찰 12호 "}) == desk.DeskAnswer(
        "radio", "a-1", 3, unit="순찰 12호"
    )


@pytest.mark.parametrize(
    ("act", "given", "field", "why"),
    [
        ("acknowledge", {"assignment": ""}, "assignment", "missing"),
        ("acknowledge", {"assignment": "a b"}, "assignment", "unreadable"),
        ("acknowledge", {"offer": ""}, "offer", "missing"),
        ("acknowledge", {"offer": "0"}, "offer", "unreadable"),
        ("acknowledge", {"offer": "-1"}, "offer", "unreadable"),
        ("acknowledge", {"offer": "٣"}, "offer", "unreadable"),
        ("acknowledge", {"offer": str(1 << 32)}, "offer", "unreadable"),
        ("send", {"unit": ""}, "unit", "missing"),
        ("send", {"unit": "car 7"}, "unit", "unreadable"),
        ("send", {"unit": "car-7", "offer": "-1"}, "offer", "unreadable"),
        ("radio", {"unit_name": " "}, "unit_name", "missing"),
        ("radio", {"unit_name": "x" * 61}, "unit_name", "too_long"),
        ("radio", {"unit_name": "a\u0000b"}, "unit_name", "unreadable"),
        ("progress", {"state": "DISPATCHED"}, "state", "unreadable"),
        ("acknowledge", {"seen": ""}, "seen", "missing"),
        ("acknowledge", {"seen": "NOTIFIED"}, "seen", "unreadable"),
        ("progress", {}, "state", "missing"),
        ("progress", {"state": "ACKNOWLEDGED"}, "state", "unreadable"),
        ("progress", {"state": "STOOD_DOWN"}, "state", "unreadable"),
        ("reject", {"reason": " "}, "reason", "missing"),
        ("reject", {"reason": "x" * 201}, "reason", "too_long"),
        ("reject", {"reason": "a\nb"}, "reason", "unreadable"),
        ("close", {}, "cause", "missing"),
        ("close", {"cause": "NO"}, "cause", "unreadable"),
        ("close", {"cause": "OTHER"}, "note", "missing"),
        ("close", {"cause": "EQUIPMENT", "note": "x" * 501}, "note", "too_long"),
    ],
)
def test_a_wrong_form_is_refused_by_field(act: str, given: dict[str, str], field: str, why: str) -> None:
    with pytest.raises(BadField) as refused:
        desk.read_answer(act, FORM | given)
    assert (refused.value.field, refused.value.why) == (field, why)
    assert f"field_{field}" in TEXTS and f"why_{why}" in TEXTS
