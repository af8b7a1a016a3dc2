"""Work that is tried again until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError

RETRY_S = 0.5
T = TypeVar("T")


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, tried again until it succeeds or fails for good."""
    while True:
        try:
            return await work()
        except RetryableError as error:
            logger().warning("work_retried", reason=error.reason)
            await asyncio.sleep(RETRY_S)
