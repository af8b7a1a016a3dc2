"""The thread of short transactions: functions run in their order, in the caller's context, and their outcomes reach the caller."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Iterator
from functools import partial

import pytest

from services.common.storage.visits import VisitThread

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("name", default="nobody")


@pytest.fixture
def thread() -> Iterator[VisitThread]:
    with VisitThread() as running:
        yield running


async def test_functions_run_in_their_order_in_one_other_thread(thread: VisitThread) -> None:
    order, threads = list[int](), set[int]()

    def work(number: int) -> int:
        order.append(number)
        threads.add(threading.get_ident())
        return 10 * number

    futures = [thread.run(partial(work, number)) for number in range(5)]
    assert await asyncio.gather(*futures) == [0, 10, 20, 30, 40]
    assert order == [0, 1, 2, 3, 4] and len(threads) == 1 and threading.get_ident() not in threads


async def test_a_function_has_its_callers_context_and_its_error_is_the_callers(thread: VisitThread) -> None:
    NAME.set("caller")
    assert await thread.run(NAME.get) == "caller"

    def fail() -> None:
        raise KeyError("no such row")

    with pytest.raises(KeyError, match="no such row"):
        await thread.run(fail)
    assert await thread.run(lambda: "next") == "next"


async def test_the_end_waits_for_the_functions_before_it_and_nobody_misses_a_cancelled_one() -> None:
    go, done = threading.Event(), list[str]()

    def work() -> None:
        go.wait()
        done.append("first")

    with VisitThread() as thread:
        cancelled = thread.run(work)
        last = thread.run(lambda: done.append("last"))
        cancelled.cancel()
        go.set()
    assert done == ["first", "last"]
    await last
    assert cancelled.cancelled()


def test_an_outcome_after_the_end_of_its_loop_harms_nobody() -> None:
    go = threading.Event()

    async def leave(thread: VisitThread) -> None:
        thread.run(go.wait)

    with VisitThread() as thread:
        asyncio.run(leave(thread))
        go.set()
        assert asyncio.run(answer(thread)) == "works"


async def answer(thread: VisitThread) -> str:
    return await thread.run(lambda: "works")
