"""Orders without an end (Stalking Punishment Act 17-7), and the order that takes over from one."""

from __future__ import annotations

import pytest

from services.geofence.domain import codec
from services.geofence.domain.demands import AlertKind
from tests.support.geofence.stories import T0_MS, Story

DAY_S = 86_400


def ms(at_s: float) -> int:
    return T0_MS + round(at_s * 1000)


def at_her_door(story: Story, from_s: int, to_s: int) -> None:
    for at_s in range(from_s, to_s, 15):
        story.at(at_s, "phone", 0)
        story.at(at_s, "tag", 10)


def test_an_order_without_an_end_is_enforced_however_late_and_survives_checkpoints() -> None:
    story = Story()
    story.case(0, valid_until_ms=0)
    for day in range(1, 400, 50):
        story.tick(day * DAY_S)
        story.state = codec.decode(codec.encode(story.state))
    assert story.state.cases["case-1"].case.valid_until_ms is None
    at_her_door(story, 400 * DAY_S, 400 * DAY_S + 60)
    assert 100_000 in [alert.ring_mm for alert in story.of(AlertKind.RING_ENTERED)]
    story.case(400 * DAY_S + 60, version=2, valid_until_ms=ms(400 * DAY_S + 50))
    assert [alert.ring_mm for alert in story.of(AlertKind.RING_CLEARED)] == [100_000, 1_000_000, 2_000_000]
    assert story.alerts[-1].incident_ends


@pytest.mark.parametrize("names", [("1", "2"), ("2", "1")])
def test_the_order_that_takes_over_demands_its_response_before_the_other_one_is_cleared(names: tuple[str, str]) -> None:
    interim, decision = names
    story = Story()
    story.case(0, interim, valid_until_ms=0)
    at_her_door(story, 0, 300)
    story.case(300, decision, valid_from_ms=ms(600))
    story.case(300, interim, version=2, valid_until_ms=ms(600))
    at_her_door(story, 300, 900)
    ring = [(a.order_id, a.kind.value, (a.decided_at_ms - T0_MS) // 1000) for a in story.alerts if a.ring_mm == 100_000]
    assert ring == [
        (f"order-{interim}", "RING_ENTERED", 0),
        (f"order-{decision}", "RING_ENTERED", 600),
        (f"order-{interim}", "RING_CLEARED", 600),
    ]
    assert len({alert.incident_id for alert in story.alerts}) == 1
    assert not any(alert.incident_ends for alert in story.alerts)
