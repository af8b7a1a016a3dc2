"""Runs the tasks of a service until SIGTERM, SIGINT or a failure, and then cancels them. Completes work whose caller has gone."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from services.common.observability.health import HEART
from services.common.observability.telemetry import logger

T = TypeVar("T")
YOUNG_OBJECTS = 20_000
"""Number of new objects, less those that were freed, after which Python looks for cycles among them. Few objects of the services are in
cycles, so little waits."""
STOP_TRIES = 3
"""Maximum number of cancellations of a task, one a second. Libraries can lose a cancellation (asyncio.wait_for does on Python 3.11)."""


async def completed(work: Awaitable[T]) -> T:
    """Completes `work` even if the caller is cancelled, for example because it disconnects. So no change stops halfway.

    The failure of work whose caller was cancelled is logged, since nobody else sees it.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_note_failure)
        raise


def _note_failure(task: asyncio.Future[T]) -> None:
    if not task.cancelled() and (error := task.exception()):
        logger().error("work_failed_unasked", reason=getattr(error, "reason", type(error).__name__))


@asynccontextmanager
async def outlasting(*work: Awaitable[None]) -> AsyncIterator[tuple[Awaitable[None], ...]]:
    """Runs tasks until the block ends, for tasks that a server still needs during its last calls.

    Pass the yielded awaitables to `until_stopped`, which then notices when a task ends or fails, but can't cancel the task. Open the
    server inside this block, so that the server stops before the tasks.
    """
    tasks = [asyncio.ensure_future(task) for task in work]
    try:
        yield tuple(asyncio.shield(task) for task in tasks)
    finally:
        await _end(tasks)


async def until_stopped(*work: Awaitable[None]) -> None:
    """Runs the tasks of a service until SIGTERM or SIGINT, then cancels them.

    A task that fails ends the service with its error. A task that returns ends it with RuntimeError.
    """
    _avoid_pauses()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    waiter = asyncio.ensure_future(stop.wait())
    tasks = [asyncio.ensure_future(task) for task in work]
    try:
        with HEART.watching_loop():
            done, _ = await asyncio.wait([waiter, *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in done - {waiter}:
            task.result()
            raise RuntimeError("a task of the service returned, though it must run until the service stops")
        logger().info("stopping")
    finally:
        await _end([waiter, *tasks])


def _avoid_pauses() -> None:
    """Excludes what is loaded at the start from garbage collection: it lives as long as the process, and each scan of it would stop an
    offer for a tenth of a second. Scans young objects seldom: Python's default is several times for each request."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG_OBJECTS)


async def _end(tasks: Sequence[asyncio.Future[Any]]) -> None:
    left = set(tasks)
    for _ in range(STOP_TRIES):
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=1.0)
        if not left:
            return
    logger().error("tasks_did_not_end", count=len(left))
