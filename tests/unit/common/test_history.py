"""Budget of the readers of the history."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from services.common.errors import BudgetSpent
from services.common.priority import Limits, PriorityGate
from services.common.rpc import history
from services.common.rpc.history import HistoryBudget

OPEN = Limits(quiet_s=0.0, max_delay_s=3_600.0, slots=100)


def budget(quiet_share: float = history.QUIET_SHARE) -> tuple[PriorityGate, HistoryBudget]:
    gate = PriorityGate(history=OPEN)
    return gate, HistoryBudget(gate, quiet_share)


def burn(seconds: float) -> None:
    """Uses processor time."""
    until_s = time.thread_time() + seconds
    while time.thread_time() < until_s:
        pass


class Pages:
    """Pages that end when they are told to."""

    def __init__(self) -> None:
        self.began: list[str] = []
        self.may_end = asyncio.Event()

    def of(self, who: str) -> Callable[[], Awaitable[str]]:
        async def page() -> str:
            self.began.append(who)
            await self.may_end.wait()
            return who

        return page


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing announces the change
            await asyncio.sleep(0)


async def test_a_page_is_read_and_its_error_is_passed_on() -> None:
    _, reads = budget()

    async def answered() -> int:
        await asyncio.sleep(0)
        return 7

    async def failing() -> None:
        raise LookupError

    assert await reads.read("desk", answered) == 7
    with pytest.raises(LookupError):
        await reads.read("desk", failing)
    assert await reads.read("desk", answered) == 7
    assert reads.pages == 0


async def test_pages_wait_for_response_work() -> None:
    gate, reads = budget()
    pages = Pages()
    pages.may_end.set()
    with gate.response():
        reading = asyncio.create_task(reads.read("desk", pages.of("desk")))
        for _ in range(10):
            await asyncio.sleep(0)
        assert pages.began == []
    assert await reading == "desk"


async def test_an_identity_reads_a_bounded_number_of_pages_at_once() -> None:
    _, reads = budget()
    pages = Pages()
    readings = [
        asyncio.create_task(reads.read("greedy", pages.of("greedy"))) for _ in range(history.MAX_CALLS_OF_IDENTITY)
    ]
    await until(lambda: reads.pages == history.MAX_CALLS_OF_IDENTITY)
    with pytest.raises(BudgetSpent) as refused:
        await reads.read("greedy", pages.of("greedy"))
    assert refused.value.retry_after_s >= 1
    other = asyncio.create_task(reads.read("other", pages.of("other")))
    stream = asyncio.create_task(reads.read_in_stream("greedy", pages.of("greedy")))
    pages.may_end.set()
    assert await other == "other"
    assert await stream == "greedy"  # a stream that has begun isn't refused
    await asyncio.gather(*readings)


async def test_streams_of_an_identity_neither_refuse_nor_delay_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE_CONCURRENCY", 1)
    _, reads = budget(quiet_share=1e9)  # without pauses, so that the test is fast
    pages = Pages()
    streams = [
        asyncio.create_task(reads.read_in_stream("desk", pages.of("stream"))) for _ in range(2 * history.MAX_CALLS)
    ]
    await until(lambda: len(pages.began) == 1)
    calls = [asyncio.create_task(reads.read("desk", pages.of("call"))) for _ in range(history.MAX_CALLS_OF_IDENTITY)]
    await until(lambda: reads.pages == len(streams) + len(calls))
    pages.may_end.set()
    await asyncio.gather(*streams, *calls)
    assert pages.began == ["stream", *["call"] * len(calls), *["stream"] * (len(streams) - 1)]
    assert reads.pages == 0


async def test_all_identities_together_read_a_bounded_number_of_pages_at_once() -> None:
    _, reads = budget()
    pages = Pages()
    readings = [
        asyncio.create_task(reads.read(f"reader-{n}", pages.of(f"reader-{n}"))) for n in range(history.MAX_CALLS)
    ]
    await until(lambda: reads.pages == history.MAX_CALLS)
    with pytest.raises(BudgetSpent):
        await reads.read("late", pages.of("late"))
    assert len(pages.began) <= history.PAGE_CONCURRENCY
    for reading in readings:
        reading.cancel()
    await asyncio.gather(*readings, return_exceptions=True)
    pages.may_end.set()
    assert await reads.read("late", pages.of("late")) == "late"  # cancelled pages left nothing behind


async def test_a_page_that_waits_too_long_for_its_turn_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_WAIT_S", 0.01)
    _, reads = budget()
    pages = Pages()
    slow = [asyncio.create_task(reads.read(f"{n}", pages.of(f"{n}"))) for n in range(history.PAGE_CONCURRENCY)]
    await until(lambda: len(pages.began) == history.PAGE_CONCURRENCY)
    with pytest.raises(BudgetSpent):
        await reads.read("late", pages.of("late"))
    pages.may_end.set()
    await asyncio.gather(*slow)
    assert reads.pages == 0


async def test_pages_are_spread_by_their_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "PAGE_CONCURRENCY", 1)
    _, reads = budget(quiet_share=1e9)  # without pauses, so that the test is fast
    pages: Counter[str] = Counter()
    stop = asyncio.Event()

    async def reader(who: str, page_s: float) -> None:
        async def page() -> None:
            burn(page_s)
            await asyncio.sleep(0)

        while not stop.is_set():
            await reads.read(who, page)
            pages[who] += 1
            if pages["greedy"] == 40:
                stop.set()

    # Each time that the modest reader asks, it goes before the three waiting pages of the greedy one.
    await asyncio.gather(*(reader("greedy", 0.01) for _ in range(3)), reader("modest", 0.002))
    assert pages["modest"] > 0.8 * pages["greedy"]


async def test_pages_leave_the_larger_part_of_the_core_to_response_work() -> None:
    gate, reads = budget()

    async def page() -> None:
        burn(0.01)

    with gate.response():
        pass
    began_s = asyncio.get_running_loop().time()
    for _ in range(4):
        await reads.read("desk", page)
    # Each of the first three pages is followed by a pause of at least nine times its cost.
    assert asyncio.get_running_loop().time() - began_s > 3 * 0.01 / history.BUSY_SHARE * 0.9


async def test_a_cancelled_page_ends() -> None:
    _, reads = budget()
    pages = Pages()
    reading = asyncio.create_task(reads.read("desk", pages.of("desk")))
    await until(lambda: bool(pages.began))
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    assert reads.pages == 0


async def test_a_page_that_is_cancelled_in_the_turn_of_its_admission_leaves_nothing_behind() -> None:
    _, reads = budget()
    pages = Pages()
    running = [asyncio.create_task(reads.read(f"{n}", pages.of(f"{n}"))) for n in range(history.PAGE_CONCURRENCY)]
    await until(lambda: len(pages.began) == history.PAGE_CONCURRENCY)
    waiting = asyncio.create_task(reads.read("waiting", pages.of("waiting")))
    await until(lambda: reads.pages == history.PAGE_CONCURRENCY + 1)
    waiting.cancel()
    for page in running:
        page.cancel()  # their ends look for the next page in the same turn
    await asyncio.gather(waiting, *running, return_exceptions=True)
    pages.may_end.set()
    assert await reads.read("next", pages.of("next")) == "next"
    assert reads.pages == 0
