"""A wearer who jumps away may still be at the previous position and go on from there, whichever direction the jump takes."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind
from services.geofence.domain.demands import AlertKind
from tandem.common.v1 import geometry_pb2
from tests.support.geofence.stories import T0_MS, Story, circle
from tests.support.geofence.travels import Whole

WAYS = {"across": (-8000.0, 0.0), "away": (8000.0, 0.0), "aside": (0.0, 8000.0)}


def notified_near(story: Story) -> list[float]:
    """Seconds as of which the desks were notified of a possible presence after a jump away."""
    emitted = [alert for alert in story.of(AlertKind.UNKNOWN_NEAR) if alert.anomaly is AnomalyKind.JUMP]
    return [(alert.at_ms - T0_MS) / 1000 for alert in emitted]


def walk_and_jump(story: Story, way: str, is_person: bool, restored_at: int | None = None) -> list[float]:
    """He walks up to 185 m from her at a third of a metre a second, then his tag is 8 km off."""
    rings = [geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)]
    changes: dict[str, object] = {} if is_person else {"persons": [], "places": [circle("home", 0, 0, radius_m=0.001)]}
    story.case(0, "1", rings=rings, **changes)
    for i in range(16):
        if is_person:
            story.at(i * 15, "phone", 0)
        here = (240 - i * 5, 0) if i < 12 else (WAYS[way][0] + 5 * i, WAYS[way][1])
        story.at(i * 15, "tag", *here)
        if i == restored_at:
            story.state = codec.decode(codec.encode(story.state))
    return notified_near(story)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_person", (True, False))
def test_a_jump_is_notified_whichever_direction_it_takes(way: str, is_person: bool) -> None:
    emitted = walk_and_jump(Story(), way, is_person)
    assert emitted == [210]  # 45 s on foot from 185 m
    assert emitted == walk_and_jump(Whole(), way, is_person)
    assert emitted == walk_and_jump(Story(), way, is_person, restored_at=13)


@pytest.mark.parametrize("way", ((-30_000.0, 0.0), (30_000.0, 0.0), (0.0, 30_000.0)))
def test_a_car_that_may_have_gone_on_is_notified_from_beyond_the_widest_ring(way: tuple[float, float]) -> None:
    found = []
    for story in (Story(), Whole()):
        story.case()
        for i in range(15):
            here = (2040 + (11 - i) * 650, 0) if i < 12 else (way[0] + 5 * i, way[1])
            story.at(i * 50, "tag", *here)
            if i < 13:
                story.at(i * 50 + 0.5, "phone", 0)
        found.append(notified_near(story))
    assert found == [[700], [700]]


def test_a_wearer_is_assumed_to_go_on_for_three_minutes_only() -> None:
    """His tag was silent for an hour, 3 km away. He could have come on foot, and the silence has notified that."""
    story = Story()
    story.case()
    for i in range(6):
        story.at(i * 15, "tag", 3000)
        story.at(i * 15 + 1, "phone", 0)
    for i in range(240, 243):
        story.at(i * 15, "phone", 0)
        story.at(i * 15 + 1, "tag", 60_000)
    assert notified_near(story) == []
