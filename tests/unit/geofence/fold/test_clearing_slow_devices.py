"""Rings are cleared by devices that report more rarely than each 3 minutes, as far as the speed bound shows where nobody was."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand
from services.geofence.domain.geometry import PERSON
from services.geofence.domain.kinematics import rings
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.rings import Sides
from services.geofence.domain.kinematics.track import Track
from tests.support.geofence.stories import Story, circle

PLACES: dict[str, Any] = {"places": [circle("home", 0, 0, radius_m=1)]}
MPS = 14


def visit(away_m: float, *, tag_s: int, phone_s: int = 60, **changes: Any) -> Story:
    """The wearer stands at the door, drives away and stays at a distance; both sides report at intervals of their own."""
    story = Story()
    story.case(-4000, **changes)
    reports = [(at_s, "phone") for at_s in range(-3000, 9000, phone_s)]
    reports += [(at_s, "tag") for at_s in range(-3000, 9000, tag_s)]
    for at_s, device_id in sorted(reports):
        story.at(at_s, device_id, 0 if device_id == "phone" else 60 if at_s <= 0 else min(away_m, 10 * at_s))
    return story


def cleared(story: Story) -> set[int]:
    return {alert.ring_mm // 1000 for alert in story.of(AlertKind.RING_CLEARED)}


@pytest.mark.parametrize("interval_s", [15, 170, 181, 240, 400, 600])
@pytest.mark.parametrize("places", [{}, PLACES])
def test_a_slow_tag_clears_all_rings(interval_s: int, places: dict[str, Any]) -> None:
    story = visit(5000, tag_s=interval_s, **places)
    assert cleared(story) == {100, 1000, 2000} and not story.state.incidents


@pytest.mark.parametrize("interval_s", [181, 240, 400, 600])
def test_a_slow_phone_clears_all_rings(interval_s: int) -> None:
    story = visit(5000, tag_s=15, phone_s=interval_s)
    assert cleared(story) == {100, 1000, 2000} and not story.state.incidents


def test_two_slow_devices_clear_all_rings() -> None:
    assert cleared(visit(5000, tag_s=400, phone_s=240)) == {100, 1000, 2000}


@pytest.mark.parametrize(
    ("away_m", "interval_s", "is_cleared"), [(600, 15, True), (600, 240, False), (1100, 240, True)]
)
def test_a_ring_stays_entered_if_the_wearer_can_have_come_back_within_the_last_minute(
    away_m: float, interval_s: int, is_cleared: bool
) -> None:
    story = visit(away_m, tag_s=interval_s, **PLACES)
    assert (100 in cleared(story)) is is_cleared


def test_a_ring_that_sends_nobody_is_cleared_by_a_line() -> None:
    story = visit(1300, tag_s=240, **PLACES)
    assert cleared(story) == {100, 1000}


def test_a_gap_that_the_device_does_not_keep_clears_nothing() -> None:
    story = Story()
    story.case(-400, **PLACES)
    for at_s in range(-300, 1, 15):
        story.at(at_s, "tag", 60)
    for at_s in (240, 480):
        story.at(at_s, "tag", 5000)
        assert not cleared(story)
    story.at(720, "tag", 5000)  # three gaps show that the tag keeps this interval
    assert cleared(story) == {100, 1000, 2000}
    assert [alert.demand for alert in story.of(AlertKind.RING_CLEARED)] == [Demand.RECORD] * 3


# ── the bound ────────────────────────────────────────────────────────────────────────────────────────────────────────


def track(*fixes: tuple[float, float, float]) -> Track:
    """A track with a fix for each second, x and y in metres; earlier reports each 400 s show the kept interval."""
    first = fixes[0]
    early = [(first[0] - 400 * i, first[1], first[2]) for i in range(5, 0, -1)]
    result = Track()
    for at_s, x_m, y_m in (*early, *fixes):
        at_ms = round(at_s * 1000)
        result.add(Fix(at_ms, at_ms, f"{at_ms}", round(x_m * 1000), round(y_m * 1000), 0, 0))
    return result


def is_beyond(sides: Sides, radius_m: float, from_s: float, to_s: float, mps: int | None = MPS) -> bool:
    return rings.is_known_beyond(
        sides, PERSON, round(radius_m * 1000), from_ms=round(from_s * 1000), to_ms=round(to_s * 1000), mps=mps
    )


def test_over_a_whole_gap_nobody_comes_nearer_than_half_the_way_to_spare() -> None:
    sides = Sides(track((0, 2000, 0), (200, 2000, 0)), None)
    assert is_beyond(sides, 599, 0, 200) and not is_beyond(sides, 601, 0, 200)
    assert is_beyond(sides, 1159, 140, 200) and not is_beyond(sides, 1161, 140, 200), "the last minute alone"
    assert is_beyond(sides, 1999, 0, 200, mps=None), "a line"


def test_both_sides_may_have_moved_in_their_gaps() -> None:
    wearer, phone = track((0, 6000, 0), (200, 6000, 0)), track((0, 0, 0), (200, 0, 0))
    assert is_beyond(Sides(wearer, phone), 3199, 0, 200) and not is_beyond(Sides(wearer, phone), 3201, 0, 200)
    known = track(*((at_s, 0, 0) for at_s in range(0, 201, 20)))
    assert is_beyond(Sides(wearer, known), 4599, 0, 200) and not is_beyond(Sides(wearer, known), 4601, 0, 200)


def test_an_unknown_stretch_is_no_proof() -> None:
    assert not is_beyond(Sides(track((0, 90_000, 0), (600, 90_000, 0)), None), 100, 0, 600), "longer than it keeps"
    single = track((0, 90_000, 0))
    assert not is_beyond(Sides(single, None), 100, 0, 60), "after the newest fix"
    assert not is_beyond(Sides(single, None), 100, -3000, 0), "before the oldest fix"


def test_a_wearer_who_is_known_beyond_has_no_way_within() -> None:
    rng, proofs = random.Random(5), 0
    for _ in range(3000):
        start, end = ((rng.uniform(-3000, 3000), rng.uniform(-3000, 3000)) for _ in range(2))
        gap_s, radius_m = rng.uniform(181, 430), rng.uniform(50, 2000)
        from_s = rng.uniform(0, gap_s - 1)
        to_s = rng.uniform(from_s, gap_s)
        sides = Sides(track((0, *start), (gap_s, *end)), None)
        if not is_beyond(sides, radius_m, from_s, to_s):
            continue
        proofs += 1
        for _ in range(
            60
        ):  # places that the wearer could reach from the first fix and leave in time for the second one
            at_s, angle = rng.uniform(from_s, to_s), rng.uniform(0, 2 * math.pi)
            within = (radius_m * math.cos(angle), radius_m * math.sin(angle))
            assert math.dist(start, within) > MPS * at_s or math.dist(end, within) > MPS * (gap_s - at_s)
    assert proofs > 300
