"""When a destination needs an update, and when time alone makes the next check due."""

from __future__ import annotations

from dataclasses import replace

from services.common import times
from services.common.geometry import LatLon
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.following import RETARGET_MS, Approach, Sighting, won_at_ms
from services.dispatch.domain.roster import POSITION_MAX_AGE_MS, UnitReport
from services.dispatch.following.follower import RACE_INTERVAL_MS, Check, Scene, check_destination
from services.dispatch.following.targets import FollowedTarget
from services.dispatch.leg.availability import KNOWN_FOR_MS
from tandem.geofence.v1 import positions_pb2
from tests.support.dispatch.races import HOME, PER_M, ring, set_travel, update, with_travel

NOW_MS = 1_000


def north(metres: float) -> LatLon:
    return LatLon(HOME.lat_deg + metres * PER_M, HOME.lon_deg)


def at(metres: float, at_ms: int) -> FollowedTarget:
    """A target that was seen once."""
    point = north(metres)
    position = positions_pb2.LivePosition(lat_deg=point.lat_deg, lon_deg=point.lon_deg)
    position.fix_time.CopyFrom(times.to_timestamp(at_ms))
    target = FollowedTarget()
    target.put(position)
    assert [sighting.at_ms for sighting in target.track] == [at_ms]
    return target


def scene(now_ms: int = NOW_MS) -> Scene:
    """An offer to car a1; the wearer is 900 m north of the protected person, who is at home."""
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    return Scene(
        incident=story.incident,
        assignment=story.of("p1"),
        wearer=at(900, NOW_MS),
        target=at(0, NOW_MS),
        point=HOME,
        unit=None,
        may_locate_person=True,
        now_ms=now_ms,
    )


def checked(first: Scene) -> Check:
    result, needed = check_destination(first, None)
    assert needed, "a destination that wasn't checked yet is due"
    return result


def test_a_destination_without_news_needs_no_update_until_its_positions_are_outdated() -> None:
    before = checked(scene())
    outdated_ms = NOW_MS + KNOWN_FOR_MS + 1
    assert before.next_ms == outdated_ms
    for now_ms in (NOW_MS + 1, NOW_MS + 60_000, outdated_ms - 1):
        after, needed = check_destination(scene(now_ms), before)
        assert needed is None and after == before
    after, needed = check_destination(replace(scene(outdated_ms), point=None), before)
    assert needed and needed.approach.wearer_s is not None and needed.approach.by_ring
    assert after.next_ms is None, "nothing changes any more without news"


def test_news_of_the_wearer_the_target_or_the_offer_makes_an_update() -> None:
    before, later = checked(scene()), scene(NOW_MS + 10)
    for changed in (
        replace(later, wearer=at(800, NOW_MS + 5)),
        replace(later, target=at(1, NOW_MS + 5)),
        replace(later, assignment=replace(later.assignment, state=AssignmentState.ACKNOWLEDGED)),
        replace(later, assignment=replace(later.assignment, offer_number=9)),
    ):
        assert check_destination(changed, before)[1] is not None
    after, needed = check_destination(replace(later, wearer=at(800, NOW_MS + 5)), before)
    assert needed and needed.approach == Approach(533) and needed.moved_m == 0
    assert after.at_ms == NOW_MS + 10


def test_a_unit_that_moves_is_checked_at_most_each_race_interval() -> None:
    def report(position_ms: int) -> UnitReport:
        return UnitReport(position=north(3_000), position_ms=position_ms)

    before = checked(replace(scene(), unit=report(NOW_MS)))
    soon = replace(scene(NOW_MS + 1_000), unit=report(NOW_MS + 900))
    waiting, needed = check_destination(soon, before)
    assert needed is None and waiting.next_ms == NOW_MS + RACE_INTERVAL_MS
    after, needed = check_destination(replace(soon, now_ms=NOW_MS + RACE_INTERVAL_MS), waiting)
    assert needed and after.next_ms == NOW_MS + KNOWN_FOR_MS + 1
    silent = replace(scene(), unit=report(NOW_MS - POSITION_MAX_AGE_MS + 50))
    assert checked(silent).next_ms == NOW_MS + 51, "then the unit's travel time is unknown"


def test_a_move_far_away_is_notified_once_and_later_if_that_was_too_early() -> None:
    before = checked(scene())
    moved = replace(scene(NOW_MS + 10), point=north(-400), target=at(-400, NOW_MS + 5))
    after, needed = check_destination(moved, before)
    assert needed and needed.moved_m == 400 and after.anchor == north(-400)
    lately = replace(moved, assignment=replace(moved.assignment, retargeted_ms=NOW_MS + 5))
    waiting, needed = check_destination(lately, before)
    assert needed and needed.moved_m == 0, "the race is checked, the responder isn't notified"
    assert waiting.anchor == HOME and waiting.next_ms == NOW_MS + 5 + RETARGET_MS
    after, needed = check_destination(replace(lately, now_ms=NOW_MS + 5 + RETARGET_MS), waiting)
    assert needed and needed.moved_m == 400


def test_a_target_is_found_once() -> None:
    story = with_travel()
    story.fold(ring(5, "p1", target="p1"))
    unknown = replace(scene(), incident=story.incident, assignment=story.of("p1"), point=None, target=None)
    before = checked(unknown)
    found, needed = check_destination(replace(unknown, point=HOME, now_ms=NOW_MS + 5), before)
    assert needed and needed.found
    assert check_destination(replace(unknown, point=HOME, now_ms=NOW_MS + 6), found)[1] is None


def test_a_lost_race_is_checked_when_the_rest_of_the_way_is_short_enough() -> None:
    story = with_travel(a1=240, a2=300)
    story.fold(ring(5, "p1", target="p1"))
    story.receive("p1")
    update(story, Approach(200))
    assert story.of("p1").losing and won_at_ms(story.of("p1"), 200) is None, "nobody is on the way"
    story.acknowledge("p1")
    story.progress("p1", AssignmentState.DISPATCHED)
    assert story.of("p1").losing
    won_ms = won_at_ms(story.of("p1"), 200)
    assert won_ms == 1_000 + (240 - 140) * 1_000
    assert won_at_ms(story.of("p1"), 89) is None, "30 s on the way and a lead of 60 s never suffice"
    set_travel(story, {})
    story.now_ms = won_ms - 1_000
    assert update(story, Approach(200)) == ()
    story.now_ms = won_ms
    assert [event.losing for event in update(story, Approach(200))] == [False]  # type: ignore[union-attr]


def test_only_recent_sightings_count() -> None:
    old = scene(NOW_MS + KNOWN_FOR_MS + 10)
    assert old.wearer
    old.wearer.track.append(Sighting(NOW_MS + KNOWN_FOR_MS, north(600)))
    result, needed = check_destination(old, None)
    assert needed and needed.approach == Approach(400), "one sighting gives no pace"
    assert result.next_ms == NOW_MS + 2 * KNOWN_FOR_MS + 1
