"""Her map in the fold's domain: when it shows a region, when it shows none, and that it decides nothing."""

from __future__ import annotations

import math

import pytest

from services.geofence.domain import codec, her_map
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.her_map import GRID_E7, RADIUS_STEP_M, MapView, ShownCircle, ViewOutcome
from services.geofence.domain.kinematics.fixes import Fix
from tandem.common.v1 import exercise_pb2, log_pb2, notice_pb2
from tests.support.geofence.stories import LAT_E7, LON_E7, T0_MS, Story, circle, place_e7, unit

JUDGMENT = notice_pb2.TAG_15_2


def story_with(**changes: object) -> Story:
    story = Story()
    story.case(0, "1", **({"notice_ground": JUDGMENT} | changes))
    return story


def come(story: Story, from_m: float, to_m: float, *, from_s: float, mps: float) -> float:
    """The wearer comes from the north, or goes back there, and she stays at home. Returns the second of the last report."""
    at_s, metres = from_s, from_m
    step_m = math.copysign(mps * 15, to_m - from_m)
    while (to_m - metres) * step_m > 0:
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", metres)
        at_s, metres = at_s + 15, metres + step_m
    story.at(at_s, "phone", 0)
    story.at(at_s, "tag", to_m)
    return at_s


def stay(story: Story, north_m: float, *, from_s: float, until_s: float) -> float:
    for at_s in range(round(from_s), round(until_s), 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", north_m)
    return float(range(round(from_s), round(until_s), 15)[-1])


def seen(story: Story, at_s: float, device_id: str = "phone") -> list[MapView]:
    return her_map.views(story.state, device_id, T0_MS + round(at_s * 1000))


def outcome(story: Story, at_s: float) -> ViewOutcome:
    (view,) = seen(story, at_s)
    return view.outcome


def holds(view: MapView, north_m: float) -> bool:
    lat_e7, lon_e7 = place_e7(north_m)
    return any(
        math.hypot((circle.lat_e7 - lat_e7) / 90.1, (circle.lon_e7 - lon_e7) / 113.1) <= circle.radius_m
        for circle in view.circles
    )


# ── what it shows ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_near_wearer_is_shown_as_a_coarse_region_with_distance_direction_and_the_way_out() -> None:
    story = story_with()
    at_s = come(story, 1_300, 400, from_s=1, mps=2)
    (view,) = seen(story, at_s + 5)
    assert view.outcome is ViewOutcome.SHOWN and holds(view, 400) and holds(view, 390)
    assert (view.person_id, view.fix_ms) == ("p", T0_MS + round(at_s * 1000))
    for part in view.circles:
        assert part.lat_e7 % GRID_E7[0] == 0 == part.lon_e7 % GRID_E7[1] and part.radius_m % RADIUS_STEP_M == 0
        assert part.radius_m >= 50
    place = view.from_her
    assert place and place.least_m < 400 < place.greatest_m
    assert (place.direction, place.way_out) == ("N", "S")


def test_the_region_grows_with_the_age_of_the_position_and_is_unknown_after_3_minutes() -> None:
    story = story_with()
    at_s = come(story, 1_300, 500, from_s=1, mps=2)
    radii = []
    for age_s in (0, 60, 120, 170):
        story.at(at_s + age_s + 0.1, "phone", 0)
        (view,) = seen(story, at_s + age_s)
        assert view.outcome is ViewOutcome.SHOWN
        radii.append(view.circles[0].radius_m)
        assert holds(view, 500 - 2 * age_s)
    assert radii == sorted(radii) and radii[-1] > radii[0] + 100
    story.at(at_s + 181, "phone", 0)
    (view,) = seen(story, at_s + 181)
    assert view.outcome is ViewOutcome.UNKNOWN and view.circles == () and view.from_her is None


def test_he_may_be_with_her_if_the_region_holds_her() -> None:
    story = story_with()
    at_s = come(story, 1_300, 60, from_s=1, mps=2)
    (view,) = seen(story, at_s)
    assert view.from_her and (view.from_her.least_m, view.from_her.direction) == (0, "")
    assert view.from_her.way_out in ("S", "SE", "SW")


def test_a_jump_adds_the_place_before_it() -> None:
    story = story_with()
    at_s = come(story, 1_300, 300, from_s=1, mps=2)
    story.at(at_s + 15, "phone", 0)
    story.at(at_s + 15, "tag", 560)
    case = story.state.cases["case-1"].case
    found = her_map.possible_region(story.state, case, T0_MS + round((at_s + 16) * 1000))
    assert found and len(found.circles) == 2
    (view,) = seen(story, at_s + 16)
    assert view.outcome is ViewOutcome.SHOWN and holds(view, 300) and holds(view, 560)


# ── default deny ─────────────────────────────────────────────────────────────────────────────────────────────────────


def test_there_is_no_map_before_a_notice_and_none_after_its_end() -> None:
    story = story_with()
    at_s = come(story, 2_400, 1_400, from_s=1, mps=2)
    assert seen(story, at_s) == []
    at_s = come(story, 1_400, 500, from_s=at_s + 15, mps=2)
    assert [view.outcome for view in seen(story, at_s)] == [ViewOutcome.SHOWN]
    at_s = come(story, 500, 2_600, from_s=at_s + 15, mps=4)
    stay(story, 2_600, from_s=at_s + 15, until_s=at_s + 315)
    assert story.of(AlertKind.NOTICE_ENDED) and seen(story, at_s + 315) == []


def test_there_is_no_map_for_another_person_a_tag_or_an_unknown_device() -> None:
    both = [
        log_pb2.ProtectedTarget(person_id=name, device_ids=[device]) for name, device in (("p", "phone"), ("q", "q"))
    ]
    story = story_with(persons=both)
    story.at(0.5, "q", 9_000)
    at_s = come(story, 1_300, 400, from_s=1, mps=2)
    assert [view.person_id for view in seen(story, at_s)] == ["p"]
    for device_id in ("q", "tag", "nobody", ""):
        assert seen(story, at_s, device_id) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"notice_ground": notice_pb2.NOTICE_GROUND_UNSPECIFIED},
        {"exercise": exercise_pb2.DRILL},
        {"notice_ground": notice_pb2.NOTICE_GROUND_UNSPECIFIED, "police_must_check": True},
    ],
)
def test_there_is_no_map_without_a_ground_or_in_an_exercise(changes: dict[str, object]) -> None:
    story = story_with(**changes)
    at_s = come(story, 1_300, 60, from_s=1, mps=2)
    assert story.of(AlertKind.RING_ENTERED) and seen(story, at_s) == []


def test_an_amendment_that_takes_the_ground_or_drops_her_ends_the_map() -> None:
    changed: tuple[dict[str, object], ...] = ({"notice_ground": notice_pb2.NOTICE_GROUND_UNSPECIFIED}, {"persons": []})
    for changes in changed:
        story = story_with()
        at_s = come(story, 1_300, 400, from_s=1, mps=2)
        story.case(at_s + 1, "1", **({"notice_ground": JUDGMENT, "version": 2} | changes))
        assert seen(story, at_s + 2) == []


def test_the_end_of_the_order_ends_the_map_at_that_second() -> None:
    story = story_with(valid_until_ms=T0_MS + 600_000)
    at_s = come(story, 1_300, 400, from_s=1, mps=2)
    assert at_s < 590 and outcome(story, at_s) is ViewOutcome.SHOWN
    assert seen(story, 600) == []


# ── urgency, and his own life ────────────────────────────────────────────────────────────────────────────────────────


def test_a_location_needs_the_rule_of_urgency_and_a_region_that_begins_within_its_distance() -> None:
    walking, driving = story_with(), story_with()
    at_s = come(walking, 1_300, 950, from_s=1, mps=1.5)
    assert outcome(walking, at_s) is ViewOutcome.NOT_URGENT
    at_s = come(driving, 2_500, 940, from_s=1, mps=8)
    assert outcome(driving, at_s) is ViewOutcome.FAR


def test_a_place_counts_by_its_distance_and_not_by_speed_towards_it() -> None:
    story = story_with(places=[circle("home", 0, 0, 30)])
    at_s = come(story, 2_500, 900, from_s=1, mps=8)
    assert outcome(story, at_s) is ViewOutcome.FAR


def test_a_wearer_on_the_way_off_or_at_rest_is_shown_only_close_to_her() -> None:
    story = story_with()
    at_s = come(story, 1_300, 60, from_s=1, mps=2)
    at_s = come(story, 60, 200, from_s=at_s + 15, mps=2)
    assert outcome(story, at_s) is ViewOutcome.SHOWN
    at_s = come(story, 200, 560, from_s=at_s + 15, mps=2)
    assert outcome(story, at_s) is ViewOutcome.LEAVING
    at_s = stay(story, 560, from_s=at_s + 15, until_s=at_s + 500)
    assert outcome(story, at_s) is ViewOutcome.AT_REST

    close_by = story_with()
    at_s = come(close_by, 1_300, 150, from_s=1, mps=2)
    at_s = stay(close_by, 150, from_s=at_s + 15, until_s=at_s + 900)
    assert outcome(close_by, at_s) is ViewOutcome.SHOWN
    at_s = stay(close_by, 150, from_s=at_s + 15, until_s=at_s + 3_600)
    assert outcome(close_by, at_s) is ViewOutcome.AT_REST


def test_his_own_home_unit_is_never_on_the_map() -> None:
    story = story_with()
    own = story_with(presence_units=[unit("h", 150)])
    for each, expected in ((story, ViewOutcome.SHOWN), (own, ViewOutcome.AT_REST)):
        at_s = come(each, 1_300, 150, from_s=1, mps=2)
        assert outcome(each, at_s) is expected


# ── it decides nothing, and can be replayed ──────────────────────────────────────────────────────────────────────────


def test_views_change_no_state_and_are_the_same_from_a_checkpoint() -> None:
    story, unseen = story_with(), story_with()
    at_s = 1.0
    for each in (story, unseen):
        at_s = 1.0
        for metres in range(1_300, 100, -30):
            each.at(at_s, "phone", 0)
            each.at(at_s, "tag", metres)
            if each is story:
                her_map.views(each.state, "phone", T0_MS + round(at_s * 1000))
            at_s += 15
    assert codec.state_digest(story.state) == codec.state_digest(unseen.state)
    assert story.outputs == unseen.outputs
    restored = codec.decode(codec.encode(story.state))
    at_ms = T0_MS + round((at_s - 7) * 1000)
    views_now = her_map.views(story.state, "phone", at_ms)
    assert views_now and views_now == her_map.views(restored, "phone", at_ms)
    ground = her_map.ground_of(story.state, views_now[0])
    assert (ground.ground.value, ground.location_basis, ground.wearer_id) == ("TAG_15_2", "TAG_16_2_5", "w")


def test_the_direction_and_the_way_out_follow_eight_sectors() -> None:
    her = Fix(0, 0, "", *ecef_mm(LAT_E7, LON_E7), 5_000)
    for number, sector in enumerate(her_map.SECTORS):
        turn = math.radians(45 * number + 10)
        lat_e7, lon_e7 = place_e7(400 * math.cos(turn), 400 * math.sin(turn))
        place = her_map.from_her((ShownCircle(lat_e7, lon_e7, 100),), her)
        assert place.direction == sector
        assert place.way_out == her_map.SECTORS[(number + 4) % 8]
        assert (place.least_m, place.greatest_m) == (200, 600)


def test_near_her_home_while_she_is_elsewhere_he_is_shown_without_a_distance_from_her() -> None:
    story = story_with(places=[circle("home", 0, 0, 30)])
    for at_s in range(1, 600, 15):
        story.at(at_s, "phone", 0, 5_000)
        story.at(at_s, "tag", 1_300 - 2 * at_s)
    (view,) = seen(story, at_s)
    assert view.outcome is ViewOutcome.SHOWN and holds(view, 1_300 - 2 * at_s) and view.from_her is None
