"""Flags of a protected person that the warning leg raises, in its own chain and in the police's."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest

from services.common.errors import NotFound
from services.dispatch.domain.assignment import UNANSWERED, AssignmentState
from services.dispatch.domain.enums import Demand, Exercise, WarningFlag
from services.dispatch.domain.events import BEYOND_ALL, Flagged, Notified, Offered, StoodDown
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, translate
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.incidents import Story, alert
from tests.support.dispatch.roster import AT_DAY

NO_RECEIPT, NO_CONTACT, DURESS, REACHED = WarningFlag


def flag(story: Story, which: WarningFlag, at_ms: int | None = 5_000, sequence: int = 1) -> tuple[object, ...]:
    return story.do(Flag("p1", which, f"alert-{sequence}", (sequence, 0), "order-1", at_ms))


def test_a_flag_notifies_police_that_had_no_assignment_of_the_person() -> None:
    story = Story()
    assert [type(event).__name__ for event in flag(story, NO_RECEIPT)] == ["AlertFolded", "Notified", "Flagged"]
    assert story.of("p1").state is AssignmentState.NOTIFIED and story.of("p1").demand is Demand.NOTIFY
    assert flag(story, NO_RECEIPT) == () and flag(story, REACHED, at_ms=4_999) == ()
    (reached,) = flag(story, REACHED, at_ms=6_000)
    assert isinstance(reached, Flagged)
    assert flag(story, NO_RECEIPT) == (), "a repeated flag after a later one changes nothing"


def test_a_flag_of_an_exercise_is_no_live_incident_at_the_police() -> None:
    warning = Story("warning")
    warning.fold(replace(alert(1, Demand.WARN, "p1"), exercise=Exercise.DRILL))
    warning.do(Flag("p1", DURESS, "alert-1", (1, 0), "order-1"))
    step = translate.step(warning.incident, warning.of("p1"), 2_000, latency_ms=None)
    received = dispatch_pb2.Step.FromString(translate.outward(step))
    command = translate.peer_flag(translate.peer(received, Leg.POLICE))
    assert command is not None
    story = Story(board=AT_DAY)
    story.do(command)
    assert story.incident.exercise is Exercise.DRILL
    assert story.of("p1").state in UNANSWERED and story.of("p1").choice is None, "no unit is sent to an exercise"


def test_a_flag_notifies_a_unit_on_its_way_and_makes_no_new_offer() -> None:
    story = Story()
    story.fold(alert(1, Demand.RESPOND, "p1"))
    story.acknowledge("p1")
    for which, at_ms in ((NO_RECEIPT, 1), (REACHED, 2), (DURESS, 3)):
        assert [type(event) for event in flag(story, which, at_ms)] == [Flagged]
        assert story.of("p1").state is AssignmentState.ACKNOWLEDGED


@pytest.mark.parametrize("before", ["nothing", "notified", "stood down", "closed"])
def test_duress_makes_an_offer_in_every_earlier_state(before: str) -> None:
    story = Story()
    if before != "nothing":
        story.fold(alert(1, Demand.NOTIFY if before == "notified" else Demand.RESPOND, "p1"))
    if before in ("stood down", "closed"):
        story.acknowledge("p1")
        story.fold(alert(2, Demand.RECORD, ends=True))
    if before == "closed":
        story.close("p1")
    events = flag(story, DURESS, sequence=1)
    assert any(isinstance(event, Offered) for event in events) and story.of("p1").state in UNANSWERED
    due_ms = story.of("p1").due_ms
    assert due_ms is not None
    story.fold(alert(9, Demand.RECORD, ends=True))
    assert story.of("p1").state in UNANSWERED, "the wearer's departure doesn't end duress"
    story.pass_time(due_ms - story.now_ms)
    assert story.of("p1").state is AssignmentState.ESCALATED, "the offer has a deadline like any other"
    story.acknowledge("p1")
    story.close("p1")
    assert story.of("p1").state is AssignmentState.CLOSED


def test_a_flag_after_the_end_notifies_and_leaves_nothing_open() -> None:
    story = Story()
    story.fold(alert(1, Demand.RESPOND, "p1"))
    story.fold(alert(5, Demand.RECORD, ends=True))
    story.do(Flag("p2", NO_CONTACT, "alert-2", (2, 0), "order-1", 5_000))
    assert [type(event) for event in story.events[-3:]] == [Notified, Flagged, StoodDown]
    assert story.incident.ended_ms is not None


def test_the_warning_leg_records_each_flag_once_and_duress_is_final() -> None:
    story = Story("warning")
    with pytest.raises(NotFound):
        flag(story, NO_RECEIPT, at_ms=None)
    story.fold(alert(1, Demand.WARN, "p1"))
    for which, count in ((NO_RECEIPT, 1), (NO_RECEIPT, 0), (REACHED, 1), (NO_RECEIPT, 1), (DURESS, 1), (REACHED, 0)):
        assert len(flag(story, which, at_ms=None)) == count
    flagged = [event for event in story.events if isinstance(event, Flagged)]
    times_ms = [event.flagged_ms for event in flagged]
    assert times_ms == sorted(set(times_ms)), "the later of two flags counts, so no two have the same time"
    assert story.of("p1").demanded != BEYOND_ALL or story.of("p1").state in UNANSWERED


def test_flags_read_from_the_chain_equal_the_written_ones() -> None:
    story = Story()
    flag(story, DURESS)
    head, links = chain.ChainHead(), []
    for event in story.events:
        links.append(chain.write(head, "incident-1", event))
        head = chain.ChainHead(links[-1].id, links[-1].hash)
    assert [chain.read(link.kind, link.body) for link in links] == story.events
    assert chain.first_broken(chain.ChainHead(), links) == (head, None)


def test_no_order_of_flags_and_alerts_loses_duress() -> None:
    steps: dict[str, Callable[[Story], object]] = {
        "duress": lambda story: flag(story, DURESS, 9_000),
        "late": lambda story: flag(story, NO_RECEIPT, 5_000),
        "entered": lambda story: story.fold(alert(3, Demand.RESPOND, "p1")),
        "over": lambda story: story.fold(alert(4, Demand.RECORD, ends=True)),
    }
    for order in itertools.permutations(steps):
        story = Story()
        for name in order:
            steps[name](story)
        assert story.of("p1").state in UNANSWERED, order
        known = story.of("p1").flag
        assert known and known.flag is DURESS, order
