"""SQL statements of a put: their number doesn't grow with the persons, orders and devices, and no row is read twice."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeAlias

import pytest

from services.common.clock import MeshClock
from services.common.storage import db
from services.registry.keys import Vault
from services.registry.records import translate
from services.registry.tables import MIGRATIONS
from tests.support.registry import records
from tests.support.registry.core import RegistryCore
from tests.support.registry.statements import Statements, counted

READ_FOR_TWO_REASONS = {
    "tags",
    "devices",
    "cases",
    "order_persons",
    "protected_persons",
    "person_units",
    "wearer_units",
}
"""Tables that a put may read with two statements, for different rows: a device by its own id, then the other devices; the owner of
a device, then the other persons of an order; the units of each."""


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[RegistryCore]:
    async with db.open_database(where, MIGRATIONS) as database:
        registry = RegistryCore(database, Vault([bytes(32)]), MeshClock())
        await registry.prepare()
        yield registry


async def put_order(registry: RegistryCore, order_id: str, person_ids: tuple[str, ...], version: int = 1) -> None:
    await registry.police.put_order(translate.parse_order(records.order(order_id, person_ids, version=version)))


async def put_wearer(registry: RegistryCore, version: int = 1) -> None:
    await registry.ministry.put_wearer(translate.parse_wearer(records.wearer(version=version)))


async def put_tag(registry: RegistryCore, version: int = 1) -> None:
    await registry.ministry.put_tag(translate.parse_tag(records.tag(version=version)))


async def put_device(registry: RegistryCore, number: int, version: int = 1) -> None:
    message = records.device(f"app-{number}", f"p-{number}", version=version)
    await registry.police.put_device(translate.parse_device(message))


async def put_persons(registry: RegistryCore, count: int) -> tuple[str, ...]:
    """Put protected persons with a protective device each; returns their ids."""
    for number in range(count):
        await registry.police.put_protected_person(translate.parse_protected_person(records.person(f"p-{number}")))
        await put_device(registry, number)
    return tuple(f"p-{number}" for number in range(count))


class Counts:
    """Statements of the puts of one story, by the name of the put."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.of: dict[str, Statements] = {}

    async def count(self, name: str, put: Awaitable[None]) -> None:
        """Count the statements of a put. No value may be looked up twice in it."""
        with counted(self._monkeypatch) as statements:
            await put
        assert [value for value, times in statements.looked_up.items() if times > 1] == [], (
            f"{name} looks up values twice"
        )
        self.of[name] = statements


Story: TypeAlias = Callable[[Path, int, Counts], Awaitable[None]]


async def an_order(where: Path | str, persons: int, counts: Counts) -> None:
    """An order with so many protected persons matches a wearer and is changed; then the tag is changed."""
    async with opened(where) as registry:
        person_ids = await put_persons(registry, persons)
        await put_wearer(registry)
        await put_tag(registry)
        await counts.count("new order", put_order(registry, "o-1", person_ids))
        await counts.count("changed order", put_order(registry, "o-1", person_ids, version=2))
        await counts.count("changed tag", put_tag(registry, version=2))


async def a_device(where: Path | str, persons: int, counts: Counts) -> None:
    """A device changes whose owner an order protects together with other persons."""
    async with opened(where) as registry:
        await put_order(registry, "o-1", await put_persons(registry, persons))
        await put_wearer(registry)
        await counts.count("changed device", put_device(registry, 0, version=2))


async def a_wearer(where: Path | str, orders: int, counts: Counts) -> None:
    """A wearer matches so many orders with one protected person each, and is changed; then the tag is put and changed."""
    async with opened(where) as registry:
        for number, person_id in enumerate(await put_persons(registry, orders)):
            await put_order(registry, f"o-{number}", (person_id,))
        await counts.count("new wearer", put_wearer(registry))
        await counts.count("new tag", put_tag(registry))
        await counts.count("changed wearer", put_wearer(registry, version=2))
        await counts.count("changed tag", put_tag(registry, version=2))


@pytest.mark.parametrize(
    ("story", "few", "many"),
    [(an_order, 1, 20), (a_wearer, 1, 10), (a_device, 2, 20)],
    ids=["persons of an order", "orders of a wearer", "persons beside a device's owner"],
)
async def test_a_put_needs_as_many_statements_for_many_as_for_few(
    story: Story, few: int, many: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {number: Counts(monkeypatch) for number in (few, many)}
    for number, counted_for in counts.items():
        await story(tmp_path / f"{number}.sqlite3", number, counted_for)
        for name, statements in counted_for.of.items():
            print(f"{name}, {number}: {statements}")
    for name, statements in counts[many].of.items():
        assert statements.by_kind == counts[few].of[name].by_kind, name
        assert {table for table, count in statements.reads.items() if count > 1} <= READ_FOR_TWO_REASONS, name
