"""Records in bulk go at the pace of the log, so that a single order's message waits behind one batch and not behind a country's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.storage import db
from services.registry.agencies import bulk
from services.registry.agencies.bulk import Result
from services.registry.domain.records import Tag, Wearer
from services.registry.keys import Vault
from services.registry.records.store import prepare
from services.registry.tables import MIGRATIONS
from services.registry.unit_of_work import OutboxMessage
from tests.support.registry.core import RegistryCore

BEFORE = bulk.MAX_WAITING + 40
"""Number of messages that wait for the log at first."""


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[RegistryCore]:
    """A registry without a relay, with BEFORE messages in its outbox."""
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare()
        async with registry.transactions.open() as work:
            await work.outbox.enqueue(OutboxMessage("log.0.case", f"case-{n}:1", b"") for n in range(BEFORE))
        yield registry


async def put(registry: RegistryCore, first: int, count: int) -> list[Result]:
    """Puts a batch of so many wearers with a tag each."""
    records = [
        record
        for n in range(first, first + count)
        for record in (
            Wearer(f"w-{n}", f"{n:013d}", "name", birth_date=date(1980, 1, 1), source_version=1),
            Tag(f"t-{n}", f"w-{n}", 1),
        )
    ]
    return await registry.bulk.put([prepare(record, registry.transactions.vault) for record in records])


async def publish(registry: RegistryCore, count: int) -> None:
    """Marks the first waiting messages as sent, as the relay does."""
    async with registry.transactions.open() as work:
        rows = await work.outbox.unsent(count)
        await work.outbox.mark_sent([row.id for row in rows], 1)


async def waiting(registry: RegistryCore) -> int:
    async with registry.transactions.reading() as work:
        return len(await work.outbox.unsent(10_000))


async def stored(registry: RegistryCore) -> int:
    async with registry.transactions.reading() as work:
        rows = await work.connection.exec_driver_sql("select count(*) from wearers")
        return int(rows.scalar_one())


async def test_a_batch_waits_for_the_log_and_a_single_record_does_not(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "STALLED_S", 3_600.0)
    async with opened(where) as registry:
        batches = [asyncio.create_task(put(registry, first, 20)) for first in (0, 20)]
        for n in range(4):
            await publish(registry, 5)
            assert len(await put(registry, 1_000 + n, 1)) == 2  # as `tandem put` sends a record
        assert await stored(registry) == 4 and not any(batch.done() for batch in batches)
        # The first batch passes as soon as few messages wait. Its own messages make the second one wait.
        await publish(registry, await waiting(registry) - bulk.MAX_WAITING)
        assert len(await batches[0]) == 40
        await publish(registry, 5)
        assert await stored(registry) == 24 and not batches[1].done()
        await publish(registry, 20)
        assert len(await batches[1]) == 40


async def test_records_are_stored_while_nothing_reaches_the_log(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "STALLED_S", 0.0)
    async with opened(where) as registry:
        await put(registry, 0, 20)
        assert await stored(registry) == 20
        # Once the log is known to be away, the next batch isn't delayed at all.
        monkeypatch.setattr(bulk, "STALLED_S", 3_600.0)
        await put(registry, 20, 20)
        assert await stored(registry) == 40
