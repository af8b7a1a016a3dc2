"""Orders in the fold: how they begin, are amended, change hands and end."""

from __future__ import annotations

from services.geofence.domain import codec
from services.geofence.domain.alerts import DeadLetter
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle


def seconds(ms: int) -> float:
    return (ms - T0_MS) / 1000


def test_an_order_after_the_last_reports_is_decided_on_them() -> None:
    story = Story()
    story.at(0, "phone", 0)
    story.at(5, "tag", 80)
    story.case(60)
    assert story.emitted() == [("RING_ENTERED", 2000, 60), ("RING_ENTERED", 1000, 60), ("RING_ENTERED", 100, 60)]
    assert story.alerts[0].cause is None


def test_an_order_begins_to_the_second_without_a_new_report() -> None:
    story = Story()
    story.at(0, "phone", 0)
    story.at(5, "tag", 80)
    story.case(10, valid_from_ms=T0_MS + 90_000)
    story.tick(60)
    assert not story.alerts
    story.tick(120)
    assert {(at, seconds(a.decided_at_ms)) for a in story.alerts for at in [seconds(a.at_ms)]} == {(90, 90)}


def test_an_order_ends_at_its_last_moment_and_so_does_the_incident() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.at(0, "phone", 0)
    story.at(10, "tag", 50)
    story.tick(200)
    cleared = [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    assert [a.ring_mm for a in cleared] == [100_000, 1_000_000, 2_000_000]
    assert [a.incident_ends for a in cleared] == [False, False, True]
    story.at(300, "tag", 20)
    assert len(story.alerts) == 6, "an order that is over decides nothing"


def test_an_extended_order_goes_on() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.case(50, version=2, valid_until_ms=T0_MS + 10_000_000)
    story.tick(150)
    story.at(160, "phone", 0)
    story.at(170, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


def test_an_older_snapshot_changes_nothing() -> None:
    story = Story()
    story.case(version=2)
    story.case(1, version=1, valid_until_ms=T0_MS + 1)
    story.case(1, version=2, valid_until_ms=T0_MS + 1)
    story.at(10, "phone", 0)
    story.at(10, "tag", 50)
    assert story.entered() == [2000, 1000, 100]


def test_an_amended_place_is_decided_at_once_and_the_old_one_is_closed() -> None:
    story = Story()
    story.case(persons=[], places=[circle("home", 0, 0, radius_m=20)])
    story.at(0, "tag", 100)
    assert story.entered() == [2000, 1000, 100]
    story.case(30, version=2, persons=[], places=[circle("new-home", 5000, 0, radius_m=20)])
    cleared = [a for a in story.alerts if a.kind is AlertKind.RING_CLEARED]
    assert [(a.target_id, a.incident_ends) for a in cleared] == [("home", False), ("home", False), ("home", True)]
    story.case(40, version=3, persons=[], places=[circle("third-home", 150, 0, radius_m=20)])
    assert [a.target_id for a in story.alerts[6:]] == ["third-home"] * 3


def test_three_orders_at_once_are_one_incident_with_their_own_episodes() -> None:
    story = Story(clear_after_s=10)
    for case in ("1", "2", "3"):
        story.case(case=case, persons=[], places=[circle(f"home{case}", int(case) * 10, 0, radius_m=5)])
    story.at(0, "tag", 50)
    assert len({a.incident_id for a in story.alerts}) == 1
    assert len({a.episode_id for a in story.alerts}) == 3
    for t in range(10, 60, 5):
        story.at(t, "tag", 9000)
    ends = [a.incident_ends for a in story.alerts]
    assert ends.count(True) == 1 and ends[-1]
    story.at(200, "tag", 50)
    assert story.alerts[-1].incident_id != story.alerts[0].incident_id


def test_the_end_of_an_order_retracts_a_panic() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 100_000)
    story.says(5, "phone", "PANIC_BUTTON")
    assert story.alerts[0].demand is Demand.RESPOND and story.alerts[0].target_id == "p"
    story.tick(200)
    assert story.alerts[-1].kind is AlertKind.PANIC and story.alerts[-1].incident_ends


def test_an_expired_snapshot_closes_the_open_rings_and_adds_targets() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.case(30, version=2, places=[circle("home", 0, 0, radius_m=20)], valid_until_ms=T0_MS + 20_000)
    assert story.alerts[-1].incident_ends
    assert all(a.kind is AlertKind.RING_CLEARED for a in story.alerts[3:])


def test_a_person_and_a_place_may_have_the_same_id() -> None:
    story = Story()
    story.case(places=[circle("p", 8000, 0, radius_m=20)])
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    assert story.entered() == [2000, 1000, 100]
    story.at(161, "tag", 8000)
    assert story.entered().count(100) == 2


def test_a_strap_cut_before_the_order_is_emitted_when_the_order_arrives() -> None:
    story = Story()
    story.says(5, "tag", "STRAP_OPEN")
    story.case(60)
    assert [(a.kind, a.demand, seconds(a.at_ms)) for a in story.alerts] == [(AlertKind.TAMPERED, Demand.RESPOND, 60)]
    later = Story()
    later.case(valid_from_ms=T0_MS + 50_000)
    later.says(5, "tag", "STRAP_OPEN")
    later.tick(60)
    assert [(a.kind, seconds(a.at_ms)) for a in later.alerts] == [(AlertKind.TAMPERED, 50)]


def test_a_graver_action_of_an_entered_ring_is_emitted() -> None:
    story = Story()
    story.case(rings=[geometry_pb2.Ring(radius_m=500, action=geometry_pb2.WARN)])
    story.at(0, "phone", 0)
    story.at(1, "tag", 400)
    story.case(30, version=2, rings=[geometry_pb2.Ring(radius_m=500, action=geometry_pb2.RESPOND)])
    assert story.alerts[-1].demand is Demand.RESPOND


def test_a_place_that_is_added_does_not_count_backwards() -> None:
    story = Story()
    story.case(persons=[], places=[circle("home", 9000, 0, radius_m=20)])
    story.at(0, "tag", 0)
    story.at(100, "tag", 1000)
    story.case(
        110, version=2, persons=[], places=[circle("home", 9000, 0, radius_m=20), circle("work", 500, 0, radius_m=20)]
    )
    story.at(120, "tag", 1200)
    work = [a for a in story.alerts if a.target_id == "work"]
    assert work and all(seconds(a.at_ms) >= 110 for a in work) and 100_000 not in {a.ring_mm for a in work}


def test_a_tag_that_changes_hands_has_no_position_of_its_new_wearer() -> None:
    story = Story()
    story.case(case="1")
    story.at(0, "phone", 0)
    story.at(1, "tag", 5000)
    story.case(1000, version=2, tag_device_ids=[])
    story.case(1000, case="2", wearer_id="w2", order_id="order-2")
    story.at(1001, "phone", 5000)
    story.at(1002, "tag", 5000, fix_s=900)
    assert not story.entered()
    assert story.outputs[-1] == DeadLetter(story.state.sequence, "1 positions from before their device changed hands")
    story.at(1010, "tag", 5050)
    assert story.entered() == [2000, 1000, 100]


def test_the_last_device_of_a_person_takes_its_rings_with_it() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.case(30, version=2, persons=[log_pb2.ProtectedTarget(person_id="p")])
    story.tick(1829)
    assert not any(alert.incident_ends for alert in story.alerts), "nobody left"
    story.tick(1831)
    assert story.alerts[-1].incident_ends and story.alerts[-1].at_ms == T0_MS + 1_830_000


def test_a_postponed_order_closes_its_open_rings() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(1, "tag", 50)
    story.says(2, "tag", "STRAP_OPEN")
    story.case(30, version=2, valid_from_ms=T0_MS + 500_000)
    assert story.alerts[-1].incident_ends
    story.tick(600)
    assert {a.kind for a in story.alerts if seconds(a.at_ms) == 500} >= {AlertKind.TAMPERED, AlertKind.RING_ENTERED}


def test_superseded_versions_leave_nothing_behind() -> None:
    story = Story()
    for version in range(1, 50):
        story.case(version=version)
    assert len(story.state.due) == 2, "the end of the order, and when silence begins"


def test_a_report_after_the_end_of_its_order_is_a_dead_letter() -> None:
    """He was at her door before the order ended, and his tag reports it a second after the end."""
    story = Story()
    story.case(valid_until_ms=T0_MS + 600_000)
    for at_s in (0, 580):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 5000)
    story.tick(600)
    story.state = codec.decode(codec.encode(story.state))
    story.at(601, "tag", 10, fix_s=590)
    story.at(616, "tag", 10)
    dead_letters = [output.reason for output in story.outputs if isinstance(output, DeadLetter)]
    assert dead_letters == ["1 positions from before the end of an order that is over"]
    story.case(620, version=2)
    story.at(625, "tag", 5000, fix_s=599)
    # The order is in force again.
    assert len([output for output in story.outputs if isinstance(output, DeadLetter)]) == 1
