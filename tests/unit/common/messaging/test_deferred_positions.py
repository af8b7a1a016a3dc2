"""A deferred position: effects are durable at once, and no write of it replaces a position that the reader stored afterwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

from services.common.errors import Unavailable
from services.common.messaging.cursors import StreamWentBack
from services.common.messaging.positions import DeferredPosition

WENT_BACK = StreamWentBack(stream="ALERTS", sequence=1, found=None, last=0)


class Table:
    """A table that keeps each write: its effects and its position. It refuses and holds up writes as it is told to."""

    def __init__(self) -> None:
        self.writes: list[tuple[tuple[str, ...], int]] = []
        self.refusals = 0
        self.open = asyncio.Event()
        self.open.set()
        self.begun, self._changed = asyncio.Event(), asyncio.Event()

    async def store(self, effects: Sequence[str], position: int) -> None:
        self.begun.set()
        await self.open.wait()
        if self.refusals:
            self.refusals -= 1
            raise Unavailable("the database is away")
        self.writes.append((tuple(effects), position))
        self._changed.set()

    async def until(self, position: int) -> None:
        """Waits until a position is stored."""
        async with asyncio.timeout(60):
            while position not in [stored for _, stored in self.writes]:
                self._changed.clear()
                await self._changed.wait()


@asynccontextmanager
async def kept(deferred: DeferredPosition[str, int]) -> AsyncIterator[None]:
    task = asyncio.create_task(deferred.keep())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_a_position_with_effects_replaces_the_deferred_one() -> None:
    table = Table()
    deferred = DeferredPosition(table.store, 0.0)
    await deferred.put((), 1)
    assert table.writes == []
    await deferred.put(["an alert"], 2)
    assert table.writes == [(("an alert",), 2)]
    async with kept(deferred):
        await deferred.put((), 3)
        await table.until(3)
    assert table.writes == [(("an alert",), 2), ((), 3)]


async def test_effects_do_not_wait_for_a_refused_write_of_a_deferred_position_and_it_does_not_follow_them() -> None:
    table = Table()
    deferred = DeferredPosition(table.store, 0.0)
    async with kept(deferred):
        table.refusals = 1
        await deferred.put((), 1)
        await table.begun.wait()
        await deferred.put(["an alert"], 2)
        await deferred.put((), 3)
        await table.until(3)
    assert table.writes == [(("an alert",), 2), ((), 3)]


async def test_after_the_stream_went_back_no_position_of_its_lost_messages_is_stored() -> None:
    table = Table()
    deferred = DeferredPosition(table.store, 0.0)
    await deferred.put((), 9)
    await deferred.forget(WENT_BACK)
    async with kept(deferred):
        await deferred.put((), 4)
        await table.until(4)
    assert table.writes == [((), 4)]


async def test_a_write_under_way_ends_before_the_reader_resumes() -> None:
    table = Table()
    deferred = DeferredPosition(table.store, 0.0)
    async with kept(deferred):
        table.open.clear()
        await deferred.put((), 9)
        await table.begun.wait()
        forgetting = asyncio.create_task(deferred.forget(WENT_BACK))
        table.open.set()
        await forgetting
        assert table.writes == [((), 9)]
        await deferred.put(["an alert of the rebuilt stream"], 1)
    assert table.writes[-1] == (("an alert of the rebuilt stream",), 1)
