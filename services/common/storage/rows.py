"""Writes of rows to several tables together. PostgreSQL gets them in one statement to save round trips, which SQLite doesn't have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from services.common.storage import statements

_POSTGRESQL = postgresql.dialect()  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class RowTarget:
    """A table to write to, and the treatment of a row whose primary key exists."""

    table: sa.Table
    changing: tuple[str, ...] | None = None
    """Columns that the new row replaces in an existing row. If empty, the existing row stays. If None, the default, the row must be
    new."""
    newer: str = ""
    """Column that must be greater in the new row to replace an existing one. If empty, the default, the new row always replaces."""
    generated: str = ""
    """Column that the database counts up, so that rows have no value for it. Empty, the default, if there is none."""
    unique: str = ""
    """Column whose value identifies an existing row. If empty, the default, the primary key identifies it."""

    @property
    def stored(self) -> tuple[sa.Column[Any], ...]:
        """The table's columns for which a row has a value, in the order of the values."""
        return tuple(column for column in self.table.columns if column.name != self.generated)

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns for which a row has a value, in the order of the values."""
        return tuple(column.name for column in self.stored)

    def insert(self, source: str) -> str:
        """SQL statement that inserts the rows of `source`, a VALUES or SELECT clause."""
        names = ", ".join(self.columns)
        return f"INSERT INTO {self.table.name} ({names}) {source}{self._on_conflict()}"

    def _on_conflict(self) -> str:
        if self.changing is None:
            return ""
        if not self.changing:
            return " ON CONFLICT DO NOTHING"
        key = self.unique or ", ".join(column.name for column in self.table.primary_key)
        replaced = ", ".join(f"{name} = excluded.{name}" for name in self.changing)
        where = f" WHERE {self.table.name}.{self.newer} < excluded.{self.newer}" if self.newer else ""
        return f" ON CONFLICT ({key}) DO UPDATE SET {replaced}{where}"


def write(connection: sa.Connection, tables: Sequence[RowTarget], rows: Sequence[Sequence[tuple[object, ...]]]) -> None:
    """Writes rows to several tables. `rows` holds a list of rows for each table, with values as the driver accepts them.

    The rows of a table must have distinct keys.
    """
    if statements.is_postgresql(connection):
        by_column = [
            column
            for into, table_rows in zip(tables, rows, strict=True)
            for column in _columns(len(into.columns), table_rows)
        ]
        statements.execute(connection, _together(tuple(tables)), by_column)
        return
    for into, table_rows in zip(tables, rows, strict=True):
        if table_rows:
            statements.execute_many(connection, _one_by_one(into), table_rows)


def _columns(count: int, rows: Sequence[tuple[object, ...]]) -> list[list[Any]]:
    return [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in range(count)]


@cache
def _one_by_one(into: RowTarget) -> str:
    return into.insert(f"VALUES ({', '.join('?' for _ in into.columns)})")


@cache
def _together(tables: tuple[RowTarget, ...]) -> str:
    """Statement that writes the rows of all tables, with one array per column. A table without rows gets empty arrays, so that the
    statement is always the same and is prepared once."""
    inserts, number = [], 0
    for into in tables:
        arrays = []
        for column in into.stored:
            number += 1
            arrays.append(f"${number}::{column.type.compile(_POSTGRESQL)}[]")
        source = f"SELECT * FROM unnest({', '.join(arrays)})"  # noqa: S608  # names of the code's own tables
        inserts.append(into.insert(source))
    *others, last = inserts
    others_sql = ", ".join(f"into_{n} AS ({insert})" for n, insert in enumerate(others))
    return f"WITH {others_sql} {last}" if others_sql else last
