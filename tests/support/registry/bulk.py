"""Random records of both agencies that refer to, contradict and repeat each other, and the content of a registry's database."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.geometry import Circle
from services.registry.agencies.bulk import PutResult, Result
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import (
    Contact,
    Device,
    ExerciseKind,
    Order,
    OrderType,
    PersonUnit,
    ProtectedPerson,
    Respondent,
    Tag,
    UnitKind,
    Wearer,
    WearerUnit,
)
from services.registry.records.kinds import Record, type_in
from services.registry.tables import data_keys, meta, metadata
from tests.support.registry.core import RegistryCore, read_record

_PEOPLE = (
    ("8001011234567", "홍길동", date(1980, 1, 1), "010-1234-5678"),
    ("8001011234567", "홍길동", date(1980, 1, 1), ""),
    ("", "홍길동", date(1980, 1, 1), "010-1234-5678"),
    ("", "홍길둥", date(1980, 1, 2), "010-1234-5678"),
    ("9105052234567", "성춘향", date(1991, 5, 5), "010-9999-5678"),
    ("9105052234568", "성춘향", date(1991, 5, 5), ""),
)
_RANDOM_COLUMNS = {"sealed", "wrapped", "ring"}
"""Columns with random values: each encryption has a key of its own."""
_NUMBERED = {"cases": "sequence", "match_events": "sequence", "outbox": "id", "device_tokens": "id"}
"""Column that the database counts up, by table. Only the order is compared, because PostgreSQL may skip numbers."""


@dataclass(frozen=True, slots=True)
class FixedClock(MeshClock):
    """A clock that stands still."""

    fixed_ms: int = 1_800_000_000_000

    def now_ms(self) -> int:
        """The same moment always."""
        return self.fixed_ms


def random_records(seed: int, count: int) -> list[Record]:
    """Records with few ids, people and versions, so that many contradict each other or name records that don't exist."""
    chance = random.Random(seed)
    return [_record(chance) for _ in range(count)]


def _record(chance: random.Random) -> Record:
    n, version = chance.randrange(4), chance.randrange(4)
    national_id, name, birth_date, phone = chance.choice(_PEOPLE)
    exercise = ExerciseKind.DRILL if chance.random() < 0.1 else None
    match chance.randrange(7):
        case 0:
            number = national_id or "7001011234567"
            return Wearer(
                f"w-{n}", number, name, birth_date=birth_date, source_version=version, phone=phone, exercise=exercise
            )
        case 1:
            return Tag(f"d-{n}", f"w-{chance.randrange(5)}", version, vendor_id=chance.choice(("", "v")))
        case 2:
            contact = Contact(f"handle-{version}") if chance.random() < 0.3 else None
            return ProtectedPerson(f"p-{n}", f"name {version}", version, contact=contact)
        case 3:
            # Some ids are ids of tags too.
            return Device(f"d-{n + 3}", f"p-{chance.randrange(5)}", version, vendor_id=chance.choice(("", "v")))
        case 4:
            return WearerUnit(wearer_id=f"w-{chance.randrange(5)}", **_unit(chance, f"d-{n}", version))
        case 5:
            return PersonUnit(person_id=f"p-{chance.randrange(5)}", **_unit(chance, f"d-{n + 1}", version))
        case _:
            persons = chance.sample([f"p-{number}" for number in range(5)], chance.randrange(1, 3))
            return Order(
                order_id=f"o-{n}",
                respondent=Respondent(national_id, name, birth_date, phone=phone),
                protected_person_ids=tuple(persons),
                places=(),
                rings=(),
                valid_from_ms=1_700_000_000_000,
                valid_until_ms=chance.choice((1_750_000_000_000, 2_000_000_000_000)),
                source_version=version,
                type=OrderType.STALKING_TAG,
                exercise=exercise,
            )


def _unit(chance: random.Random, unit_id: str, version: int) -> dict[str, Any]:
    """Fields of a home unit or beacon. Some ids are ids of tags and devices too."""
    return {
        "unit_id": unit_id,
        "source_version": version,
        "kind": UnitKind.BLUETOOTH_BEACON,
        "place": Circle(37.5, 127.0 + version / 1000, 30.0),
        "installed_from_ms": 1_700_000_000_000,
        "installed_until_ms": chance.choice((None, None, 1_750_000_000_000)),
        "identifier": f"02:00:5e:10:00:0{version}",
    }


async def put_singly(registry: RegistryCore, record: Record) -> PutResult:
    """Put a record with the command for a single record."""
    match record:
        case Wearer():
            return PutResult(await registry.ministry.put_wearer(record))
        case Tag():
            return PutResult(await registry.ministry.put_tag(record))
        case ProtectedPerson():
            return PutResult(await registry.police.put_protected_person(record))
        case Device():
            return PutResult(await registry.police.put_device(record))
        case Order():
            return PutResult(*await registry.police.put_order(record))
        case WearerUnit():
            return PutResult(await registry.units.put(Agency.MOJ, record))
        case PersonUnit():
            return PutResult(await registry.units.put(Agency.NPA, record))


def comparable(results: Sequence[Result]) -> list[Any]:
    """Results that can be compared: an error as its type and text."""
    return [result if isinstance(result, PutResult) else (type(result), str(result)) for result in results]


async def content(registry: RegistryCore) -> dict[str, list[tuple[object, ...]]]:
    """All rows of the database by table, without random values, and the decrypted records."""
    found: dict[str, list[tuple[object, ...]]] = {}
    async with registry.database.transaction() as connection:
        for table in metadata.sorted_tables:
            if table is meta:
                continue  # it holds the root key, wrapped with a random nonce
            numbered = _NUMBERED.get(table.name)
            columns = [column for column in table.columns if column.name not in {*_RANDOM_COLUMNS, numbered}]
            order = [table.c[numbered]] if numbered else list(table.primary_key)
            rows = await connection.execute(sa.select(*columns).order_by(*order))
            found[table.name] = [tuple(row) for row in rows]
        owners = [row.owner for row in await connection.execute(sa.select(data_keys.c.owner).order_by("owner"))]
    found["decrypted"] = [(owner, await _decrypted(registry, owner)) for owner in owners]
    return found


async def _decrypted(registry: RegistryCore, owner: str) -> Record:
    table, _, record_id = owner.partition("/")
    async with registry.transactions.open() as work:
        record: Record = await read_record(work, type_in(table), record_id)
    return record
