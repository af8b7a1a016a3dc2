"""Retries of work that fails temporarily, and the delays between them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypeVar

from services.common.errors import RetryableError, TandemError
from services.common.observability.outages import Outages

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
_OUTAGES: dict[str, Outages] = {}
"""Outages of this process, by the event of their failures."""


@dataclass(slots=True)
class _Retrying:
    """Calls of `retried` with the same event and fields that have failed and still go on."""

    calls: int = 0
    works: bool = False
    """Whether a call has succeeded since the last failure."""


_RETRYING: dict[tuple[object, ...], _Retrying] = {}
"""Calls that retry now, by event and fields."""


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

    Failures are logged as `event` with their reason and `fields`. In an outage many calls fail together, and each one often, so
    `Outages` bounds the lines. Once they work again, `retry_succeeded` is logged.
    """
    failures, retrying = 0, None
    try:
        while True:
            try:
                result = await work()
            except on as error:
                if retrying is None:
                    retrying = _RETRYING.setdefault((event, *fields.items()), _Retrying())
                    retrying.calls += 1
                retrying.works = False
                _outages(event).failed(fields, error.reason, level)
                await asyncio.sleep(backoff.delay_s(failures))
                failures += 1
            else:
                if retrying:
                    retrying.works = True
                return result
    finally:
        if retrying:
            retrying.calls -= 1
            if not retrying.calls:
                del _RETRYING[event, *fields.items()]
                if retrying.works:
                    _outages(event).succeeded(fields)
                else:
                    _outages(event).forget(fields)


def _outages(event: str) -> Outages:
    return _OUTAGES.setdefault(event, Outages(event, "retry_succeeded"))
