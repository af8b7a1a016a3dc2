"""The ground of an order as the registry answers it, on both engines: by the reason for the tag, its changes and the order's end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound
from services.common.privacy.notices import NoticeGround, TagBasis
from services.common.storage import db
from services.registry.domain.cases import OrderGround
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import EndReason, OrderEnd
from services.registry.keys import Vault
from services.registry.notices import NoticeGrounds
from services.registry.records import translate
from services.registry.records.kinds import TAGS
from services.registry.tables import MIGRATIONS
from tandem.common.v1 import log_pb2, notice_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore, read_record


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[tuple[RegistryCore, NoticeGrounds]]:
    clock = MeshClock()
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), clock)
        await registry.prepare("log 1")
        yield registry, NoticeGrounds(registry.transactions, clock)


def tag(version: int, basis: registry_pb2.TagBasis.ValueType, device_id: str = "tag-1") -> registry_pb2.Tag:
    message = records.tag(device_id, version=version)
    message.basis = basis
    return message


async def put_all(registry: RegistryCore, order_type: registry_pb2.OrderType.ValueType) -> None:
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer()))
    await registry.police.put_protected_person(translate.parse_protected_person(records.person()))
    order = records.order()
    order.type = order_type
    await registry.police.put_order(translate.parse_order(order))


async def snapshots(registry: RegistryCore) -> list[log_pb2.CaseSnapshot]:
    """The snapshots of the case in the outbox, in order."""
    async with registry.transactions.open() as view:
        sent = [row.payload for row in await view.outbox.unsent(1000) if row.subject.endswith(".case")]
    return [log_pb2.LogEntry.FromString(payload).case for payload in sent]


async def ground(grounds: NoticeGrounds) -> OrderGround:
    (found,) = await grounds.of_order("o-1")
    return found


async def test_the_ground_follows_the_tag_and_goes_into_the_log(where: Path | str) -> None:
    async with opened(where) as (registry, grounds):
        await put_all(registry, registry_pb2.ORDER_TYPE_TAG_CONDITION)
        found = await ground(grounds)
        assert (found.ground, found.why_none) == (None, "the wearer wears no tag")
        await registry.ministry.put_tag(translate.parse_tag(tag(1, registry_pb2.TAG_BASIS_JUDGMENT)))
        found = await ground(grounds)
        assert (found.ground, found.tag_bases, found.order_over) == (
            NoticeGround.JUDGMENT,
            (TagBasis.JUDGMENT,),
            False,
        )
        assert (await snapshots(registry))[-1].notice_ground == notice_pb2.TAG_15_2
        await registry.ministry.put_tag(translate.parse_tag(tag(2, registry_pb2.TAG_BASIS_OTHER)))
        assert (await ground(grounds)).ground is None
        assert not (await snapshots(registry))[-1].notice_ground
        await registry.ministry.put_tag(translate.parse_tag(tag(1, registry_pb2.TAG_BASIS_JUDGMENT, "tag-2")))
        assert (await ground(grounds)).tag_bases == (TagBasis.JUDGMENT, TagBasis.OTHER)
        assert (await ground(grounds)).ground is NoticeGround.JUDGMENT
        await registry.ministry.end_tag("tag-2", 5, 2)
        assert (await ground(grounds)).ground is None


async def test_a_stalking_order_and_its_tag_have_the_police_check(where: Path | str) -> None:
    async with opened(where) as (registry, grounds):
        await put_all(registry, registry_pb2.ORDER_TYPE_STALKING_APPROACH)
        await registry.ministry.put_tag(translate.parse_tag(tag(1, registry_pb2.TAG_BASIS_STALKING_ORDER)))
        found = await ground(grounds)
        assert (found.ground, found.police_must_check) == (NoticeGround.STALKING_ORDER, True)
        snapshot = (await snapshots(registry))[-1]
        assert (snapshot.notice_ground, snapshot.police_must_check) == (notice_pb2.TAG_31_6_4, True)


async def test_an_order_that_is_over_says_so(where: Path | str) -> None:
    async with opened(where) as (registry, grounds):
        await put_all(registry, registry_pb2.ORDER_TYPE_TAG_CONDITION)
        await registry.ministry.put_tag(translate.parse_tag(tag(1, registry_pb2.TAG_BASIS_JUDGMENT)))
        end = OrderEnd(EndReason.CANCELLED_BY_COURT, 1_700_000_000_000)
        await registry.police.end_order("o-1", end, 2)
        found = await ground(grounds)
        assert found.order_over and found.ground is NoticeGround.JUDGMENT
        with pytest.raises(NotFound):
            await grounds.of_order("o-2")


async def test_the_basis_is_a_part_of_the_record_and_its_list_entry(where: Path | str) -> None:
    async with opened(where) as (registry, _):
        await put_all(registry, registry_pb2.ORDER_TYPE_TAG_CONDITION)
        parsed = translate.parse_tag(tag(1, registry_pb2.TAG_BASIS_JUDGMENT))
        await registry.ministry.put_tag(parsed)
        assert await registry.ministry.put_tag(parsed) is PutOutcome.UNCHANGED
        async with registry.transactions.open() as view:
            stored = await read_record(view, TAGS, "tag-1")
        assert stored == parsed and stored.basis is TagBasis.JUDGMENT
        assert ("basis", 1) in list(TAGS.lines(stored))
        bare = translate.parse_tag(records.tag())
        assert ("basis", None) in list(TAGS.lines(bare)) and b"basis" not in TAGS.content(bare)


def test_an_unknown_basis_is_refused_with_its_field() -> None:
    with pytest.raises(InvalidField) as refused:
        translate.parse_tag(tag(1, 9))  # type: ignore[arg-type]
    assert refused.value.field == "basis"
