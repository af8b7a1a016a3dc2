"""Retries of work that fails temporarily."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError

RETRY_S = 0.5
T = TypeVar("T")


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`. Retries every RETRY_S seconds after a RetryableError; any other error is raised."""
    while True:
        try:
            return await work()
        except RetryableError as error:
            logger().warning("work_retried", reason=error.reason)
            await asyncio.sleep(RETRY_S)
