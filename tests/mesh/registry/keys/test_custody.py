"""Key retention: the ring is rotated, and due records are destroyed with their keys. On both engines."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock, wall_us
from services.common.errors import Conflict, FailedPrecondition, NotFound
from services.common.storage import db
from services.registry import tables
from services.registry.domain.disclosure import CORRECTABLE_MS, DAY_MS, KEPT_AFTER_END_MS
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import EndReason, Order, OrderEnd, OrderType
from services.registry.domain.reviews import Side
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS
from services.registry.records.store import prepare
from services.registry.retention import KeyRetention
from services.registry.tables import MIGRATIONS, data_keys, ledger, match_keys, record_digests
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore, read_record

SPECIAL_TYPES = (OrderType.STALKING_TAG, OrderType.STALKING_PROTECTION, OrderType.STALKING_INTERIM)
"""The type whose records are destroyed at once, and those that aren't in force yet."""
OLD = bytes(32)
NEW = bytes(range(32))
NEXT = bytes(range(1, 33))


def ahead(ms: int) -> MeshClock:
    """A mesh clock that is ahead of the wall clock by `ms` milliseconds."""
    return MeshClock(2, wall_us() // 1000 - ms)


@asynccontextmanager
async def opened(
    where: Path | str, *keys: bytes, clock: MeshClock | None = None
) -> AsyncIterator[tuple[RegistryCore, KeyRetention]]:
    clock = clock or MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault(keys or (OLD,)), clock)
        await registry.prepare("log 1")
        yield registry, registry.retention


def order(
    order_id: str = "o-1",
    person_ids: tuple[str, ...] = ("p-1",),
    ends_ms: int | None = None,
    *,
    order_type: str = "ORDER_TYPE_UNSPECIFIED",
) -> Order:
    msg = records.order(order_id, person_ids)
    msg.type = registry_pb2.OrderType.Value(order_type)
    if ends_ms is not None:
        msg.valid_until.FromMilliseconds(ends_ms)
    return translate.parse_order(msg)


async def put_all(registry: RegistryCore, *orders: Order) -> None:
    for person_id in ("p-1", "p-2"):
        await registry.police.put_protected_person(translate.parse_protected_person(records.person(person_id)))
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.ministry.put_tag(translate.parse_tag(records.tag()))
    for stored_order in orders:
        await registry.police.put_order(stored_order)


async def destroy_all(key_retention: KeyRetention) -> None:
    while await key_retention.destroy_some():
        pass


async def destroyed(registry: RegistryCore) -> list[str]:
    """Ids of the records that the ledger lists as destroyed."""
    rows = sa.select(ledger.c.record_id).where(ledger.c.deed == "DESTROYED").order_by(ledger.c.record_id)
    async with registry.database.transaction() as connection:
        return [row.record_id for row in await connection.execute(rows)]


async def test_a_rotated_ring_rewraps_all_keys_with_its_current_key(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order())
    async with opened(where, OLD, NEW) as (registry, key_retention):
        assert await key_retention.rewrap_some()
        assert not await key_retention.rewrap_some()
        async with registry.database.transaction() as connection:
            rings = {row.ring for row in await connection.execute(sa.select(data_keys.c.ring))}
        assert rings == {Vault([NEW]).current}
        async with registry.transactions.open() as view:
            assert (await read_record(view, WEARERS, "w-1")).name == records.NAME
    with pytest.raises(FailedPrecondition, match="ring lacks"):
        async with opened(where) as (registry, _), registry.transactions.open() as view:
            await read_record(view, WEARERS, "w-1")


async def orders_with_cases(registry: RegistryCore, wearer_id: str) -> list[str]:
    """Ids of the orders with a joint case of this wearer."""
    cases = await registry.transactions.change(lambda working: working.cases.of_wearers([wearer_id]))
    return [case.order_id for case in cases]


async def orders_like(registry: RegistryCore, stored: Order) -> set[str]:
    """Ids of the orders that are found by the match keys of an order."""
    keys = prepare(stored, registry.transactions.vault).match_keys
    return await registry.transactions.change(lambda working: working.match_keys.sharing(Side.ORDER, keys))


async def test_after_a_rewrap_the_first_key_can_be_removed_without_loss(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry)
    with pytest.raises(FailedPrecondition, match="another key"):
        async with opened(where, NEW):
            pass
    async with opened(where, OLD, NEW):
        pass
    with pytest.raises(FailedPrecondition, match=f"still needed: {Vault([OLD]).current}"):
        async with opened(where, NEW):
            pass
    async with opened(where, OLD, NEW) as (_, key_retention):
        while await key_retention.rewrap_some():
            pass
    async with opened(where, NEW) as (registry, key_retention):
        async with registry.transactions.open() as view:
            assert (await read_record(view, WEARERS, "w-1")).name == records.NAME
        assert await registry.ministry.put_wearer(translate.parse_wearer(records.wearer())) is PutOutcome.UNCHANGED
        await registry.police.put_order(order())  # matched by the hash of the number
        assert await orders_with_cases(registry, "w-1") == ["o-1"]
    # A second rotation works in the same way.
    async with opened(where, NEW, NEXT) as (_, key_retention):
        while await key_retention.rewrap_some():
            pass
    async with opened(where, NEXT) as (registry, _):
        assert await orders_like(registry, order()) == {"o-1"}


async def test_an_order_is_destroyed_five_years_after_its_end_with_persons_of_no_other_order(where: Path | str) -> None:
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
        async with registry.transactions.open() as view:
            with pytest.raises(NotFound):
                await read_record(view, ORDERS, "o-1")
            with pytest.raises(NotFound):
                await read_record(view, PERSONS, "p-1")
            assert (await read_record(view, PERSONS, "p-2")).person_id == "p-2"
        with pytest.raises(NotFound, match=r"device\.person_id"):
            await registry.police.put_device(translate.parse_device(records.device()))
        with pytest.raises(NotFound, match=r"order\.protected_person_ids\[1\]"):
            await registry.police.put_order(order("o-3", ("p-2", "p-1")))
        assert await orders_like(registry, long) == {"o-2"}
        assert await orders_with_cases(registry, "w-1") == ["o-2"]
        async with registry.database.transaction() as connection:
            (row,) = (await connection.execute(sa.select(tables.orders).where(tables.orders.c.order_id == "o-1"))).all()
            assert (row.sealed, row.digest) == (b"", b"")
            (key,) = (await connection.execute(sa.select(data_keys).where(data_keys.c.owner == "orders/o-1"))).all()
            assert key.wrapped == b"" and key.destroyed_at_ms is not None
            for table in (match_keys, record_digests):
                assert (await connection.execute(sa.select(table).where(table.c.record_id == "o-1"))).all() == []
        # A change of the wearer doesn't touch the destroyed order.
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=2)))


@pytest.mark.parametrize("reason", [EndReason.NON_PROSECUTION, EndReason.ACQUITTAL])
async def test_an_order_of_item_3_2_is_destroyed_at_once_when_it_lapses_and_her_record_stays(
    where: Path | str, reason: EndReason
) -> None:
    async with opened(where) as (registry, key_retention):
        await put_all(registry, order(order_type="ORDER_TYPE_STALKING_TAG"))
        await registry.police.end_order("o-1", OrderEnd(reason, MeshClock().now_ms() - 1000), 2)
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["o-1"]
        async with registry.transactions.open() as view:
            assert (await read_record(view, PERSONS, "p-1")).ended_at_ms is None


@pytest.mark.parametrize(
    ("order_type", "reason"),
    [
        ("ORDER_TYPE_UNSPECIFIED", EndReason.ACQUITTAL),
        *((f"ORDER_TYPE_{kind.name}", EndReason.ACQUITTAL) for kind in OrderType if kind not in SPECIAL_TYPES),
        ("ORDER_TYPE_STALKING_APPROACH", EndReason.NON_PROSECUTION),
        ("ORDER_TYPE_STALKING_TAG", EndReason.CANCELLED_BY_COURT),
    ],
)
async def test_other_ends_and_other_orders_leave_the_records_for_five_years(
    where: Path | str, order_type: str, reason: EndReason
) -> None:
    async with opened(where) as (registry, key_retention):
        await put_all(registry, order(order_type=order_type))
        await registry.police.end_order("o-1", OrderEnd(reason, MeshClock().now_ms() - 1000), 2)
        await destroy_all(key_retention)
        assert await destroyed(registry) == []
    async with opened(where, clock=ahead(KEPT_AFTER_END_MS + DAY_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["o-1", "p-1"]


async def test_a_wearer_is_destroyed_five_years_after_the_removal_of_the_last_tag(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order())
        await registry.ministry.put_tag(translate.parse_tag(records.tag("tag-2")))
        await registry.ministry.end_tag("tag-1", MeshClock().now_ms(), 2)
    async with opened(where, clock=ahead(2 * KEPT_AFTER_END_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == []  # the second tag is still on
        await registry.ministry.end_tag("tag-2", MeshClock().now_ms(), 2)
        await destroy_all(key_retention)
        assert await destroyed(registry) == []  # an end that is recorded late can be corrected for 30 days
    async with opened(where, clock=ahead(2 * KEPT_AFTER_END_MS + CORRECTABLE_MS + DAY_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["w-1"]
        # Nothing would be enforced by a tag on a destroyed wearer, so it is refused until the wearer is put again.
        with pytest.raises(NotFound, match=r"tag\.wearer_id"):
            await registry.ministry.put_tag(translate.parse_tag(records.tag("tag-3")))
        # The order against the wearer stays in force without a case.
        assert await registry.police.put_device(translate.parse_device(records.device())) is PutOutcome.STORED
        assert await registry.transactions.change(lambda working: working.cases.of_orders(["o-1"])) == []
        async with registry.transactions.open() as view:
            assert (await read_record(view, ORDERS, "o-1")).order_id == "o-1"


async def test_a_wearer_who_is_put_after_the_destruction_stays_until_a_later_tag_is_due(
    where: Path | str,
) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, order())
        await registry.ministry.end_tag("tag-1", MeshClock().now_ms(), 2)
    async with opened(where, clock=ahead(2 * KEPT_AFTER_END_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["w-1"]
        with pytest.raises(Conflict, match="was destroyed"):
            await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
        # The new tag is fitted only after the next round of the retention.
        await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=2)))
        await destroy_all(key_retention)
        await registry.ministry.put_tag(translate.parse_tag(records.tag("tag-2")))
        assert await orders_with_cases(registry, "w-1") == ["o-1"]
        await registry.ministry.end_tag("tag-2", ahead(2 * KEPT_AFTER_END_MS).now_ms(), 2)
    async with opened(where, clock=ahead(3 * KEPT_AFTER_END_MS + DAY_MS)) as (registry, key_retention):
        await destroy_all(key_retention)
        assert await destroyed(registry) == ["w-1", "w-1"]


async def test_the_background_work_rewraps_keys_and_destroys_records(where: Path | str) -> None:
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
            assert {row.ring for row in await connection.execute(alive)} == {Vault([NEW]).current}
