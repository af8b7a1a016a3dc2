"""The end of gRPC streams that nobody reads. A method can't end one by itself: it waits until its answer fits into the buffers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from typing import Any

import grpc.aio

from services.common.rpc.errors import TooMuchInProgress
from services.common.rpc.statuses import abort

MAX_UNREAD_S = 20.0
"""Time after which a stream is ended if its peer reads nothing of it, seconds. Until then it uses up what its caller may have."""
STATUS_WITHIN_S = 5.0
"""Maximum time to send the final status of an unread stream, seconds. After it the call is given up."""


class Unread(TooMuchInProgress):
    """The peer read nothing of a stream for MAX_UNREAD_S."""

    def __init__(self) -> None:
        super().__init__(
            f"the stream was ended, as nothing of it was read for {MAX_UNREAD_S:g} s: open it once more and read its answers",
            retry_after_s=5.0,
        )


async def write_all(answers: AsyncGenerator[Any, None], context: grpc.aio.ServicerContext[Any, Any]) -> None:
    """Writes the answers of a stream, and closes them at the end. Raises Unread if an answer waits for MAX_UNREAD_S."""
    watch = _Watch()
    try:
        async with aclosing(answers):
            async for answer in answers:
                watch.begin()
                await context.write(answer)
                watch.end()
    except asyncio.CancelledError:
        if watch.has_expired():
            raise Unread from None
        raise
    finally:
        watch.stop()


async def abort_unread(context: grpc.aio.ServicerContext[Any, Any], error: Unread) -> None:
    """Ends an unread stream. Its status waits behind the unread answers, so it may not get out, and the call is given up.

    gRPC keeps such a call until its peer reads or the connection ends, at the latest with the greatest age of a connection.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(STATUS_WITHIN_S):
            await abort(context, error)
    raise asyncio.CancelledError


class _Watch:
    """Cancels the current task if an answer is written for too long. It costs an answer two assignments, and no timer of its own."""

    def __init__(self) -> None:
        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        self._since_s: float | None = None
        """Loop time at which the answer that is being written was handed over, seconds; None between two answers."""
        self._timer = self._loop.call_later(MAX_UNREAD_S, self._check)
        self._has_cancelled = False

    def begin(self) -> None:
        """Notes that an answer is handed over."""
        self._since_s = self._loop.time()

    def end(self) -> None:
        """Notes that it fitted into the buffers."""
        self._since_s = None

    def has_expired(self) -> bool:
        """Whether the task's cancellation is that of this watch. Then the task isn't cancelled any more."""
        if self._has_cancelled and self._task:
            self._task.uncancel()
        return self._has_cancelled

    def stop(self) -> None:
        """Ends the watch."""
        self._timer.cancel()

    def _check(self) -> None:
        waits_s = 0.0 if self._since_s is None else self._loop.time() - self._since_s
        if waits_s < MAX_UNREAD_S:
            self._timer = self._loop.call_later(MAX_UNREAD_S - waits_s, self._check)
        elif self._task is not None:
            self._has_cancelled = True
            self._task.cancel()
