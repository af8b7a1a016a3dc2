"""Extensions of orders: a later end and one extension more, with all else as it was put. On both engines."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.errors import Conflict, FailedPrecondition, InvalidField, NotFound
from services.common.storage import db
from services.registry.agencies.police import parse_extension
from services.registry.domain import lifecycle
from services.registry.domain.lifecycle import OrderExtension, PutOutcome
from services.registry.domain.records import EndReason, Order, OrderEnd
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.records.kinds import ORDERS
from services.registry.records.store import read_record
from services.registry.tables import MIGRATIONS, order_stages
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import order_extension_pb2, registry_pb2
from tests.support.registry import records
from tests.support.registry.core import RegistryCore

DAY_MS = 86_400_000
FROM_MS = 1_790_000_000_000
UNTIL_MS = lifecycle.add_months(FROM_MS, 3)
LATER_MS = lifecycle.add_months(FROM_MS, 6)


class Extending:
    """A registry with an order of three months."""

    def __init__(self, core: RegistryCore, vault: Vault) -> None:
        self.core, self._vault = core, vault
        self.police = core.police

    async def extend(self, version: int, until_ms: int = LATER_MS, reason: str = "") -> PutOutcome:
        """Extends the order and returns the outcome."""
        return (await self.police.extend_order(OrderExtension("o-1", version, until_ms, reason)))[0]

    async def stored(self) -> Order:
        """The order as it is stored."""
        async with self.core.database.transaction() as connection:
            return await connection.run_sync(read_record, self._vault, ORDERS, record_id="o-1")

    async def stages(self) -> list[str]:
        """Stages of the order, oldest first."""
        statement = sa.select(order_stages.c.stage).order_by(order_stages.c.source_version)
        async with self.core.database.transaction() as connection:
            return list((await connection.execute(statement)).scalars())


@asynccontextmanager
async def extending(where: Path | str, order: registry_pb2.Order | None = None) -> AsyncIterator[Extending]:
    async with db.open_database(where, MIGRATIONS) as database:
        vault = Vault([bytes(32)])
        core = RegistryCore(database, vault, MeshClock())
        await core.prepare("log 1")
        await core.police.put_protected_person(translate.parse_protected_person(records.person()))
        await core.police.put_order(translate.parse_order(order or three_months()))
        yield Extending(core, vault)


def three_months() -> registry_pb2.Order:
    order = records.order()
    order.type = registry_pb2.ORDER_TYPE_STALKING_APPROACH
    order.valid_from.FromMilliseconds(FROM_MS)
    order.valid_until.FromMilliseconds(UNTIL_MS)
    order.rings.add(radius_m=700.0, action=geometry_pb2.RESPOND)
    return order


async def test_an_extension_keeps_all_else_and_the_same_request_twice_is_one(where: Path | str) -> None:
    async with extending(where) as registry:
        before = await registry.stored()
        assert await registry.extend(2) is PutOutcome.STORED
        assert await registry.extend(2) is PutOutcome.UNCHANGED
        after = await registry.stored()
        assert (after.valid_until_ms, after.extensions, after.source_version) == (LATER_MS, 1, 2)
        assert (after.places, after.rings, after.respondent) == (before.places, before.rings, before.respondent)
        assert lifecycle.duration_warnings(after) == ()
        assert await registry.extend(1, LATER_MS + DAY_MS) is PutOutcome.SUPERSEDED
        with pytest.raises(Conflict):
            await registry.extend(2, LATER_MS + DAY_MS)
        assert await registry.stored() == after
        assert await registry.stages() == ["ISSUED", "EXTENDED"]


async def test_an_extension_beyond_the_law_is_warned_about_unless_it_has_a_reason(where: Path | str) -> None:
    async with extending(where) as registry:
        await registry.extend(2, LATER_MS + DAY_MS)
        assert [warning.field for warning in lifecycle.duration_warnings(await registry.stored())] == ["valid_until"]
        await registry.extend(3, LATER_MS + 2 * DAY_MS, "the court's decision of 2 March")
        assert lifecycle.duration_warnings(await registry.stored()) == ()


async def test_what_cant_be_extended_is_refused_and_stays(where: Path | str) -> None:
    async with extending(where) as registry:
        before = await registry.stored()
        for until_ms in (UNTIL_MS, UNTIL_MS - DAY_MS):
            with pytest.raises(InvalidField, match="valid_until"):
                await registry.extend(2, until_ms)
        with pytest.raises(NotFound):
            await registry.police.extend_order(OrderExtension("o-none", 2, LATER_MS))
        assert await registry.stored() == before
        end = OrderEnd(EndReason.CANCELLED_BY_COURT, FROM_MS + DAY_MS)
        await registry.core.police.end_order("o-1", end, 2)
        with pytest.raises(FailedPrecondition, match="ended early"):
            await registry.extend(3)
        assert (await registry.stored()).end == end


async def test_an_order_until_the_decision_has_no_end_to_extend(where: Path | str) -> None:
    order = three_months()
    order.type = registry_pb2.ORDER_TYPE_STALKING_INTERIM
    order.valid_from.FromMilliseconds(lifecycle.PROTECTION_FROM_MS)
    order.ClearField("valid_until")
    async with extending(where, order) as registry:
        with pytest.raises(FailedPrecondition, match="until the court decides"):
            await registry.extend(2)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"order_id": ""}, "order_id"),
        ({"order_id": "a b"}, "order_id"),
        ({"source_version": -1}, "source_version"),
        ({"valid_until": None}, "valid_until"),
        ({"duration_reason": "x" * 501}, "duration_reason"),
        ({"duration_reason": "a\nb"}, "duration_reason"),
    ],
)
def test_a_bad_request_names_its_field(change: dict[str, object], field: str) -> None:
    given: dict[str, object] = {"order_id": "o-1", "source_version": 2, "valid_until": three_months().valid_until}
    request = order_extension_pb2.ExtendOrderRequest(**(given | change))  # type: ignore[arg-type]
    with pytest.raises(InvalidField) as refused:
        parse_extension(request)
    assert refused.value.field == field
