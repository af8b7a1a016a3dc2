"""Counts the SQL statements of a block by kind, and the rows that its repositories read by their key."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from services.registry.cases.tables import cases
from services.registry.repository import Repository

_TARGET = re.compile(
    r"\A\s*(INSERT) INTO (\w+)|\A\s*(UPDATE) (\w+)|\A\s*(DELETE) FROM (\w+)|\A\s*(SELECT)\b.*?\bFROM (\w+)", re.DOTALL
)


class Statements:
    """Statements and rows that were counted."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        """Number of statements by verb and table. A statement with many rows of parameters counts once."""
        self.rows: Counter[tuple[str, tuple[object, ...]]] = Counter()
        """How often each row was read, by table and key. Only rows whose key was selected are counted."""

    @property
    def reads(self) -> dict[str, int]:
        """Number of SELECT statements by their first table."""
        return {kind.split()[1]: count for kind, count in self.by_kind.items() if kind.startswith("SELECT")}

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.by_kind.items()))
        return f"{self.by_kind.total()} statements: {kinds}"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    """Count the statements and rows within the block."""
    statements = Statements()

    def count(*args: Any) -> None:
        if found := _TARGET.match(args[2]):
            verb, table = filter(None, found.groups())
            statements.by_kind[f"{verb} {table}"] += 1

    async def rows_of(self: Repository, statement: Any) -> Sequence[sa.Row[Any]]:
        rows = await read(self, statement)
        columns = list(statement.selected_columns)
        for table in {column.table for column in columns if isinstance(column, sa.Column)}:
            key = [cases.c.case_id] if table is cases else list(table.primary_key)
            if all(column in columns for column in key):
                places = [columns.index(column) for column in key]
                statements.rows.update((table.name, tuple(row[place] for place in places)) for row in rows)
        return rows

    read = Repository._rows
    monkeypatch.setattr(Repository, "_rows", rows_of)
    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
        monkeypatch.setattr(Repository, "_rows", read)
