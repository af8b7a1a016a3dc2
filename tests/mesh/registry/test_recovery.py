"""Committed records reach the log after any crash: the outbox, the daily renewal, a new log, another key."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection
from structlog.testing import capture_logs

from services.common import ids
from services.common.clock import MeshClock, wall_us
from services.common.errors import FailedPrecondition, Unavailable
from services.common.messaging import bus as buses
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.storage import db
from services.registry import relay, unit_of_work
from services.registry.cases.service import DAY_MS
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.records.kinds import ORDERS
from services.registry.relay import BATCH
from services.registry.tables import MIGRATIONS, metadata, outbox
from services.registry.unit_of_work import OutboxRepository, OutboxRow
from tests.support.registry import records
from tests.support.registry.core import RegistryCore, read_record
from tests.support.registry.registry import RegistryMesh, running_registry
from tests.support.registry.tables import import_tables


@pytest.fixture
def mesh(tmp_path: Path, where: Path | str) -> Iterator[RegistryMesh]:
    """A registry that a test may kill, on each database engine."""
    with running_registry(tmp_path, 1, where if isinstance(where, str) else "") as running:
        yield running


@pytest.mark.parametrize("published", ["nothing", "everything, but not marked"])
async def test_a_crash_between_commit_and_publish_neither_loses_nor_repeats_messages(
    mesh: RegistryMesh, published: str
) -> None:
    async with mesh.connected() as client:
        await client.put(records.person(), records.wearer(), records.tag(), records.device())
        await client.drained()
        mesh.nats.kill()
        # The registry accepts records even if it can't publish.
        assert await client.put(records.order(), records.tag(version=2)) == ["STORED", "STORED"]
        mesh.service.kill()
    waiting = mesh.query("select subject, msg_id, payload from outbox where sent_at_ms is null order by id")
    first, second = (int(msg_id.partition(":")[2]) for _, msg_id, _ in waiting)
    assert first < second

    mesh.nats.start()
    if published != "nothing":
        async with buses.connect(mesh.nats.url, "test") as bus:
            for subject, msg_id, payload in waiting:
                await bus.publish_until_stored(subject, payload, msg_id=msg_id)
    mesh.service.start()
    async with mesh.connected() as client:
        versions = [case.version for _, case in await client.cases()]
        assert len(versions) == 2 and versions[0] < versions[1]
        assert (await client.route("tag-1")).subject_id == "w-1"


async def test_a_killed_registry_keeps_its_records_and_its_key(mesh: RegistryMesh) -> None:
    async with mesh.connected() as client:
        await client.put(records.person(), records.order())
        mesh.service.kill()
        mesh.service.start()
        await mesh.service.ready(mesh.address)
        assert await client.put(records.order()) == ["UNCHANGED"]
        # Matching proves that the hash of the number and the key of the record are unchanged.
        await client.put(records.wearer())
        assert [case.wearer_id for _, case in await client.cases()] == ["w-1"]


async def test_the_registry_stops_on_a_signal_and_rejects_another_key(mesh: RegistryMesh) -> None:
    async with mesh.connected() as client:
        await client.put(records.wearer())
        assert mesh.service.stop() == 0
        (mesh.data_dir / "registry.key").unlink()
        mesh.service.start()
        assert mesh.service.exit_code() != 0
        assert "another key" in mesh.service.log()


# ── the store without a bus ──────────────────────────────────────────────────────────────────────────────────────────


@asynccontextmanager
async def opened(
    where: Path | str, clock: MeshClock, partitions: int = 1, log: str = "log 1"
) -> AsyncIterator[RegistryCore]:
    """A registry without a relay."""
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock, partitions=partitions)
        await registry.prepare(log)
        yield registry


def in_days(days: int) -> MeshClock:
    """A mesh clock that is ahead of the wall clock by this many days, and hardly drifts during a test."""
    return MeshClock(2, wall_us() // 1000 - days * DAY_MS)


async def put_all(registry: RegistryCore) -> None:
    await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.ministry.put_tag(translate.parse_tag(records.tag()))
    await registry.police.put_device(translate.parse_device(records.device()))
    await registry.police.put_order(translate.parse_order(records.order()))


async def renew_all(registry: RegistryCore) -> None:
    while await registry.renewal.renew_some():
        pass


async def drain_outbox(registry: RegistryCore, clock: MeshClock) -> list[OutboxRow]:
    """Return the waiting messages of the outbox and mark them as sent."""
    async with registry.transactions.open() as view:
        rows = await view.outbox.unsent(1000)
        await view.outbox.mark_sent([row.id for row in rows], clock.now_ms())
    return rows


async def test_a_case_is_sent_after_the_routes_that_it_needs(where: Path | str) -> None:
    clock = MeshClock()
    person_id = next(f"p-{n}" for n in range(20) if ids.partition_of(f"p-{n}", 3) != ids.partition_of("w-1", 3))
    async with opened(where, clock, partitions=3) as registry:
        await registry.police.put_protected_person(translate.parse_protected_person(records.person(person_id)))
        await registry.police.put_device(translate.parse_device(records.device(person_id=person_id)))
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await drain_outbox(registry, clock)
        await registry.police.put_order(translate.parse_order(records.order(person_ids=(person_id,))))
        rows = await drain_outbox(registry, clock)
    assert [row.subject for row in rows] == ["$KV.devices.app-1", f"log.{ids.partition_of('w-1', 3)}.case"]


async def test_valid_cases_and_routes_are_resent_every_day(where: Path | str) -> None:
    today, tomorrow = MeshClock(), in_days(1)
    async with opened(where, today) as registry:
        await put_all(registry)
        first = await drain_outbox(registry, today)
        await renew_all(registry)
        assert await drain_outbox(registry, today) == []
    async with opened(where, tomorrow) as registry:
        await renew_all(registry)
        second = await drain_outbox(registry, tomorrow)
        await renew_all(registry)
        assert await drain_outbox(registry, tomorrow) == []
    assert {(row.subject, row.payload) for row in first} == {(row.subject, row.payload) for row in second}
    assert not {row.msg_id for row in first} & {row.msg_id for row in second}
    assert second[-1].subject == "log.0.case"  # routes go first
    # Messages that were sent more than a day ago are deleted.
    async with opened(where, in_days(3)) as registry:
        await renew_all(registry)
        async with registry.transactions.open() as view:
            assert all(row.id > second[-1].id for row in await view.outbox.unsent(1000))
    async with db.open_database(where, MIGRATIONS) as database, database.transaction() as connection:
        sent = sa.select(outbox).where(outbox.c.sent_at_ms.is_not(None))
        assert (await connection.execute(sent)).all() == []


async def test_a_case_that_has_ended_is_not_renewed(where: Path | str) -> None:
    clock = MeshClock()
    async with opened(where, clock) as registry:
        await put_all(registry)
        ended = records.order(version=2)
        ended.valid_until.seconds = clock.now_ms() // 1000
        await registry.police.put_order(translate.parse_order(ended))
    for days, cases in ((0, 1), (2, 0)):
        clock = in_days(days)
        async with opened(where, clock, log=f"log of day {days}") as registry:
            await renew_all(registry)
            rows = await drain_outbox(registry, clock)
            assert sum(row.subject == "log.0.case" for row in rows) == cases
            assert sum(row.subject.startswith("$KV.") for row in rows) == 2


async def test_a_new_log_gets_all_messages_with_its_own_partitions(where: Path | str) -> None:
    clock = MeshClock()
    async with opened(where, clock) as registry:
        await put_all(registry)  # nothing was sent before the log was replaced
    async with opened(where, clock, partitions=3, log="log 2") as registry:
        await renew_all(registry)
        rows = await drain_outbox(registry, clock)
    partition = ids.partition_of("w-1", 3)
    assert [row.subject for row in rows if row.subject.startswith("log.")] == [f"log.{partition}.case"]
    assert sorted(row.subject for row in rows if row.subject.startswith("$KV.")) == [
        "$KV.devices.app-1",
        "$KV.devices.tag-1",
    ]


async def test_a_snapshot_larger_than_a_message_is_rejected_before_it_blocks_the_outbox(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unit_of_work, "PAYLOAD_MAX_BYTES", 300)
    clock = MeshClock()
    async with opened(where, clock) as registry:
        await put_all(registry)
        large = records.order(version=2)
        large.places.extend(records.circle(f"place-{n}") for n in range(20))
        with pytest.raises(FailedPrecondition, match="at most 300 fit"):
            await registry.police.put_order(translate.parse_order(large))
        async with registry.transactions.open() as view:
            assert (await read_record(view, ORDERS, "o-1")).source_version == 1
        (case,) = await registry.transactions.change(lambda working: working.cases.of_orders(["o-1"]))
        assert case.version > 1


async def test_a_waiting_relay_logs_the_reason_once_and_resumes(
    where: Path | str, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "RETRY_DELAY_S", 0.01)
    refusals = [Unavailable("the disk is full", retry_after_s=0.0)] * 3

    async def unsent(self: OutboxRepository, limit: int) -> list[OutboxRow]:
        if refusals:
            raise refusals.pop()
        return await waiting(self, limit)

    waiting = OutboxRepository.unsent
    monkeypatch.setattr(OutboxRepository, "unsent", unsent)
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare("log 1")
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.ministry.put_tag(translate.parse_tag(records.tag()))
        with capture_logs() as logs:
            work = asyncio.ensure_future(registry.relay(bus).run())
            try:
                await logged(logs, "outbox_published")
            finally:
                work.cancel()
                await asyncio.wait([work])  # the database must not be closed under its last statement
        assert [log["reason"] for log in logs if log["event"] == "relay_waits"] == ["the disk is full"]


async def test_a_relay_waits_while_sqlite_refuses_its_read(
    tmp_path: Path, bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "RETRY_DELAY_S", 0.01)
    monkeypatch.setattr(relay, "SOLE_POLL_S", 0.01)
    async with db.open_database(tmp_path / "registry.sqlite3", MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare("log 1")
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        await registry.ministry.put_tag(translate.parse_tag(records.tag()))
        with capture_logs() as logs:
            work = asyncio.ensure_future(registry.relay(bus).run())
            try:
                await logged(logs, "outbox_published")
                await rename_table(database, "outbox", "hidden")
                await logged(logs, "relay_waits")
                await rename_table(database, "hidden", "outbox")
                await registry.ministry.put_tag(translate.parse_tag(records.tag("tag-2")))
                await logged(logs, "outbox_published", times=2)
            finally:
                work.cancel()
                await asyncio.wait([work])  # the database must not be closed under its last statement
        assert {log["reason"] for log in logs if log["event"] == "database_refused"} == {"no such table: outbox"}


async def rename_table(database: db.Database, old: str, new: str) -> None:
    """Renames a table, so that statements which name it are refused."""
    await database.visit(lambda connection: connection.execute(sa.text(f"alter table {old} rename to {new}")))


async def logged(logs: Sequence[Mapping[str, object]], event: str, times: int = 1) -> None:
    """Waits until an event is in the log so many times."""
    async with asyncio.timeout(20):
        while [log["event"] for log in logs].count(event) < times:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_relay_that_has_lost_its_lock_begins_no_further_flight(where: Path | str, bus: Bus) -> None:
    checks = 0

    async def still_alone() -> None:
        nonlocal checks
        checks += 1
        if checks > 1:
            raise Unavailable("another process has the lock")

    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare("log 1")
        await put_all(registry)
        relay = registry.relay(bus)
        relay._batch = BATCH
        with pytest.raises(Unavailable):
            await relay._publish_some(still_alone)
        async with registry.transactions.open() as view:
            rows = await view.outbox.unsent(10)
    assert checks == 2 and any(row.subject.endswith(".case") for row in rows)
    assert await bus.last_sequence_of(flow.log_stream(0), flow.log_subject(0, "case")) == 0


async def test_the_migrations_create_the_tables_that_the_store_expects(where: Path | str) -> None:
    import_tables()

    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), metadata))

    async with (
        db.open_database(where, MIGRATIONS) as database,
        database.transaction() as connection,
    ):
        assert await connection.run_sync(differences) == []
