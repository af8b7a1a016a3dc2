"""Retries of work that fails temporarily, and the delays between them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError, TandemError

T = TypeVar("T")
_MAX_DOUBLINGS = 64
"""Maximum number of doublings, so that the power doesn't overflow. Every maximum delay is reached long before."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Delays between retries: each is twice the one before, up to a maximum."""

    first_s: float
    """Delay before the first retry, seconds."""
    last_s: float
    """Maximum delay, seconds."""

    def delay_s(self, retries: int) -> float:
        """Delay before the next retry, seconds. `retries` is the number of retries so far, 0 before the first."""
        return min(self.first_s * 2.0 ** min(retries, _MAX_DOUBLINGS), self.last_s)


def every(delay_s: float) -> Backoff:
    """Backoff with the same delay before each retry, seconds."""
    return Backoff(delay_s, delay_s)


RETRY = every(0.5)
"""Default delay between retries."""


async def retried(
    work: Callable[[], Awaitable[T]],
    backoff: Backoff = RETRY,
    *,
    on: type[TandemError] | tuple[type[TandemError], ...] = RetryableError,
    event: str = "work_retried",
    level: int = logging.WARNING,
    **fields: object,
) -> T:
    """Runs `work` until it succeeds, and returns its result. Retries only after errors of the types in `on`; any other error is raised.

    Each failure is logged as `event` with its reason and `fields`.
    """
    retries = 0
    while True:
        try:
            return await work()
        except on as error:
            logger().log(level, event, **fields, reason=error.reason)
            await asyncio.sleep(backoff.delay_s(retries))
            retries += 1
