"""A batch of records stores exactly what single puts store."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import date
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from sqlalchemy.exc import OperationalError

from services.common.errors import PermanentError, Unavailable
from services.common.privacy import secret_keys
from services.common.storage import db
from services.registry.agencies.bulk import Result
from services.registry.domain.records import Device, Order, ProtectedPerson, Respondent, Tag, Wearer
from services.registry.keys import Vault
from services.registry.records.kinds import Record
from services.registry.records.store import prepare
from services.registry.tables import MIGRATIONS
from services.registry.working_set import working_set
from services.registry.working_set.working_set import WorkingSet
from tests.support.registry.bulk import FixedClock, comparable, content, put_singly, random_records
from tests.support.registry.core import RegistryCore

RECORDS = 120
BIRTH = date(1980, 1, 1)


@asynccontextmanager
async def opened(where: Path | str) -> AsyncIterator[RegistryCore]:
    async with db.open_database(where, MIGRATIONS) as database:
        key = X25519PrivateKey.from_private_bytes(bytes(32)).public_key()
        registry = RegistryCore(database, Vault([bytes(32)]), FixedClock(), partitions=3, warning_key=key)
        await registry.prepare()
        yield registry


async def put_all_singly(registry: RegistryCore, records: Sequence[Record]) -> list[Result]:
    results: list[Result] = []
    for record in records:
        try:
            results.append(await put_singly(registry, record))
        except PermanentError as error:
            results.append(error)
    return results


def refused(result: Result) -> bool:
    return isinstance(result, PermanentError)


async def put_batch(registry: RegistryCore, records: Sequence[Record]) -> list[Result]:
    return await registry.bulk.put([prepare(record, registry.transactions.vault) for record in records])


@pytest.mark.parametrize("seed", (1, 2, 3, 5, 7))
async def test_batches_store_exactly_what_single_puts_store(
    seed: int, where: Path | str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Sealing is random, so a sealed contact is replaced by its text.
    monkeypatch.setattr(secret_keys, "seal", lambda clear, owner, _key: owner.encode() + clear.SerializeToString())
    records, chance = random_records(seed, RECORDS), random.Random(seed)
    async with opened(tmp_path / "single.sqlite3") as registry:
        single, expected = await put_all_singly(registry, records), await content(registry)
    async with opened(where) as registry:
        batched: list[Result] = []
        while len(batched) < len(records):
            size = chance.choice((1, 2, 7, 40))
            batched += await put_batch(registry, records[len(batched) : len(batched) + size])
        assert comparable(batched) == comparable(single)
        stored = await content(registry)
        for table, rows in expected.items():
            assert stored[table] == rows, table
        # Records that are sent once more change nothing.
        await put_batch(
            registry, [record for record, result in zip(records, batched, strict=True) if not refused(result)]
        )
        assert await content(registry) == stored
    assert {type(result).__name__ for result in single} >= {"PutResult", "Conflict", "NotFound", "FailedPrecondition"}
    assert all(expected[table] for table in ("cases", "outbox", "routes"))


def related(first: int, count: int) -> list[Record]:
    """Records of so many joint cases, each before the record that names it."""
    records: list[Record] = []
    for n in range(first, first + count):
        number = f"{n:013d}"
        records += (
            Wearer(f"w-{n}", number, f"name {n}", birth_date=BIRTH, source_version=1),
            Tag(f"t-{n}", f"w-{n}", 1),
            ProtectedPerson(f"p-{n}", "name", 1),
            Device(f"d-{n}", f"p-{n}", 1),
            Order(
                order_id=f"o-{n}",
                respondent=Respondent(number, f"name {n}", BIRTH),
                protected_person_ids=(f"p-{n}",),
                places=(),
                rings=(),
                valid_from_ms=1_700_000_000_000,
                valid_until_ms=2_000_000_000_000,
                source_version=1,
            ),
        )
    return records


async def test_a_database_that_refuses_stores_nothing_of_the_batch(
    where: Path | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(connection: object, working: WorkingSet, now_ms: int) -> None:
        write(connection, working, now_ms)  # type: ignore[arg-type]
        raise OperationalError("insert", {}, sqlite3.OperationalError("database or disk is full"))

    async with opened(where) as registry:
        await put_batch(registry, related(0, 1))
        before, write = await content(registry), working_set.write_changes
        monkeypatch.setattr(working_set, "write_changes", full)
        with pytest.raises(Unavailable, match="disk is full"):
            await put_batch(registry, related(1, 5))
        monkeypatch.setattr(working_set, "write_changes", write)
        assert await content(registry) == before
        await put_batch(registry, related(1, 5))
        assert len((await content(registry))["cases"]) == 6
