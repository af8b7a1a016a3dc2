"""Effects on an assignment of a moving target, of a race that is being lost, and of a scene that both legs share."""

from __future__ import annotations

import pytest

from services.common.errors import FailedPrecondition
from services.common.geometry import LatLon
from services.dispatch.domain import following
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.enums import Advice, EscalationReason, Estimate
from services.dispatch.domain.events import Escalated, Offered, Raced, Retargeted, SceneShared, TargetsShown
from services.dispatch.domain.following import (
    RETARGET_MS,
    Approach,
    Follow,
    ShowTargets,
    Sighting,
    TargetUpdate,
    approach,
    approach_by_ring,
    pace_mps,
)
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import TravelEstimated
from services.dispatch.leg import chain, translate
from tandem.dispatch.v1 import dispatch_pb2, following_pb2
from tests.support.dispatch.incidents import Story
from tests.support.dispatch.races import FAR, HOME, PER_M, ring, set_travel, update, with_travel


def accept(story: Story, *states: AssignmentState) -> None:
    story.receive("p1")
    story.acknowledge("p1")
    for state in states:
        story.progress("p1", state)


# ── the target moves ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_offer_moves_only_to_a_much_nearer_unit() -> None:
    story = with_travel(a1=100, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    assert story.of("p1").responding_unit_id == "a1"
    set_travel(story, {"a1": 300, "a2": 190, "b1": 200})
    assert update(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),), "110 s nearer isn't much"
    set_travel(story, {"a1": 300, "a2": 150, "b1": 200})
    (offered,) = update(story, moved=True)
    assert isinstance(offered, Escalated) and offered.choice and offered.choice.unit_id == "a2"
    assert (offered.escalation_reason, story.of("p1").state) == (
        EscalationReason.TARGET_MOVED,
        AssignmentState.ESCALATED,
    )
    assert story.of("p1").offer_number == story.of("p1").number, "an answer to the earlier offer has no effect"


@pytest.mark.parametrize(
    "states", [(), (AssignmentState.DISPATCHED,), (AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE)], ids=str
)
def test_a_responder_is_notified_and_replaced_only_by_a_unit_nearer_by_minutes(
    states: tuple[AssignmentState, ...],
) -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    accept(story, *states)
    set_travel(story, {"a1": 500, "a2": 220})
    assert update(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),)
    assert update(story, moved=True) == (), "at most one notification each RETARGET_MS"
    story.now_ms += RETARGET_MS
    assert len(update(story, moved=True)) == 1
    assert story.of("p1").responding_unit_id == "a1" and story.of("p1").acknowledged_ms
    set_travel(story, {"a1": 500, "a2": 190})
    (offered,) = update(story, moved=True)
    assert (
        isinstance(offered, Escalated)
        and story.of("p1").responding_unit_id == "a2"
        and not story.of("p1").acknowledged_ms
    )


def test_an_offer_without_a_known_target_moves_to_the_nearest_unit_once_the_target_is_known() -> None:
    story = with_travel()
    story.fold(ring(5, "p1", target="p1"))
    assert story.of("p1").responding_unit_id == "a1"
    target = TargetUpdate("incident-1", story.id_of("p1"), "p1", FAR, 0, found=True)
    set_travel(story, {"a1": 200, "a2": 190})
    (estimated,) = story.do(Follow(target))
    assert isinstance(estimated, TravelEstimated), "no unit is much nearer, and the target hasn't moved"
    set_travel(story, {"a1": 500, "a2": 100})
    (offered,) = story.do(Follow(target))
    assert isinstance(offered, Escalated) and story.of("p1").responding_unit_id == "a2"


def test_a_unit_that_was_asked_before_the_target_was_known_gets_its_arrival_time_once_it_is() -> None:
    story = with_travel()
    story.fold(ring(5, "p1", target="p1"))
    story.acknowledge("p1")
    target = TargetUpdate("incident-1", story.id_of("p1"), "p1", FAR, 0, found=True)
    assert story.do(Follow(target)) == () and story.of("p1").arrival_due_ms is None, "the unit's position is unknown"
    story.now_ms += 5_000
    set_travel(story, {"a1": 200, "a2": 190})
    assert story.do(Follow(target)) == (TravelEstimated(6_000, story.id_of("p1"), 205, Estimate.ROAD),)
    assert story.of("p1").arrival_due_ms == 6_000 + 60_000 + 200_000, "the time to get ready, and the way from here"
    step = translate.assignment_message(story.incident, story.of("p1"), None)
    assert step.arrival_due_at.ToMilliseconds() == 266_000
    assert story.do(Follow(target)) == (), "it is estimated once"


def test_an_offer_with_a_travel_time_keeps_its_arrival_time() -> None:
    story = with_travel(a1=100, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    set_travel(story, {"a1": 150, "a2": 300})
    target = TargetUpdate("incident-1", story.id_of("p1"), "p1", FAR, 0, found=True)
    assert story.do(Follow(target)) == () and story.of("p1").arrival_due_ms == 161_000


def test_a_unit_on_the_scene_is_neither_notified_nor_replaced() -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    accept(story, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE)
    set_travel(story, {"a1": 900, "a2": 10})
    assert update(story, Approach(1), moved=True) == ()


def test_a_near_unit_that_refused_is_not_chosen_for_a_moved_target() -> None:
    story = with_travel(a1=100, a2=500)
    story.fold(ring(5, "p1", target="p1"))
    story.reject("p1")
    assert story.of("p1").responding_unit_id == "a2"
    set_travel(story, {"a1": 10, "a2": 500})
    assert update(story, moved=True) == (Retargeted(1_000, story.id_of("p1"), 400),)


def test_without_movement_or_a_roster_no_unit_is_chosen() -> None:
    story = with_travel(a1=500, a2=600)
    story.fold(ring(5, "p1", target="p1"))
    set_travel(story, {"a1": 500, "a2": 10})
    assert update(story) == ()
    alone = Story("police")
    alone.fold(ring(5, "p1", target="p1"))
    assert [type(event) for event in update(alone, moved=True)] == [Retargeted]
    assert update(alone, subject="p9", moved=True) == ()


def test_each_destination_of_the_police_gets_an_offer() -> None:
    story = Story("police")
    story.fold(ring(5, "p1", target="p1"))
    story.acknowledge("p1")
    events = story.fold(ring(7, "order-1/school", target="school"))
    assert [type(event) for event in events[1:]] == [Offered, SceneShared]


# ── one scene ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("leg", "subject"), [("probation", "w1"), ("police", "p1")])
def test_both_legs_derive_a_shared_scene_from_the_same_alerts(leg: str, subject: str) -> None:
    story = Story(leg)
    story.fold(ring(5, subject, target="p1", ring_m=500))
    assert story.of(subject).one_scene_ms is None
    story.now_ms = 2_000
    story.fold(ring(6, subject, target="p1", ring_m=100))
    assert story.of(subject).one_scene_ms == 2_000
    story.fold(ring(8, subject, target="p1", ring_m=100, entered=False))
    assert (story.of(subject).one_scene_ms is None) == (leg == "police"), (
        "leaving the ring would reveal another distance"
    )
    story.fold(ring(7, subject, target="p1", ring_m=100))
    assert (story.of(subject).one_scene_ms is None) == (leg == "police"), (
        "an older alert that arrives late changes nothing"
    )


def test_the_warning_leg_has_no_scene() -> None:
    story = Story("warning")
    assert not [event for event in story.fold(ring(5, "p1", target="p1")) if isinstance(event, SceneShared)]


# ── the race ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_lost_race_shortens_the_deadline_notifies_the_supervisor_and_changes_the_advice() -> None:
    story = with_travel(a1=240, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    story.receive("p1")
    assert update(story, Approach(301)) == (), "240 s and a minute to get going"
    (raced,) = update(story, Approach(299))
    assert raced == Raced(
        1_000, story.id_of("p1"), True, Advice.STAY_INSIDE, 299, 300, False, "supervisor-a", 1_000 + 10_000
    )
    assert story.of("p1").responding_unit_id == "a1", "no other unit would arrive sooner"
    assert update(story, Approach(100)) == (), "notified once"
    (escalated,) = story.pass_time(10_000)
    assert (
        isinstance(escalated, Escalated)
        and escalated.escalation_reason is EscalationReason.NOT_ACKNOWLEDGED
        and story.of("p1").responding_unit_id == "a2"
    )
    story.receive("p1")
    assert story.of("p1").due_ms == story.now_ms + 10_000, "the deadline is short at each level"
    assert update(story, Approach(419)) == () and story.of("p1").losing, (
        "the race is won back only with a lead of a minute"
    )
    (won,) = update(story, Approach(420))
    assert isinstance(won, Raced) and not won.losing and won.advice is Advice.NONE and not won.supervisor_desk


def test_a_unit_that_would_arrive_before_the_wearer_replaces_the_present_one() -> None:
    story = with_travel(a1=240, a2=300, b1=400)
    story.fold(ring(5, "p1", target="p1"))
    accept(story, AssignmentState.DISPATCHED)
    set_travel(story, {"a1": 240, "a2": 30})
    raced, offered = update(story, Approach(100))
    assert isinstance(raced, Raced) and raced.due_ms is None
    assert (
        isinstance(offered, Escalated)
        and offered.escalation_reason is EscalationReason.RACE_LOST
        and story.of("p1").responding_unit_id == "a2"
    )


def test_the_advice_depends_on_the_time_left_and_is_kept() -> None:
    story = with_travel(a1=600)
    story.fold(ring(5, "p1", target="p1"))
    (raced,) = update(story, Approach(300))
    assert isinstance(raced, Raced) and raced.advice is Advice.LEAVE
    assert update(story, Approach(20)) == () and story.of("p1").raced == raced


def test_a_unit_on_the_scene_has_won_and_a_wearer_going_away_starts_no_race() -> None:
    story = with_travel(a1=600)
    story.fold(ring(5, "p1", target="p1"))
    assert update(story, Approach(None)) == ()
    update(story, Approach(60))
    accept(story, AssignmentState.DISPATCHED, AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE)
    (won,) = update(story, Approach(1))
    assert isinstance(won, Raced) and not won.losing


def test_probation_gives_no_advice() -> None:
    story = Story("probation")
    story.fold(ring(5, "w1", target="p1"))
    (raced,) = update(story, Approach(60, True), subject="w1")
    assert isinstance(raced, Raced) and raced.advice is Advice.NONE and raced.by_ring


def test_an_unknown_unit_gets_the_average_time_and_a_unit_on_its_way_the_remaining_time() -> None:
    story = Story("police")
    story.fold(ring(5, "p1", target="p1"))
    assert following.responder_s(story.of("p1"), None, 1_000) == 307 + 60
    story.acknowledge("p1")
    story.progress("p1", AssignmentState.DISPATCHED)
    assert following.responder_s(story.of("p1"), None, 101_000) == 207
    assert following.responder_s(story.of("p1"), None, 10**7) == 30
    assert following.responder_s(story.of("p1"), 12, 10**7) == 12


def north(at_s: int, metres: float) -> Sighting:
    return Sighting(at_s * 1000, LatLon(HOME.lat_deg + metres * PER_M, HOME.lon_deg))


def test_the_pace_is_that_of_the_last_minute_and_at_least_walking_pace() -> None:
    assert pace_mps([]) == pace_mps([north(0, 900)]) == 1.5
    assert pace_mps([north(0, 900), north(5, 0)]) == 1.5, "a movement of 5 s gives no pace"
    assert pace_mps([north(0, 900), north(30, 600)]) == pytest.approx(10, rel=0.01)
    assert pace_mps([north(0, 9_000), north(100, 600), north(130, 540)]) == pytest.approx(2, rel=0.01)
    assert pace_mps([north(0, 90_000), north(15, 0)]) == 60, "a position jump"
    assert approach([north(0, 900), north(30, 600)], HOME, 100) == Approach(50)
    assert approach([north(0, 600), north(30, 700)], HOME, 0) == Approach(None), "the wearer goes away"
    assert approach([], HOME, 0) == Approach(None)
    assert approach_by_ring([north(0, 900), north(30, 600)], 1_000) == Approach(100, True)
    assert approach_by_ring([north(0, 900)], None) == Approach(None)


# ── stored events and published steps ────────────────────────────────────────────────────────────────────────────────


def test_live_positions_are_shown_and_recorded_only_while_an_assignment_is_open() -> None:
    story = Story("police")
    with pytest.raises(FailedPrecondition):
        story.do(ShowTargets("spiffe://npa/desk/a"), 1)
    story.fold(ring(5, "p1", target="p1"))
    assert story.do(ShowTargets("spiffe://npa/desk/a"), 1) == (TargetsShown(1, "spiffe://npa/desk/a"),)
    story.fold(ring(6, "p1", target="p1", entered=False, ends=True))
    with pytest.raises(FailedPrecondition):
        story.do(ShowTargets("spiffe://npa/desk/a"), 1)


def test_events_read_from_the_chain_give_the_same_incident() -> None:
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    update(story, Approach(60), moved=True)
    story.do(ShowTargets("x"), 1)
    head, incident = chain.ChainHead(), Incident("incident-1", Leg.POLICE)
    for event in story.events:
        link = chain.write(head, "incident-1", event)
        head, incident = chain.ChainHead(link.id, link.hash), evolve(incident, chain.read(link.kind, link.body))
    assert incident == story.incident and incident.wearer_id == "w1"


def test_only_the_warning_leg_gets_the_race_as_advice_without_figures() -> None:
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    update(story, Approach(60), moved=True)
    step = translate.step(story.incident, story.of("p1"), story.now_ms, latency_ms=None, kept=True)
    assert step.assignment.race.losing and step.assignment.race.wearer_s == 60
    advice = following_pb2.AdviceGiven.FromString(translate.advice(step) or b"")
    assert (advice.advice, advice.subject_id) == (dispatch_pb2.STAY_INSIDE, "p1")
    assert list(advice.order_ids) == ["order-1"]
    outward = dispatch_pb2.Step.FromString(translate.outward(step)).assignment
    assert not {"race", "retargeted_at", "one_scene_at"} & {field.name for field, _ in outward.ListFields()}
    assert not {field.name for field, _ in advice.ListFields()} - {
        *("advice_id", "incident_id", "order_ids", "subject_id", "advice", "at", "number", "sequence"),
    }
