"""One heap of moments, however often the moment of a key changes."""

from __future__ import annotations

import asyncio
import random

from services.common.clock import SPARE, MeshClock, Moments


def test_the_keys_are_due_in_the_order_of_their_last_moments() -> None:
    moments: Moments[str] = Moments()
    for key, at_ms in (("a", 30), ("b", 10), ("c", 20), ("a", 5), ("b", 40), ("c", 20)):
        moments.set(key, at_ms)
    assert moments.next_ms() == 5
    assert moments.pop_due(20) == ["a", "c"]
    assert (moments.next_ms(), len(moments)) == (40, 1)
    moments.drop("b")
    moments.drop("unknown")
    assert moments.next_ms() is None and moments.pop_due(1_000) == []


def test_a_moment_that_moves_to_and_fro_fires_once() -> None:
    moments: Moments[str] = Moments()
    for at_ms in (10, 20, 10, 20, 10):
        moments.set("a", at_ms)
    assert moments.pop_due(100) == ["a"]


def test_superseded_moments_take_no_room() -> None:
    moments, rng = Moments[int](), random.Random(1)
    expected: dict[int, int] = {}
    for _ in range(20_000):
        key, at_ms = rng.randrange(50), rng.randrange(1_000_000)
        moments.set(key, at_ms)
        expected[key] = at_ms
        assert len(moments._heap) <= 2 * len(expected) + SPARE + 1
    assert moments.pop_due(1_000_000) == sorted(expected, key=lambda key: expected[key])


async def test_sleep_ends_with_the_wake_up_the_moment_or_the_given_time() -> None:
    clock, wake = MeshClock(), asyncio.Event()
    moments: Moments[str] = Moments()
    assert await moments.sleep(wake, clock, within_s=0.01), "nobody has a moment"
    assert not await moments.sleep(wake, clock, within_s=0.0)
    wake.set()
    assert await moments.sleep(wake, clock) and wake.is_set()
    moments.set("later", clock.now_ms() + 3_600_000)
    assert await moments.sleep(wake, clock)
    wake.clear()
    async with asyncio.timeout(60):
        assert await moments.sleep(wake, clock), "the clock is looked at from time to time"
    moments.set("due", clock.now_ms())
    assert not await moments.sleep(wake, clock)
