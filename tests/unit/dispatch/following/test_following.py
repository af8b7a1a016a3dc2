"""A target that moves, a race that is being lost, two that come to one place: what becomes of an assignment."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain import race
from services.dispatch.domain.areas import LatLon
from services.dispatch.domain.decisions import Alert
from services.dispatch.domain.enums import Advice, Demand, EscalationReason, Estimate
from services.dispatch.domain.events import Escalated, Event, Offered, Raced, Retargeted, SceneShared, TargetsShown
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.following import RETARGET_MS, Follow, ShowTargets, TargetUpdate
from services.dispatch.domain.incident import AssignmentState, Incident
from services.dispatch.domain.race import Approach, Sighting, approach, approach_by_ring, pace_mps
from services.dispatch.domain.roster import Travel
from services.dispatch.leg import chain, translate
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.dispatch.incidents import DEADLINES, Story
from tests.support.dispatch.roster import TWO_OFFICES, board, unit

HOME = LatLon(37.5, 127.0)
PER_M = 1 / 111_195
"""Degrees of latitude for each metre."""
FAR = Approach(None)


def ring(
    sequence: int, subject: str, *, target: str, ring_m: float = 100.0, entered: bool = True, ends: bool = False
) -> Alert:
    demand = Demand.RESPOND if entered else Demand.RECORD
    kind = alert_pb2.RING_ENTERED if entered else alert_pb2.RING_CLEARED
    told = (f"alert-{sequence}", "incident-1", (sequence, 0), kind, demand, "order-1", f"{target}-{ring_m}", (subject,))
    return Alert(*told, ends, None, wearer_id="w1", ring_m=ring_m)


def with_travel(**travel_s: int) -> Story:
    """A police leg with cars a1, a2 and b1, which take so long to p1."""
    story = Story("police")
    go(story, travel_s)
    return story


def go(story: Story, travel_s: Mapping[str, int]) -> None:
    """Cars are elsewhere now, in relation to p1."""
    units = [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")]
    travel = {(id_, "p1"): Travel(s, Estimate.ROAD) for id_, s in travel_s.items()}
    story.board = board(TWO_OFFICES, units, travel=travel)


def look(story: Story, how: Approach = FAR, *, moved: bool = False, subject: str = "p1") -> tuple[Event, ...]:
    seen = TargetUpdate("incident-1", story.id_of(subject), subject, how, 400 if moved else 0)
    return story.do(Follow(seen, story.now_ms, DEADLINES, story.board))


def take(story: Story, *states: AssignmentState) -> None:
    story.receive("p1")
    story.acknowledge("p1")
    for state in states:
        story.progress("p1", state)


# ── the target moves ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_offer_goes_to_a_unit_that_is_much_nearer_and_to_no_other() -> None:
    story = with_travel(a1=100, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    assert story.of("p1").unit_id == "a1"
    go(story, {"a1": 300, "a2": 190, "b1": 200})
    assert look(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),), "110 s nearer isn't much"
    go(story, {"a1": 300, "a2": 150, "b1": 200})
    (offered,) = look(story, moved=True)
    assert isinstance(offered, Escalated) and offered.choice and offered.choice.unit_id == "a2"
    assert (offered.escalation_reason, story.of("p1").state) == (
        EscalationReason.TARGET_MOVED,
        AssignmentState.ESCALATED,
    )
    assert story.of("p1").offer_number == story.of("p1").number, "an answer to the offer before does nothing"


@pytest.mark.parametrize(
    "states", [(), (AssignmentState.DISPATCHED,), (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE)], ids=str
)
def test_who_goes_is_told_rather_than_replaced_unless_another_is_nearer_by_minutes(
    states: tuple[AssignmentState, ...],
) -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    take(story, *states)
    go(story, {"a1": 500, "a2": 220})
    assert look(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),)
    assert look(story, moved=True) == (), "told once in a while"
    story.now_ms += RETARGET_MS
    assert len(look(story, moved=True)) == 1
    assert story.of("p1").unit_id == "a1" and story.of("p1").acknowledged_ms
    go(story, {"a1": 500, "a2": 190})
    (offered,) = look(story, moved=True)
    assert isinstance(offered, Escalated) and story.of("p1").unit_id == "a2" and not story.of("p1").acknowledged_ms


def test_an_offer_that_was_made_without_knowing_where_to_goes_to_who_is_nearest_once_that_is_known() -> None:
    story = with_travel()
    story.fold(ring(5, "p1", target="p1"))
    assert story.of("p1").unit_id == "a1"
    seen = TargetUpdate("incident-1", story.id_of("p1"), "p1", FAR, 0, found=True)
    go(story, {"a1": 200, "a2": 190})
    assert story.do(Follow(seen, story.now_ms, DEADLINES, story.board)) == (), (
        "nobody is much nearer, and nothing moved"
    )
    go(story, {"a1": 500, "a2": 100})
    (offered,) = story.do(Follow(seen, story.now_ms, DEADLINES, story.board))
    assert isinstance(offered, Escalated) and story.of("p1").unit_id == "a2"


def test_who_is_there_is_neither_told_nor_replaced() -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    take(story, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE)
    go(story, {"a1": 900, "a2": 10})
    assert look(story, Approach(1), moved=True) == ()


def test_who_refused_or_is_busy_isnt_chosen_for_being_near() -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    story.reject("p1")
    assert story.of("p1").unit_id == "a2"
    go(story, {"a1": 10, "a2": 500})
    assert look(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),)


def test_without_movement_or_a_roster_nothing_is_chosen() -> None:
    story = with_travel(a1=500, a2=600)
    story.fold(ring(5, "p1", target="p1"))
    go(story, {"a1": 500, "a2": 10})
    assert look(story) == ()
    alone = Story("police")
    alone.fold(ring(5, "p1", target="p1"))
    assert [type(one) for one in look(alone, moved=True)] == [Retargeted]
    assert look(alone, subject="p9", moved=True) == ()


def test_the_police_have_a_destination_each() -> None:
    story = Story("police")
    story.fold(ring(5, "p1", target="p1"))
    story.acknowledge("p1")
    events = story.fold(ring(7, "order-1/school", target="school"))
    assert [type(event) for event in events[1:]] == [Offered, SceneShared]


# ── one scene ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("leg", "subject"), [("probation", "w1"), ("police", "p1")])
def test_both_legs_find_in_the_same_alerts_that_they_come_to_one_place(leg: str, subject: str) -> None:
    story = Story(leg)
    story.fold(ring(5, subject, target="p1", ring_m=500))
    assert story.of(subject).one_scene_ms is None
    story.now_ms = 2_000
    story.fold(ring(6, subject, target="p1", ring_m=100))
    assert story.of(subject).one_scene_ms == 2_000
    story.fold(ring(8, subject, target="p1", ring_m=100, entered=False))
    assert (story.of(subject).one_scene_ms is None) == (leg == "police"), "when the ring was left is one more distance"
    story.fold(ring(7, subject, target="p1", ring_m=100))
    assert (story.of(subject).one_scene_ms is None) == (leg == "police"), "an older alert that comes late"


def test_the_warning_leg_has_no_scene() -> None:
    story = Story("warning")
    assert not [one for one in story.fold(ring(5, "p1", target="p1")) if isinstance(one, SceneShared)]


# ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_race_that_is_being_lost_hurries_the_offer_tells_the_supervisor_and_changes_the_advice() -> None:
    story = with_travel(a1=240, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    story.receive("p1")
    assert look(story, Approach(301)) == (), "240 s and a minute to get going"
    (raced,) = look(story, Approach(299))
    assert raced == Raced(
        1_000, story.id_of("p1"), True, Advice.STAY_INSIDE, 299, 300, False, "supervisor-a", 1_000 + 10_000
    )
    assert story.of("p1").unit_id == "a1", "nobody else would be there sooner"
    assert look(story, Approach(100)) == (), "once"
    (climbed,) = story.pass_time(10_000)
    assert (
        isinstance(climbed, Escalated)
        and climbed.escalation_reason is EscalationReason.NOT_ACKNOWLEDGED
        and story.of("p1").unit_id == "a2"
    )
    story.receive("p1")
    assert story.of("p1").due_ms == story.now_ms + 10_000, "each rung is hurried"
    assert look(story, Approach(419)) == () and story.of("p1").losing, "won back only by a minute"
    (won,) = look(story, Approach(420))
    assert isinstance(won, Raced) and not won.losing and won.advice is Advice.NONE and not won.supervisor_desk


def test_whoever_would_be_there_first_takes_it_over() -> None:
    story = with_travel(a1=240, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    take(story, AssignmentState.DISPATCHED)
    go(story, {"a1": 240, "a2": 30})
    raced, offered = look(story, Approach(100))
    assert isinstance(raced, Raced) and raced.due_ms is None
    assert (
        isinstance(offered, Escalated)
        and offered.escalation_reason is EscalationReason.RACE_LOST
        and story.of("p1").unit_id == "a2"
    )


def test_there_is_time_to_leave_or_there_isnt_and_the_advice_stands() -> None:
    story = with_travel(a1=600)
    story.fold(ring(5, "p1", target="p1"))
    (raced,) = look(story, Approach(300))
    assert isinstance(raced, Raced) and raced.advice is Advice.LEAVE
    assert look(story, Approach(20)) == () and story.of("p1").raced == raced


def test_who_is_there_has_won_and_who_goes_away_isnt_raced() -> None:
    story = with_travel(a1=600)
    story.fold(ring(5, "p1", target="p1"))
    assert look(story, Approach(None)) == ()
    look(story, Approach(60))
    take(story, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE)
    (won,) = look(story, Approach(1))
    assert isinstance(won, Raced) and not won.losing


def test_probation_advises_nobody() -> None:
    story = Story("probation")
    story.fold(ring(5, "w1", target="p1"))
    (raced,) = look(story, Approach(60, True), subject="w1")
    assert isinstance(raced, Raced) and raced.advice is Advice.NONE and raced.by_ring


def test_of_an_unknown_unit_the_average_is_taken_and_of_one_on_its_way_what_is_left() -> None:
    story = Story("police")
    story.fold(ring(5, "p1", target="p1"))
    assert race.responder_s(story.of("p1"), None, 1_000) == 307 + 60
    story.acknowledge("p1")
    story.progress("p1", AssignmentState.DISPATCHED)
    assert race.responder_s(story.of("p1"), None, 101_000) == 207
    assert race.responder_s(story.of("p1"), None, 10**7) == 30
    assert race.responder_s(story.of("p1"), 12, 10**7) == 12


def north(at_s: int, metres: float) -> Sighting:
    return Sighting(at_s * 1000, LatLon(HOME.lat_deg + metres * PER_M, HOME.lon_deg))


def test_the_pace_is_that_of_the_last_minute_and_on_foot_at_least() -> None:
    assert pace_mps([]) == pace_mps([north(0, 900)]) == 1.5
    assert pace_mps([north(0, 900), north(5, 0)]) == 1.5, "of 5 s says nothing"
    assert pace_mps([north(0, 900), north(30, 600)]) == pytest.approx(10, rel=0.01)
    assert pace_mps([north(0, 9_000), north(100, 600), north(130, 540)]) == pytest.approx(2, rel=0.01)
    assert pace_mps([north(0, 90_000), north(15, 0)]) == 60, "a jump"
    assert approach([north(0, 900), north(30, 600)], HOME, 100) == Approach(50)
    assert approach([north(0, 600), north(30, 700)], HOME, 0) == Approach(None), "goes away"
    assert approach([], HOME, 0) == Approach(None)
    assert approach_by_ring([north(0, 900), north(30, 600)], 1_000) == Approach(100, True)
    assert approach_by_ring([north(0, 900)], None) == Approach(None)


# ── what is written and what leaves ──────────────────────────────────────────────────────────────────────────────────


def test_a_desk_that_looks_is_written_down_while_there_is_something_to_look_at() -> None:
    story = Story("police")
    with pytest.raises(FailedPrecondition):
        story.do(ShowTargets("spiffe://npa/desk/a", 1))
    story.fold(ring(5, "p1", target="p1"))
    assert story.do(ShowTargets("spiffe://npa/desk/a", 1)) == (TargetsShown(1, "spiffe://npa/desk/a"),)
    story.fold(ring(6, "p1", target="p1", entered=False, ends=True))
    with pytest.raises(FailedPrecondition):
        story.do(ShowTargets("spiffe://npa/desk/a", 1))


def test_all_of_it_is_read_as_it_was_written() -> None:
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    look(story, Approach(60), moved=True)
    story.do(ShowTargets("x", 1))
    head, incident = chain.ChainHead(), Incident("incident-1", "police")
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head, incident = chain.ChainHead(link.id, link.hash), evolve(incident, chain.read(link.kind, link.body))
    assert incident == story.incident and incident.wearer_id == "w1"


def test_what_the_race_tells_goes_to_the_warning_leg_alone_and_without_figures() -> None:
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    look(story, Approach(60), moved=True)
    step = translate.step(story.incident, story.of("p1"), story.now_ms, None, kept=True)
    assert step.assignment.race.losing and step.assignment.race.wearer_s == 60
    told = following_pb2.AdviceGiven.FromString(translate.advice(step) or b"")
    assert (told.advice, told.subject_id, list(told.order_ids)) == (dispatch_pb2.STAY_INSIDE, "p1", ["order-1"])
    outward = dispatch_pb2.Step.FromString(translate.outward(step)).assignment
    assert not {"race", "retargeted_at", "one_scene_at"} & {field.name for field, _ in outward.ListFields()}
    assert not {field.name for field, _ in told.ListFields()} - {
        *("advice_id", "incident_id", "order_ids", "subject_id", "advice", "at", "number", "sequence"),
    }
