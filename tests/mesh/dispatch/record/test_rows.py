"""Rows that a leg keeps current: that of an incident and that of a published step."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.storage.db import Database, open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import tables, translate
from services.dispatch.leg.publications import Published, StoredAs
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.dispatch import METRICS, alert


@asynccontextmanager
async def leg_over(database: Database) -> AsyncIterator[LegService]:
    """A leg with one incident."""
    deadlines = Deadlines(3_600_000)
    async with open_leg(Leg.POLICE, Store(database), MeshClock(), deadlines=deadlines, metrics=METRICS) as leg:
        await fold(leg, 1)
        yield leg


async def fold(leg: LegService, sequence: int, *, order: str = "order-1", ends: bool = False) -> None:
    message = alert(sequence, incident="incident-1", ends=ends)
    message.order_id = order
    parsed = translate.alert(message.SerializeToString(), Leg.POLICE)
    assert parsed
    await leg.fold([parsed], StreamPosition(flow.ALERTS.name, "log", sequence))


async def test_the_row_of_an_incident_follows_its_orders_and_its_end(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database, leg_over(database) as leg:
        (first,) = await leg.store.incidents("", 10, "")
        assert first.row.ended_ms is None
        await fold(leg, 2, order="order-2")
        (second,) = await leg.store.incidents("", 10, "")
        assert second.row.order_ids == sorted({*first.row.order_ids, "order-2"})
        assert second.row.opened_sequence == first.row.opened_sequence
        await fold(leg, 3, ends=True)
        (ended,) = await leg.store.incidents("", 10, "")
        assert ended.row.ended_ms is not None
        assert ended.row == second.row._replace(ended_ms=leg.record.memory.known["incident-1"].incident.ended_ms)
        await fold(leg, 4)
        (reopened,) = await leg.store.incidents("", 10, "")
        assert reopened.row == second.row


async def test_a_later_publication_of_a_step_replaces_its_record(where: Path | str) -> None:
    async with open_database(where, MIGRATIONS) as database, leg_over(database) as leg:
        step = NumberedStep(leg.record.head.id, dispatch_pb2.Step())
        for sequence in (7, 9):
            stored = {step.sequence: StoredAs(flow.INCIDENTS.name, sequence)}
            await leg.record.secondary.mark_published(Published([step], {}, stored), f"log-{sequence}")
        found = sa.select(tables.published_steps)
        rows = await leg.store.transaction(lambda connection: [tuple(row) for row in connection.execute(found)])
        assert rows == [(step.sequence, 2, flow.INCIDENTS.name, "log-9", 9)]
