"""An answer that says what was seen: from an old page it changes nothing, neither of another unit nor in another state."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain.answers import MOVED_ON, OFFERED_ON, Close, Progress, Reject
from services.dispatch.domain.decisions import Command
from services.dispatch.domain.enums import CloseCause, Demand
from services.dispatch.domain.incident import Assignment, AssignmentState
from tests.support.dispatch.incidents import BY, DEADLINES, Story, alert
from tests.support.dispatch.roster import AT_DAY

NEXT = {
    AssignmentState.ACKNOWLEDGED: AssignmentState.DISPATCHED,
    AssignmentState.DISPATCHED: AssignmentState.EN_ROUTE,
    AssignmentState.EN_ROUTE: AssignmentState.ON_SCENE,
}


def reject(story: Story, seen: Assignment) -> Command:
    return Reject(seen.assignment_id, BY, story.now_ms, seen.offer_number, "no car", DEADLINES, story.board, seen.state)


def progress(story: Story, seen: Assignment) -> Command:
    return Progress(seen.assignment_id, BY, story.now_ms, NEXT[seen.state], seen.offer_number, seen.state)


def close(story: Story, seen: Assignment) -> Command:
    return Close(seen.assignment_id, BY, story.now_ms, CloseCause.FALSE_POSITION, "", seen.offer_number, seen.state)


ANSWERS = pytest.mark.parametrize("answer", [reject, progress, close])


def taken() -> Story:
    story = Story("police", AT_DAY)
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    return story


@ANSWERS
def test_what_was_seen_and_still_is_can_be_answered(answer: Callable[[Story, Assignment], Command]) -> None:
    story = taken()
    assert story.do(answer(story, story.of("p1")))


@ANSWERS
def test_an_answer_to_what_another_unit_has_by_now_is_refused(answer: Callable[[Story, Assignment], Command]) -> None:
    story = taken()
    seen = story.of("p1")
    story.reject("p1")  # a2 has it
    story.acknowledge("p1")
    assert story.of("p1").state is seen.state
    with pytest.raises(FailedPrecondition) as refused:
        story.do(answer(story, seen))
    assert refused.value.code == OFFERED_ON


@ANSWERS
def test_an_answer_to_a_state_that_is_over_is_refused(answer: Callable[[Story, Assignment], Command]) -> None:
    story = taken()
    seen = story.of("p1")
    for step in (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE):
        story.progress("p1", step)
    with pytest.raises(FailedPrecondition, match="is EN_ROUTE by now, not ACKNOWLEDGED") as refused:
        story.do(answer(story, seen))
    assert refused.value.code == MOVED_ON


def test_what_was_given_back_while_somebody_looked_is_not_closed_as_if_it_were_theirs() -> None:
    story = taken()
    seen = story.of("p1")
    story.fold(alert(6, Demand.RECORD, ends=True))
    assert story.of("p1").state is AssignmentState.STOOD_DOWN
    with pytest.raises(FailedPrecondition) as refused:
        story.do(close(story, seen))
    assert refused.value.code == MOVED_ON
    assert story.do(close(story, story.of("p1")))


def test_the_same_answer_sent_twice_is_one_answer() -> None:
    story = taken()
    seen = story.of("p1")
    assert story.do(progress(story, seen)) and story.do(progress(story, seen)) == ()
    seen = story.of("p1")
    assert story.do(close(story, seen)) and story.do(close(story, seen)) == ()
