"""What the console offers a desk to answer is what the leg takes, state by state; and what a form may say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.rpc.errors import FailedPrecondition
from services.console.domain import desk
from services.console.domain.board import Assignment
from services.console.domain.desk import BadField
from services.console.pages.texts import TEXTS
from services.dispatch.domain import answers
from services.dispatch.domain.answers import Acknowledge, Close, Progress, Reject
from services.dispatch.domain.decisions import Command
from services.dispatch.domain.events import CloseCause, Demand
from services.dispatch.domain.incident import Assignment as Kept
from services.dispatch.domain.incident import AssignmentState, Incident
from services.dispatch.leg.translate import NOTE_MAX_CHARS, REASON_MAX_CHARS
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.incidents import DEADLINES

OFFER = Assignment("a-1", "i-1", "police", "P-1", ("O-1",), "OFFERED", "RESPOND", "RING_ENTERED", offer_number=1)
FORM = {"assignment": "a-1", "offer": "3", "seen": "EN_ROUTE"}


def is_taken(state: AssignmentState, command: Command) -> bool:
    """Whether the leg does something with an answer in a state."""
    kept = Kept("a-1", "P-1", state, Demand.RESPOND, (1, 0), number=1, offer_number=1)
    incident = Incident("i-1", "police", assignments={"a-1": kept})
    try:
        return bool(list(answers.decide(incident, command)))  # type: ignore[arg-type]
    except FailedPrecondition:
        return False


@pytest.mark.parametrize("state", AssignmentState)
def test_a_desk_is_offered_what_its_leg_takes_and_nothing_else(state: AssignmentState) -> None:
    found = desk.choices(replace(OFFER, state=state.name))
    assert found.take is is_taken(state, Acknowledge("a-1", "x", 5, DEADLINES, 1))
    assert found.reject is is_taken(state, Reject("a-1", "x", 5, 1, "no", DEADLINES, seen=state))
    assert found.close is is_taken(state, Close("a-1", "x", 5, CloseCause.OTHER, "n", 1, state))
    steps = [step for step in AssignmentState if step.name in desk.WAY[1:]]
    goes = [step.name for step in steps if is_taken(state, Progress("a-1", "x", 5, step, 1, state))]
    assert ([found.next_state] if found.next_state else []) == goes
    assert found.any is (found.take or found.reject or found.close or bool(goes))
    assert (state.name in desk.SEEN) is found.any


def test_the_forms_know_what_the_leg_knows() -> None:
    assert {*desk.CAUSES} == {*dispatch_pb2.CloseCause.keys()} - {"CLOSE_CAUSE_UNSPECIFIED"}
    assert (desk.MAX_REASON, desk.MAX_NOTE) == (REASON_MAX_CHARS, NOTE_MAX_CHARS)
    codes = {name for name, value in vars(answers).items() if name.isupper() and value == name}
    assert codes and {code for code in codes if f"answer_{code}" not in TEXTS} == set()


def test_a_form_says_one_thing() -> None:
    assert desk.read("acknowledge", FORM) == desk.DeskAnswer("acknowledge", "a-1", 3, "EN_ROUTE")
    assert desk.read("progress", FORM | {"state": "ON_SCENE"}).state == "ON_SCENE"
    assert desk.read("reject", FORM | {"reason": " 차량 없음 ", "note": "x"}).reason == "차량 없음"
    closed = desk.read("close", FORM | {"cause": "OTHER", "note": "went home"})
    assert (closed.cause, closed.note) == ("OTHER", "went home")
    assert desk.read("close", FORM | {"cause": "EQUIPMENT"}).note == ""


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
def test_what_a_form_lacks_is_named_by_its_field(act: str, given: dict[str, str], field: str, why: str) -> None:
    with pytest.raises(BadField) as refused:
        desk.read(act, FORM | given)
    assert (refused.value.field, refused.value.why) == (field, why)
    assert f"field_{field}" in TEXTS and f"why_{why}" in TEXTS
