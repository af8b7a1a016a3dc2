"""Panics under way: one of each sender at a time, and each once however often it is repeated meanwhile."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import TooMuchInProgress, Unavailable
from services.common.panic_lane import MAX_OF_SENDER, PanicLane


class Slow:
    """Work that waits until it is let go on, and notes what has begun."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.goes_on = asyncio.Event()
        self.lane = PanicLane[str]()

    def send(self, sender: str, panic: str) -> asyncio.Task[str]:
        async def work() -> str:
            self.begun.append(f"{sender} {panic}")
            await self.goes_on.wait()
            return f"{panic} stored"

        return asyncio.ensure_future(self.lane.send(sender, panic, work))


async def turns() -> None:
    """Lets all tasks get as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_repetition_has_the_outcome_of_the_first_and_another_panic_has_its_turn() -> None:
    slow = Slow()
    sent = [slow.send("hers", "first"), slow.send("hers", "first"), slow.send("hers", "second")]
    others = slow.send("other", "first")
    await turns()
    assert slow.begun == ["hers first", "other first"]
    slow.goes_on.set()
    assert await asyncio.gather(*sent, others) == ["first stored", "first stored", "second stored", "first stored"]
    assert slow.begun == ["hers first", "other first", "hers second"]
    assert await slow.send("hers", "first") == "first stored" and len(slow.begun) == 4, "what has ended is sent again"


async def test_a_panic_goes_on_without_its_caller_and_for_the_one_that_repeated_it() -> None:
    slow = Slow()
    first, repeated = slow.send("hers", "panic"), slow.send("hers", "panic")
    await turns()
    first.cancel()
    await turns()
    slow.goes_on.set()
    assert await repeated == "panic stored" and slow.begun == ["hers panic"]


async def test_a_failure_is_that_of_all_repetitions_and_of_no_other_panic() -> None:
    lane, fails = PanicLane[str](), asyncio.Event()

    async def away() -> str:
        await fails.wait()
        raise Unavailable("the log doesn't answer")

    async def works() -> str:
        return "stored"

    failing = [asyncio.ensure_future(lane.send("hers", "first", away)) for _ in range(2)]
    await turns()
    other = asyncio.ensure_future(lane.send("hers", "second", works))
    await turns()
    fails.set()
    for sent in failing:
        with pytest.raises(Unavailable):
            await sent
    assert await other == "stored"


async def test_what_one_sender_may_have_under_way_is_bounded_and_no_other_sender_notices() -> None:
    slow = Slow()
    sent = [slow.send("flood", str(number)) for number in range(MAX_OF_SENDER)]
    await turns()
    with pytest.raises(TooMuchInProgress, match="send this one again later"):
        await slow.send("flood", "one more")
    hers, repeated = slow.send("hers", "panic"), slow.send("flood", "0")
    await turns()
    assert slow.begun == ["flood 0", "hers panic"]
    slow.goes_on.set()
    assert await hers == "panic stored" and await repeated == "0 stored"
    await asyncio.gather(*sent)
