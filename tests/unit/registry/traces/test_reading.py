"""The reading of traces while the database refuses: one line at once, and not one for each try."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common.clock import MeshClock
from services.common.errors import Unavailable
from services.common.messaging.streams import LogMetadata
from services.common.priority import PriorityGate
from services.registry.metrics import RegistryMetrics
from services.registry.traces import consumer
from services.registry.traces.consumer import TraceReader


class RefusingDatabase:
    """A database on a full disk, and at the same time the transactions on it."""

    def __init__(self, tries: int) -> None:
        self._left = tries
        self.tried = asyncio.Event()

    @property
    def database(self) -> RefusingDatabase:
        return self

    @asynccontextmanager
    async def alone(self, task: str) -> AsyncIterator[Any]:
        """Grants the lock for a task."""
        yield None

    def reading(self) -> Any:
        """Refuses a transaction that reads."""
        self._left -= 1
        if self._left < 0:
            self.tried.set()
        raise Unavailable("the database refused: database or disk is full")

    open = reading


async def test_a_database_that_refuses_each_try_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "RETRY_DELAY_S", 0.0)
    database: Any = RefusingDatabase(tries=12)
    nothing: Any = None
    reader = TraceReader(
        database,
        nothing,
        LogMetadata(1, MeshClock(), "log"),
        on_stored=lambda _: None,
        gate=PriorityGate(),
        metrics=RegistryMetrics(CollectorRegistry()),
    )
    with capture_logs() as logs:
        running = asyncio.create_task(reader.run())
        await database.tried.wait()
        while not running.done():  # a group of tasks may lose a cancellation to an error of the same moment
            running.cancel()
            await asyncio.sleep(0)
    assert [(line["event"], line["reason"], line["failures"]) for line in logs] == [
        ("traces_restarted", "the database refused: database or disk is full", 1)
    ]
