"""Warnings from alerts that were read late: a person hears nothing of a threat that is over, unless she was warned of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.storage.db import Database, open_database
from services.dispatch.domain.enums import Demand
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.warning.consumer import TTL_MS
from services.dispatch.warning.domain import READ_MS, Notice, Occurrence
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import REPLACED, messages
from services.dispatch.warning.translate import WarnableAlert

NOW_MS = 1_000_000_000
LONG_AGO_MS = NOW_MS - TTL_MS - 1


class Leg:
    """The alerts and messages of a warning leg for one person."""

    def __init__(self, database: Database) -> None:
        self._database, self._store = database, WarningStore(database)

    async def reads(self, *alerts: WarnableAlert) -> None:
        await self._store.accept(alerts, NOW_MS, StreamPosition("ALERTS", "log", 1))

    async def messages(self) -> list[tuple[str, int]]:
        """The messages that are or will be sent, with the time until they are due, milliseconds."""
        query = sa.select(messages.c.notice, messages.c.due_ms).where(messages.c.state != REPLACED)
        rows = await self._database.visit(lambda connection: connection.execute(query.order_by("due_ms")).all())
        return [(notice, due_ms - NOW_MS) for notice, due_ms in rows]


@pytest.fixture
async def leg(tmp_path: Path) -> AsyncIterator[Leg]:
    async with open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as database:
        yield Leg(database)


def entered(sequence: int, at_ms: int, ring_m: float = 100.0) -> WarnableAlert:
    return _alert(sequence, at_ms, Demand.RESPOND, ring_m=ring_m)


def ended(sequence: int, at_ms: int) -> WarnableAlert:
    return _alert(sequence, at_ms, Demand.RECORD, ring_m=100.0, ends=True)


def _alert(sequence: int, at_ms: int, demand: Demand, *, ring_m: float, ends: bool = False) -> WarnableAlert:
    occurrence = Occurrence(
        alert_id=f"a{sequence}",
        incident_id="i1",
        place=(sequence, 0),
        notice=Notice.APPROACH,
        demand=demand,
        threat=f"ring {ring_m}",
        ends=ends,
        ring_m=ring_m,
    )
    return WarnableAlert(occurrence, ("p1",), "o1", partition=0, drill=False, decided_ms=at_ms)


async def test_nobody_is_warned_of_an_incident_that_began_and_ended_during_an_outage(leg: Leg) -> None:
    await leg.reads(entered(1, LONG_AGO_MS), ended(2, LONG_AGO_MS))
    assert await leg.messages() == []


async def test_a_person_who_was_warned_before_an_outage_hears_of_the_end(leg: Leg) -> None:
    await leg.reads(entered(1, NOW_MS))
    await leg.reads(ended(2, LONG_AGO_MS))
    assert await leg.messages() == [("APPROACH", 0), ("OVER", READ_MS)]


async def test_a_threat_that_may_still_be_active_is_warned_of_after_an_outage(leg: Leg) -> None:
    await leg.reads(entered(1, LONG_AGO_MS))
    assert await leg.messages() == [("APPROACH", READ_MS)]
    await leg.reads(ended(2, NOW_MS))
    assert await leg.messages() == []


async def test_a_warning_that_waits_to_be_read_is_dropped_with_its_threat(leg: Leg) -> None:
    await leg.reads(entered(1, NOW_MS), entered(2, NOW_MS, ring_m=2000.0))
    assert await leg.messages() == [("APPROACH", 0), ("APPROACH", READ_MS)]
    await leg.reads(ended(3, NOW_MS))
    assert await leg.messages() == [("APPROACH", 0), ("OVER", READ_MS)]
