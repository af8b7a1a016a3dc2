"""Rows of several tables written together: PostgreSQL gets them in one statement, and so in one round trip; SQLite has none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Into:
    """A table, and what becomes of a row whose key is there."""

    table: sa.Table
    changing: tuple[str, ...] | None = None
    """Columns that the new row replaces; none of them: what is there stays; None: the row must be new."""
    newer: str = ""
    """A column that must be greater in the new row for that."""

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order in which rows give them."""
        return tuple(column.name for column in self.table.columns)

    def insert(self, source: str) -> str:
        """The statement that takes rows from `source`."""
        names = ", ".join(self.columns)
        return f"INSERT INTO {self.table.name} ({names}) {source}{self._on_conflict()}"

    def _on_conflict(self) -> str:
        if self.changing is None:
            return ""
        if not self.changing:
            return " ON CONFLICT DO NOTHING"
        key = ", ".join(column.name for column in self.table.primary_key)
        replaced = ", ".join(f"{name} = excluded.{name}" for name in self.changing)
        where = f" WHERE {self.table.name}.{self.newer} < excluded.{self.newer}" if self.newer else ""
        return f" ON CONFLICT ({key}) DO UPDATE SET {replaced}{where}"


def write(connection: sa.Connection, tables: Sequence[Into], rows: Sequence[Sequence[tuple[object, ...]]]) -> None:
    """Writes rows, for each table those at its place, with values as the driver takes them. No key may be there twice."""
    if connection.dialect.name == "postgresql":
        by_column = [
            column
            for into, some in zip(tables, rows, strict=True)
            for column in _columns(len(into.table.columns), some)
        ]
        connection.exec_driver_sql(_together(tuple(tables)), tuple(by_column))
        return
    for into, some in zip(tables, rows, strict=True):
        if some:
            connection.exec_driver_sql(_one_by_one(into), list(some))


def _columns(count: int, rows: Sequence[tuple[object, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]


@cache
def _one_by_one(into: Into) -> str:
    return into.insert(f"VALUES ({', '.join('?' for _ in into.columns)})")


@cache
def _together(tables: tuple[Into, ...]) -> str:
    """Each column is an array. Without rows for a table its arrays are empty: so it is always the same statement, prepared once."""
    inserts, number = [], 0
    for into in tables:
        arrays = []
        for column in into.table.columns:
            number += 1
            arrays.append(f"${number}::{column.type.compile(_POSTGRESQL)}[]")
        source = f"SELECT * FROM unnest({', '.join(arrays)})"  # noqa: S608  # names of the code's own tables
        inserts.append(into.insert(source))
    *others, last = inserts
    made = ", ".join(f"into_{n} AS ({one})" for n, one in enumerate(others))
    return f"WITH {made} {last}" if made else last
