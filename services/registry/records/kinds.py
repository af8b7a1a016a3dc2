"""The kinds of records that the agencies put, in one table: how each kind is stored, listed, matched, disclosed and destroyed.

Code that handles every kind of record reads this table. A new kind needs a class in domain.py, a database table, canonical lines,
and a row here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, TypeAlias, TypeVar

import sqlalchemy as sa
from pydantic import TypeAdapter

from services.common.privacy.grounds import RecordKind
from services.common.rpc.identity import Role
from services.registry import tables
from services.registry.domain.disclosure import destroy_at_ms, ground_fell, lapsed
from services.registry.domain.reconciliation import (
    Agency,
    Line,
    Listed,
    device_lines,
    order_lines,
    person_unit_lines,
    protected_person_lines,
    tag_lines,
    wearer_lines,
    wearer_unit_lines,
)
from services.registry.domain.records import (
    Device,
    ListedKind,
    Order,
    PersonUnit,
    ProtectedPerson,
    Respondent,
    Tag,
    Wearer,
    WearerUnit,
)
from services.registry.domain.reviews import Side

Record: TypeAlias = Wearer | Tag | ProtectedPerson | Device | Order | WearerUnit | PersonUnit
R = TypeVar("R", bound=Record)


@dataclass(frozen=True, kw_only=True, eq=False)
class RecordType(Generic[R]):
    """One kind of record: its class and table, and how its records are listed, matched, disclosed and destroyed."""

    cls: type[R]
    table: sa.Table
    listed_kind: ListedKind
    agency: Agency
    """Agency that puts and lists the records."""
    lines: Callable[[R], Iterable[Line]]
    """Lines of the canonical text, see reconciliation.proto."""
    ledger_kind: RecordKind | None = None
    """Kind in the ledger. None if the record holds no personal data: then it is stored in columns and not encrypted."""
    shows: Mapping[Role.ValueType, frozenset[str]] = field(default_factory=dict)
    """Fields of the disclosed record that each role sees. All other fields are omitted."""
    ends_ms: Callable[[R], int | None] = lambda _: None
    """When the record ends, milliseconds of mesh time; None if it has no end yet. Its data is destroyed some time after."""
    at_once: Callable[[R], bool] = lambda _: False
    """Whether the data of an ended record is destroyed at its end already."""
    owned_by: RecordType[Any] | None = None
    """Kind of the record that the record belongs to; None if it belongs to none."""
    side: Side | None = None
    """Side of a match that the record stands on; None if it isn't matched."""
    person: Callable[[R], Wearer | Respondent] | None = None
    """The person whom a record on a side describes."""

    @cached_property
    def key(self) -> sa.Column[Any]:
        """Column with the id of the record."""
        (key,) = self.table.primary_key
        return key

    @cached_property
    def owner(self) -> sa.Column[Any]:
        """Column with the id of the record's owner. Raises LookupError if it belongs to none."""
        if self.owned_by is None:
            raise LookupError(f"{self.table.name} holds no records that belong to others")
        return self.table.c[self.owned_by.key.name]

    @cached_property
    def _codec(self) -> TypeAdapter[R]:
        return TypeAdapter(self.cls)

    @property
    def required_ledger_kind(self) -> RecordKind:
        """Kind in the ledger. Raises LookupError if the records hold no personal data."""
        if self.ledger_kind is None:
            raise LookupError(f"{self.table.name} holds no encrypted records, so none can be disclosed or destroyed")
        return self.ledger_kind

    def id_of(self, record: R) -> str:
        """Id of a record."""
        record_id: str = getattr(record, self.key.name)
        return record_id

    def national_id(self, record: R) -> str:
        """National number of the person whom a record describes; empty if it is unknown, or if the record isn't matched."""
        return self.person(record).national_id if self.person is not None else ""

    def has_ended(self, record: R) -> bool:
        """Whether a record has an end, so that its data has a date of destruction."""
        return self.ends_ms(record) is not None

    def destroy_at_ms(self, record: R, recorded_ms: int) -> int | None:
        """When a record that was stored at `recorded_ms` is destroyed, milliseconds of mesh time; None if it has no end yet."""
        ends_ms = self.ends_ms(record)
        return None if ends_ms is None else destroy_at_ms(ends_ms, recorded_ms, at_once=self.at_once(record))

    def content(self, record: R) -> bytes:
        """The record as JSON, without values that equal their default."""
        return self._codec.dump_json(record, exclude_defaults=True)

    def parse(self, content: bytes) -> R:
        """The record from its JSON."""
        return self._codec.validate_json(content)

    def columns(self, record: R) -> dict[str, object]:
        """The columns that are fields of the record. If it isn't encrypted, these are all columns that describe it."""
        return {name: getattr(record, name) for name in self.cls.__dataclass_fields__ if name in self.table.c}

    def of_values(self, values: Sequence[Any]) -> R:
        """The record from the values of all columns of its table, if it isn't encrypted."""
        named = dict(zip(self.table.c.keys(), values, strict=True))
        return self.cls(**{name: value for name, value in named.items() if name in self.cls.__dataclass_fields__})


_WHOLE = frozenset({"national_id", "name", "birth_date", "sex", "phone", "address"})
_RECOGNISED = frozenset({"name", "birth_date", "sex", "phone"})
ORDERS = RecordType(
    cls=Order,
    table=tables.orders,
    listed_kind=ListedKind.ORDER,
    agency=Agency.NPA,
    lines=order_lines,
    ledger_kind=RecordKind.ORDER,
    # The fields of the respondent. Of the other agency's person, an agency sees what it needs to recognise them.
    shows={
        Role.ROLE_NPA_RECORDS: _WHOLE,
        Role.ROLE_NPA_DESK: _WHOLE - {"national_id"},
        Role.ROLE_MOJ_RECORDS: _RECOGNISED,
        Role.ROLE_MOJ_DESK: _RECOGNISED,
    },
    ends_ms=lambda order: order.ends_ms,
    at_once=ground_fell,
    side=Side.ORDER,
    person=lambda order: order.respondent,
)
WEARERS = RecordType(
    cls=Wearer,
    table=tables.wearers,
    listed_kind=ListedKind.WEARER,
    agency=Agency.MOJ,
    lines=wearer_lines,
    ledger_kind=RecordKind.WEARER,
    shows={
        Role.ROLE_MOJ_RECORDS: _WHOLE,
        Role.ROLE_MOJ_DESK: _WHOLE - {"national_id"},
        # The police search for the person, so they don't need the address and the national number.
        Role.ROLE_NPA_DESK: _RECOGNISED,
        Role.ROLE_NPA_RECORDS: _RECOGNISED,
        Role.ROLE_REVIEWER: _WHOLE,
    },
    ends_ms=lambda wearer: wearer.end.at_ms if wearer.end else None,
    at_once=lapsed,
    side=Side.WEARER,
    person=lambda wearer: wearer,
)
TAGS = RecordType(
    cls=Tag,
    table=tables.tags,
    listed_kind=ListedKind.TAG,
    agency=Agency.MOJ,
    lines=tag_lines,
    owned_by=WEARERS,
)
PERSONS = RecordType(
    cls=ProtectedPerson,
    table=tables.protected_persons,
    listed_kind=ListedKind.PROTECTED_PERSON,
    agency=Agency.NPA,
    lines=protected_person_lines,
    ledger_kind=RecordKind.PROTECTED_PERSON,
    shows={
        # `places` are the protected places of the person's orders.
        Role.ROLE_NPA_RECORDS: frozenset({"name", "relation", "places"}),
        Role.ROLE_NPA_DESK: frozenset({"name", "relation", "places"}),
        # Probation officers go to the wearer, so they don't need the places of the protected person.
        Role.ROLE_MOJ_DESK: frozenset({"name", "relation"}),
        Role.ROLE_REVIEWER: frozenset({"name", "relation"}),
    },
    ends_ms=lambda person: person.ended_at_ms,
)
DEVICES = RecordType(
    cls=Device,
    table=tables.devices,
    listed_kind=ListedKind.DEVICE,
    agency=Agency.NPA,
    lines=device_lines,
    owned_by=PERSONS,
)

WEARER_UNITS = RecordType(
    cls=WearerUnit,
    table=tables.wearer_units,
    listed_kind=ListedKind.WEARER_UNIT,
    agency=Agency.MOJ,
    lines=wearer_unit_lines,
    ledger_kind=RecordKind.PRESENCE_UNIT,
    ends_ms=lambda unit: unit.installed_until_ms,
    owned_by=WEARERS,
)
PERSON_UNITS = RecordType(
    cls=PersonUnit,
    table=tables.person_units,
    listed_kind=ListedKind.PERSON_UNIT,
    agency=Agency.NPA,
    lines=person_unit_lines,
    ledger_kind=RecordKind.PRESENCE_UNIT,
    ends_ms=lambda unit: unit.installed_until_ms,
    owned_by=PERSONS,
)

RECORD_TYPES: tuple[RecordType[Any], ...] = (
    ORDERS,
    WEARERS,
    TAGS,
    PERSONS,
    DEVICES,
    WEARER_UNITS,
    PERSON_UNITS,
)
UNIT_TYPES: tuple[RecordType[Any], ...] = (WEARER_UNITS, PERSON_UNITS)
DEVICE_TYPES: tuple[RecordType[Any], ...] = (TAGS, DEVICES)
"""Kinds of devices that a person wears or carries. Their records hold no personal data, but join a device with its person."""
_BY_CLASS: Mapping[type[Record], RecordType[Any]] = {kind.cls: kind for kind in RECORD_TYPES}
_BY_TABLE: Mapping[str, RecordType[Any]] = {kind.table.name: kind for kind in RECORD_TYPES}
LISTED_BY: Mapping[Agency, tuple[ListedKind, ...]] = {
    agency: tuple(
        kind.listed_kind
        for kind in sorted(RECORD_TYPES, key=lambda kind: kind.listed_kind.value)
        if kind.agency is agency
    )
    for agency in Agency
}
"""Kinds of records that each agency lists."""


def type_of(record: Record) -> RecordType[Any]:
    """The kind of a record."""
    return _BY_CLASS[type(record)]


def type_in(table: str) -> RecordType[Any]:
    """The kind of the records in a table."""
    return _BY_TABLE[table]


def list_entry(record: Record) -> Listed:
    """The list entry of a record, as its agency would compute it."""
    kind = type_of(record)
    text = "".join(f"{path}={value}\n" for path, value in kind.lines(record) if value)
    return Listed(
        kind=kind.listed_kind,
        record_id=kind.id_of(record),
        source_version=record.source_version,
        digest=hashlib.sha256(text.encode()).digest(),
    )
