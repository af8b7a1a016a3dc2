"""An evaluator keeps its fold version in the log."""

from __future__ import annotations

import asyncio
from typing import Any

from services.geofence.domain.entries import FOLD_VERSION
from services.geofence.domain.state import State
from services.geofence.own_entries import DAY_MS, OwnEntries
from tandem.common.v1 import log_pb2


class Bus:
    """A bus that records what is published."""

    def __init__(self) -> None:
        self.published: list[tuple[str, int, str]] = []

    async def publish(self, subject: str, data: bytes, *, msg_id: str) -> None:
        self.published.append((subject, log_pb2.LogEntry.FromString(data).fold_version.version, msg_id))


def kept(state: State) -> list[tuple[str, int, str]]:
    bus: Any = Bus()
    asyncio.run(OwnEntries(bus, 3).keep_version(state))
    published: list[tuple[str, int, str]] = bus.published
    return published


def test_the_version_is_written_a_day_after_the_log_last_demanded_a_version() -> None:
    assert kept(State(3, now_ms=DAY_MS + 7)) == []
    assert kept(State(3, now_ms=DAY_MS + 6, log_version_ms=7)) == []
    due = State(3, now_ms=DAY_MS + 7, log_version_ms=7)
    # Both evaluators write the same message id, so the log stores one of them.
    assert kept(due) == kept(due) == [("log.3.fold", FOLD_VERSION, f"fold-3-{FOLD_VERSION}-7")]
