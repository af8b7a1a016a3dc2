"""A leg over its real store alone, on both engines: the chain, the migrations, slow desks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from services.common.clock import MeshClock
from services.common.messaging import flow
from services.common.rpc.errors import NotFound, Unavailable
from services.common.storage import db
from services.common.storage.db import Database, open_database
from services.dispatch.__main__ import MIGRATIONS
from services.dispatch.domain.answers import Acknowledge
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.leg import record, subscriptions, tables, translate
from services.dispatch.leg.service import LegService, open_leg
from services.dispatch.leg.store import PeerRow, Store, StreamPosition
from services.dispatch.leg.subscriptions import Numbered
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch.dispatch import alert
from tests.support.dispatch.incidents import OF_BEFORE

FAR_MS = 3_600_000
HERE = StreamPosition(flow.INCIDENTS.name, "log", 1)


@pytest.fixture
async def database(where: Path | str) -> AsyncIterator[Database]:
    """The database of a police leg."""
    async with open_database(where, MIGRATIONS) as opened:
        yield opened


@asynccontextmanager
async def opened(database: Database, within_ms: int = FAR_MS) -> AsyncIterator[LegService]:
    async with open_leg("police", Store(database), MeshClock(), Deadlines(within_ms)) as one:
        yield one


async def fold(leg_service: LegService, *sequences: int) -> None:
    for sequence in sequences:
        parsed = translate.alert(alert(sequence, incident=f"incident-{sequence}").SerializeToString(), "police")
        assert parsed
        await leg_service.fold([parsed], StreamPosition(flow.ALERTS.name, "log", sequence))


async def take(steps: AsyncIterator[Numbered | dispatch_pb2.Assignment], count: int) -> list[Numbered]:
    async with asyncio.timeout(20):
        told = [await anext(steps) for _ in range(count)]
    return [one for one in told if isinstance(one, Numbered)]


async def test_the_migrations_make_the_tables_of_the_store(database: Database) -> None:
    async with database.transaction() as connection:
        differences = await connection.run_sync(
            lambda sync: compare_metadata(MigrationContext.configure(sync), tables.metadata)
        )
    assert differences == []


async def test_a_changed_row_breaks_the_chain(database: Database) -> None:
    async with opened(database) as one:
        await fold(one, 1, 2, 3)
        assert await one.store.first_broken_event() is None
        async with database.transaction() as connection:
            await connection.execute(sa.text("update events set body = replace(body, 'p1', 'p2') where id = 4"))
        assert await one.store.first_broken_event() == 4


async def test_a_database_of_before_goes_on_and_its_chain_holds(database: Database) -> None:
    written = [asdict(link) for link in OF_BEFORE]
    async with database.transaction() as connection:
        await connection.execute(sa.insert(tables.metadata.tables["events"]), written)
    async with opened(database) as one:
        parsed = translate.alert(alert(8).SerializeToString(), "police")
        assert parsed
        await one.fold([parsed], StreamPosition(flow.ALERTS.name, "log", 8))
        (step,) = await take(one.follow(0), 1)
        assert (step.step.assignment.state, step.step.number) == (dispatch_pb2.OFFERED, 5)
        taken = await one.acknowledge(step.step.assignment.assignment_id, "spiffe://npa/desk/b")
        assert taken.acknowledged_by == "spiffe://npa/desk/b"
        assert await one.store.first_broken_event() is None


async def test_a_slow_desk_misses_nothing_and_sees_nothing_twice(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscriptions, "WAITING_MAX", 3)
    async with opened(database) as one:
        steps = one.follow(0)
        await fold(one, 1)
        seen = await take(steps, 1)
        await fold(one, 2, 3)  # wait in memory
        seen += await take(steps, 1)
        await fold(one, *range(4, 12))  # more than what is kept for it
        seen += await take(steps, 9)
        await fold(one, 12)
        seen += await take(steps, 1)
    assert [step.step.assignment.incident_id for step in seen] == [f"incident-{n}" for n in range(1, 13)]
    assert [step.sequence for step in seen] == sorted({step.sequence for step in seen})


async def test_a_stopping_leg_tells_its_desks(database: Database) -> None:
    async with opened(database) as one:
        steps = one.follow(0)
        waiting = asyncio.ensure_future(take(steps, 1))
        await asyncio.sleep(0)
        one.record.subscriptions.close()
        with pytest.raises(Unavailable):
            await waiting


async def test_an_incident_that_is_no_longer_in_memory_is_folded_anew(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record, "KNOWN_MAX", 1)
    async with opened(database) as one:
        await fold(one, 1, 2)
        (step,) = await take(one.follow(0), 1)
        first = step.step.assignment
        await one.record.mark_published([step], {first.assignment_id: 2.5})
        taken = await one.acknowledge(first.assignment_id, "spiffe://npa/desk/a")
        assert taken.report_to_published_ms == 2.5 and taken.order_ids == first.order_ids
        with pytest.raises(NotFound):
            await one.acknowledge("assign-none", "spiffe://npa/desk/a")


async def test_a_refused_command_leaves_no_trace(database: Database) -> None:
    async with opened(database) as one:
        await fold(one, 1)
        head = await one.store.head()
        with pytest.raises(NotFound):
            await one.record.handle([("incident-1", lambda _: Acknowledge("assign-none", "x", 0, Deadlines(FAR_MS)))])
        await fold(one, 2)
        assert (await one.store.head()).id == head.id + 2
        assert await one.store.first_broken_event() is None


async def test_a_caller_who_leaves_does_not_part_memory_and_store(database: Database) -> None:
    async with opened(database) as one:
        for sequence in range(1, 8):
            task = asyncio.create_task(fold(one, sequence))
            for _ in range(sequence):
                await asyncio.sleep(0.0002)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await fold(one, *range(1, 9))
        assert await one.store.first_broken_event() is None
    async with opened(database) as again:
        assert len(await again.store.unanswered()) == 8


async def test_overdue_deadlines_are_passed_by_a_leg_that_comes_back(database: Database) -> None:
    async with opened(database, within_ms=1) as one:
        await fold(one, 1)
        offer = (await take(one.follow(0), 1))[0]
    await asyncio.sleep(0.01)
    async with opened(database) as again:
        await again.pass_deadlines()
        await again.pass_deadlines()
        (escalated,) = await take(again.follow(offer.sequence), 1)
        assert escalated.step.number == 2
        assert (await again.watch.pulse()).due_ms > again._clock.now_ms()


async def test_a_peers_older_step_does_not_replace_its_newer_one(database: Database) -> None:
    async with opened(database) as one:
        await fold(one, 1)
        await one.store.put_peers([PeerRow("assign-1", "incident-1", 2, b"second")], HERE)
        await one.store.put_peers([PeerRow("assign-1", "incident-1", 1, b"first")], HERE)
        (listed,) = await one.store.incidents("", 10, "")
        assert listed.peers == [b"second"]
        await one.store.put_peers([PeerRow("assign-1", "incident-1", 3, b"third")], HERE)
        (listed,) = await one.store.incidents("", 10, "")
        assert listed.peers == [b"third"]


async def test_a_store_that_goes_away_while_a_leg_starts_is_waited_for(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit, refusals = database.visit, iter((True, False, True, False, False, True))

    async def sometimes(work: Any) -> Any:
        if next(refusals, False):
            raise Unavailable("the database is starting up")
        return await visit(work)

    monkeypatch.setattr(database, "visit", sometimes)
    monkeypatch.setattr(db, "RETRY_DELAY_S", 0.01)
    async with opened(database) as leg:
        await fold(leg, 1)
    assert next(refusals, None) is None
