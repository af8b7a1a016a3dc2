"""Delays between retries, and the errors after which work is retried."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from services.common.errors import Conflict, StoreFull, TandemError, Unavailable
from services.common.retrying import Backoff, every, retried


class FailingWork:
    """Work that raises the given errors, one at each call, and then returns the number of calls."""

    def __init__(self, *errors: TandemError) -> None:
        self._errors: Iterator[TandemError] = iter(errors)
        self.calls = 0

    async def __call__(self) -> int:
        self.calls += 1
        for error in self._errors:
            raise error
        return self.calls


@pytest.fixture
def slept_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Delays of all sleeps, which take no time."""
    slept_s: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept_s.append(delay_s)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return slept_s


def test_delays_double_up_to_their_maximum() -> None:
    backoff = Backoff(0.05, 1.0)
    assert [backoff.delay_s(retries) for retries in range(7)] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    assert backoff.delay_s(10**6) == 1.0 and every(0.5).delay_s(10) == 0.5


async def test_work_is_retried_until_it_succeeds(slept_s: list[float]) -> None:
    assert await retried(FailingWork(*[Unavailable("away")] * 3), Backoff(1, 3)) == 4
    assert slept_s == [1, 2, 3]


async def test_any_other_error_is_raised(slept_s: list[float]) -> None:
    with pytest.raises(Conflict):
        await retried(FailingWork(Unavailable("away"), Conflict("other content")))
    with pytest.raises(StoreFull):
        await retried(FailingWork(Unavailable("away"), StoreFull("full")), on=Unavailable)
    assert slept_s == [0.5, 0.5]
