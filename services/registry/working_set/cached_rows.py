"""Rows of one table in memory: read with one statement for all requested values, changed in memory, and written together later."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

_MAX_VARIABLES = 8192
"""Maximum number of values in one statement for SQLite, which accepts 32,766. A power of two."""


@dataclass(frozen=True)
class Lookup:
    """A column by which rows are looked up."""

    column: str
    """SQL expression of the column."""
    sql_type: str = "VARCHAR"
    """Type of the column in PostgreSQL."""


def read_rows(connection: Connection, select: str, lookup: Lookup, *, values: Collection[Any]) -> list[Sequence[Any]]:
    """The rows of a SELECT statement whose column has one of these values. `select` must end with `WHERE` or `AND`."""
    if connection.dialect.name == "postgresql":
        statement = f"{select} {lookup.column} = ANY($1::{lookup.sql_type}[])"
        return list(connection.exec_driver_sql(statement, (list(values),)).all())
    rows: list[Sequence[Any]] = []
    left = list(values)
    for first in range(0, len(left), _MAX_VARIABLES):
        part = left[first : first + _MAX_VARIABLES]
        # The number of variables is a power of two, so that the driver prepares few different statements.
        count = 1 << (len(part) - 1).bit_length()
        part += part[-1:] * (count - len(part))
        statement = f"{select} {lookup.column} IN ({','.join('?' * count)})"
        rows += connection.exec_driver_sql(statement, tuple(part)).all()
    return rows


@dataclass
class _Index(Generic[K]):
    """Keys of the rows in memory by the value of one column."""

    keys: dict[Hashable, dict[K, None]] = field(default_factory=lambda: defaultdict(dict))
    complete: set[Hashable] = field(default_factory=set)
    """Values for which all rows of the database were read."""


class CachedRows(Generic[K, V]):
    """Rows of one table as a transaction sees them, with its own changes. No row is parsed twice."""

    def __init__(
        self,
        connection: Connection,
        select: str,
        *,
        key: Lookup,
        key_of: Callable[[V], K],
        parse: Callable[[Sequence[Any]], V],
        lookups: Mapping[str, tuple[Lookup, Callable[[V], Hashable]]],
    ) -> None:
        """`select` ends with `WHERE`. `lookups` are further columns by which rows are found, each with its value in a row."""
        self._connection = connection
        self._select = select
        self._key = key
        self._key_of = key_of
        self._parse = parse
        self._lookups = lookups
        self._rows: dict[K, V | None] = {}
        """Row by key; None if the database has none."""
        self._indexes: dict[str, _Index[K]] = {name: _Index() for name in lookups}
        self.changed: dict[K, V] = {}
        """Rows that were changed in memory, in the order of their first change."""
        self.removed: set[K] = set()
        """Keys of rows that were removed in memory."""

    def get(self, keys: Iterable[K]) -> dict[K, V]:
        """The rows with these keys, by key. Keys without a row are omitted."""
        wanted = list(dict.fromkeys(keys))
        unknown = [key for key in wanted if key not in self._rows]
        if unknown:
            for read in read_rows(self._connection, self._select, self._key, values=unknown):
                self._add(self._parse(read))
            for key in unknown:
                self._rows.setdefault(key, None)
        return {key: row for key in wanted if (row := self._rows[key]) is not None}

    def by(self, name: str, values: Iterable[Hashable]) -> list[V]:
        """The rows whose column `name` has one of these values."""
        index, lookup = self._indexes[name], self._lookups[name][0]
        wanted = list(dict.fromkeys(values))
        unknown = [value for value in wanted if value not in index.complete]
        if unknown:
            for read in read_rows(self._connection, self._select, lookup, values=unknown):
                parsed = self._parse(read)
                key = self._key_of(parsed)
                # A row in memory may be newer than the row of the database.
                if self._rows.get(key) is None and key not in self.removed:
                    self._add(parsed)
            index.complete.update(unknown)
        keys = dict.fromkeys(key for value in wanted for key in index.keys.get(value, ()))
        return [row for key in keys if (row := self._rows[key]) is not None]

    def know_none(self, name: str, values: Iterable[Hashable]) -> None:
        """State that the database has no rows with these values, so that it isn't asked."""
        self._indexes[name].complete.update(values)

    def put(self, row: V) -> None:
        """Add or replace a row."""
        key = self._key_of(row)
        self._drop(key)
        self._add(row)
        self.changed[key] = row
        self.removed.discard(key)

    def remove(self, row: V) -> None:
        """Remove a row."""
        key = self._key_of(row)
        self._drop(key)
        self._rows[key] = None
        self.changed.pop(key, None)
        self.removed.add(key)

    def _drop(self, key: K) -> None:
        before = self._rows.get(key)
        if before is not None:
            for name, (_, value_of) in self._lookups.items():
                self._indexes[name].keys[value_of(before)].pop(key, None)

    def _add(self, row: V) -> None:
        key = self._key_of(row)
        self._rows[key] = row
        for name, (_, value_of) in self._lookups.items():
            self._indexes[name].keys[value_of(row)][key] = None
