"""Secondary writes of a leg share transactions, and a refused transaction is the error of each of its writes."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

import pytest
from sqlalchemy import Connection

from services.common.errors import Unavailable
from services.dispatch.leg import record
from services.dispatch.leg.record import SecondaryWrite, SecondaryWrites


class Commits:
    """Counts the writes of each transaction, and can refuse transactions."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.refuses = False

    async def commit(self, writes: Sequence[SecondaryWrite]) -> None:
        self.sizes.append(len(writes))
        if self.refuses:
            raise Unavailable("the test refuses")
        for write in writes:
            write.then()


def nothing(_: Connection) -> None:
    """Writes nothing."""


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "SECONDARY_COALESCE_S", 0)
    monkeypatch.setattr(record, "SECONDARY_INTERVAL_S", 0)


async def test_writes_that_come_together_share_a_transaction_and_keep_their_order() -> None:
    commits, order = Commits(), list[int]()
    writes = SecondaryWrites(commits.commit)
    await asyncio.gather(*(writes.add(nothing, partial(order.append, number)) for number in range(5)))
    assert (commits.sizes, order) == ([5], [0, 1, 2, 3, 4])
    await writes.add(nothing)
    assert commits.sizes == [5, 1]
    await writes.close()


async def test_a_refused_transaction_is_the_error_of_each_write_and_the_next_one_works() -> None:
    commits = Commits()
    writes, commits.refuses = SecondaryWrites(commits.commit), True
    errors = await asyncio.gather(*(writes.add(nothing) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in errors] == [Unavailable] * 3
    commits.refuses = False
    await writes.add(nothing)
    assert commits.sizes == [3, 1]
    await writes.close()


async def test_a_caller_that_gives_up_harms_no_other() -> None:
    commits = Commits()
    writes = SecondaryWrites(commits.commit)
    gone, stays = asyncio.ensure_future(writes.add(nothing)), asyncio.ensure_future(writes.add(nothing))
    await asyncio.sleep(0)
    gone.cancel()
    await stays
    assert commits.sizes == [2]
    await writes.close()
