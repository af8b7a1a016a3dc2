"""Answers that carry the offer and state which the caller saw: an answer from an outdated page is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from services.common.errors import FailedPrecondition
from services.dispatch.domain.answers import MOVED_ON, OFFERED_ON, Close, Progress, Reject
from services.dispatch.domain.assignment import Assignment, AssignmentState
from services.dispatch.domain.decisions import Command
from services.dispatch.domain.enums import CloseCause, Demand
from tests.support.dispatch.incidents import BY, Story, alert
from tests.support.dispatch.roster import AT_DAY

NEXT = {
    AssignmentState.ACKNOWLEDGED: AssignmentState.DISPATCHED,
    AssignmentState.DISPATCHED: AssignmentState.EN_ROUTE,
    AssignmentState.EN_ROUTE: AssignmentState.ON_SCENE,
}


def reject(story: Story, seen: Assignment) -> Command:
    return Reject(seen.assignment_id, BY, seen.offer_number, "no car", seen.state)


def progress(story: Story, seen: Assignment) -> Command:
    return Progress(seen.assignment_id, BY, NEXT[seen.state], seen.offer_number, seen.state)


def close(story: Story, seen: Assignment) -> Command:
    return Close(seen.assignment_id, BY, CloseCause.FALSE_POSITION, "", seen.offer_number, seen.state)


ANSWERS = pytest.mark.parametrize("answer", [reject, progress, close])


def accepted() -> Story:
    story = Story("police", AT_DAY)
    story.fold(alert(5, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    return story


@ANSWERS
def test_an_answer_to_the_present_state_is_applied(answer: Callable[[Story, Assignment], Command]) -> None:
    story = accepted()
    assert story.do(answer(story, story.of("p1")))


@ANSWERS
def test_an_answer_to_an_assignment_that_another_unit_has_by_now_is_refused(
    answer: Callable[[Story, Assignment], Command],
) -> None:
    story = accepted()
    seen = story.of("p1")
    story.reject("p1")  # now a2 has the offer
    story.acknowledge("p1")
    assert story.of("p1").state is seen.state
    with pytest.raises(FailedPrecondition) as refused:
        story.do(answer(story, seen))
    assert refused.value.code == OFFERED_ON


@ANSWERS
def test_an_answer_to_an_earlier_state_is_refused(answer: Callable[[Story, Assignment], Command]) -> None:
    story = accepted()
    seen = story.of("p1")
    for step in (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE):
        story.progress("p1", step)
    with pytest.raises(FailedPrecondition, match="is EN_ROUTE by now, not ACKNOWLEDGED") as refused:
        story.do(answer(story, seen))
    assert refused.value.code == MOVED_ON


def test_an_assignment_stood_down_since_is_not_closed_from_an_outdated_page() -> None:
    story = accepted()
    seen = story.of("p1")
    story.fold(alert(6, Demand.RECORD, ends=True))
    assert story.of("p1").state is AssignmentState.STOOD_DOWN
    with pytest.raises(FailedPrecondition) as refused:
        story.do(close(story, seen))
    assert refused.value.code == MOVED_ON
    assert story.do(close(story, story.of("p1")))


def test_an_answer_sent_twice_is_applied_once() -> None:
    story = accepted()
    seen = story.of("p1")
    assert story.do(progress(story, seen)) and story.do(progress(story, seen)) == ()
    seen = story.of("p1")
    assert story.do(close(story, seen)) and story.do(close(story, seen)) == ()
