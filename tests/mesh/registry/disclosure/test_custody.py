"""Keys over the years: the ring is rotated, and what is over is destroyed with its key. On both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock, wall_us
from services.common.rpc.errors import FailedPrecondition, NotFound
from services.common.storage import db
from services.registry import tables, translate
from services.registry.disclosure import DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain import EndReason, Order, OrderEnd, ProtectedPerson, PutOutcome, Wearer
from services.registry.handlers import Registry
from services.registry.key_retention import KeyRetention
from services.registry.store import MIGRATIONS
from services.registry.tables_ledger import data_keys, ledger
from services.registry.tables_review import match_keys, record_digests
from services.registry.vault import Vault
from tests.support.registry import records

OLD, NEW, NEXT = bytes(32), bytes(range(32)), bytes(range(1, 33))


def ahead(ms: int) -> MeshClock:
    """A mesh clock that is ahead of the wall by this much."""
    return MeshClock(2, wall_us() // 1000 - ms)


@asynccontextmanager
async def opened(
    where: Path | str, *keys: bytes, clock: MeshClock | None = None
) -> AsyncIterator[tuple[Registry, KeyRetention]]:
    clock = clock or MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = Registry(database, Vault(*(keys or (OLD,))), clock, 1)
        await registry.prepare("log 1")
        yield registry, KeyRetention(registry, clock)


def order(order_id: str = "o-1", person_ids: tuple[str, ...] = ("p-1",), ends_ms: int | None = None) -> Order:
    msg = records.order(order_id, person_ids)
    if ends_ms is not None:
        msg.valid_until.FromMilliseconds(ends_ms)
    return translate.parse_order(msg)


async def put_all(registry: Registry, *orders: Order) -> None:
    for person_id in ("p-1", "p-2"):
        await registry.put_protected_person(translate.parse_protected_person(records.person(person_id)))
    await registry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.put_tag(translate.parse_tag(records.tag()))
    for one in orders:
        await registry.put_order(one)


async def destroy_all(key_retention: KeyRetention) -> None:
    while await key_retention.destroy_some():
        pass


async def destroyed(registry: Registry) -> list[str]:
    """Records of which the ledger says that they were destroyed."""
    rows = sa.select(ledger.c.record_id).where(ledger.c.deed == "DESTROYED").order_by(ledger.c.record_id)
    async with registry.database.transaction() as connection:
        return [row.record_id for row in await connection.execute(rows)]


async def test_a_rotated_ring_wraps_all_keys_anew_and_the_old_one_is_needed_no_more(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order())
    async with opened(where, OLD, NEW) as (registry, key_retention):
        assert await key_retention.rewrap_some()
        assert not await key_retention.rewrap_some()
        async with registry.database.transaction() as connection:
            rings = {row.ring for row in await connection.execute(sa.select(data_keys.c.ring))}
        assert rings == {Vault(NEW).current}
        async with registry.transaction() as view:
            assert (await view.find(tables.wearers, Wearer, "w-1")).name == records.NAME
    with pytest.raises(FailedPrecondition, match="ring lacks"):
        async with opened(where) as (registry, _), registry.transaction() as view:
            await view.find(tables.wearers, Wearer, "w-1")


async def test_once_all_is_wrapped_anew_the_first_key_goes_and_all_is_found_as_before(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
    with pytest.raises(FailedPrecondition, match="another key"):
        async with opened(where, NEW):
            pass
    async with opened(where, OLD, NEW):
        pass
    with pytest.raises(FailedPrecondition, match=f"still needed: {Vault(OLD).current}"):
        async with opened(where, NEW):
            pass
    async with opened(where, OLD, NEW) as (_, key_retention):
        while await key_retention.rewrap_some():
            pass
    async with opened(where, NEW) as (registry, key_retention):
        async with registry.transaction() as view:
            assert (await view.find(tables.wearers, Wearer, "w-1")).name == records.NAME
        assert await registry.put_wearer(translate.parse_wearer(records.wearer())) is PutOutcome.UNCHANGED
        await registry.put_order(order())  # found by the hash of the number
        async with registry.transaction() as view:
            assert [case.order_id for case in await view.cases_of_wearer("w-1")] == ["o-1"]
    # And so on: the next one in, the one before out.
    async with opened(where, NEW, NEXT) as (_, key_retention):
        while await key_retention.rewrap_some():
            pass
    async with opened(where, NEXT) as (registry, _), registry.transaction() as view:
        assert [one.order_id for one in await view.orders_against(order().respondent.national_id)] == ["o-1"]


async def test_five_years_after_its_end_an_order_is_destroyed_and_who_it_alone_protected(where: Path | str) -> None:
    now_ms = MeshClock().now_ms()
    short, long = order("o-1", ("p-1", "p-2"), now_ms + DAY_MS), order("o-2", ("p-2",))
    async with opened(where) as (registry, key_retention):
        await put_all(registry, short, long)
        await destroy_all(key_retention)
        assert await destroyed(registry) == []
    async with opened(where, clock=ahead(KEPT_AFTER_END_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == []
    async with opened(where, clock=ahead(KEPT_AFTER_END_MS + 2 * DAY_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["o-1", "p-1"]
        async with registry.transaction() as view:
            with pytest.raises(NotFound):
                await view.find(tables.orders, Order, "o-1")
            with pytest.raises(NotFound):
                await view.find(tables.protected_persons, ProtectedPerson, "p-1")
            assert (await view.find(tables.protected_persons, ProtectedPerson, "p-2")).person_id == "p-2"
            assert [one.order_id for one in await view.orders_against(long.respondent.national_id)] == ["o-2"]
            assert [case.order_id for case in await view.cases_of_wearer("w-1")] == ["o-2"]
        async with registry.database.transaction() as connection:
            row = (await connection.execute(sa.select(tables.orders).where(tables.orders.c.order_id == "o-1"))).one()
            assert (row.sealed, row.digest, row.national_hash) == (b"", b"", b"")
            key = (await connection.execute(sa.select(data_keys).where(data_keys.c.owner == "orders/o-1"))).one()
            assert key.wrapped == b"" and key.destroyed_at_ms is not None
            for one in (match_keys, record_digests):
                assert (await connection.execute(sa.select(one).where(one.c.record_id == "o-1"))).all() == []
        # What follows a change of the wearer leaves the destroyed order alone.
        await registry.put_wearer(translate.parse_wearer(records.wearer(version=2)))


@pytest.mark.parametrize(
    ("reason", "at_once"),
    [(EndReason.NON_PROSECUTION, True), (EndReason.ACQUITTAL, True), (EndReason.CANCELLED_BY_COURT, False)],
)
async def test_an_order_that_falls_with_the_prosecution_is_destroyed_at_once(
    where: Path | str, reason: EndReason, at_once: bool
) -> None:
    async with opened(where) as (registry, key_retention):
        await put_all(registry, order())
        await registry.end_order("o-1", OrderEnd(reason, MeshClock().now_ms() - 1000), 2)
        await destroy_all(key_retention)
        assert await destroyed(registry) == (["o-1", "p-1"] if at_once else [])


async def test_five_years_after_the_last_tag_was_taken_off_a_wearer_is_destroyed(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order())
        await registry.put_tag(translate.parse_tag(records.tag("tag-2")))
        await registry.end_tag("tag-1", MeshClock().now_ms(), 2)
    async with opened(where, clock=ahead(2 * KEPT_AFTER_END_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == []  # the second one is still on
        await registry.end_tag("tag-2", MeshClock().now_ms(), 2)
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["w-1"]
        # The order that is still in force against them goes on without them.
        assert await registry.put_device(translate.parse_device(records.device())) is PutOutcome.STORED
        async with registry.transaction() as view:
            assert await view.cases_of_order("o-1") == []
            assert (await view.order("o-1")).order_id == "o-1"


async def test_the_custodian_does_both_by_itself(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order(), order("o-2", ("p-2",), MeshClock().now_ms() + DAY_MS))
    async with opened(where, OLD, NEW, clock=ahead(KEPT_AFTER_END_MS + 2 * DAY_MS)) as (registry, key_retention):
        work = asyncio.ensure_future(key_retention.run())
        try:
            async with asyncio.timeout(20):
                while await destroyed(registry) != ["o-2", "p-2"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
        finally:
            work.cancel()
        async with registry.database.transaction() as connection:
            alive = sa.select(data_keys.c.ring).where(data_keys.c.destroyed_at_ms.is_(None))
            assert {row.ring for row in await connection.execute(alive)} == {Vault(NEW).current}
