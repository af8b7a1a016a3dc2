"""Counts the SQL statements of a block by kind, and the values that its working sets look up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from services.registry.working_set import cached_rows, devices, match_keys

_TARGET = re.compile(
    r"\A\s*(INSERT) INTO (\w+)|\A\s*(UPDATE) (\w+)|\A\s*(DELETE) FROM (\w+)|\A\s*(SELECT)\b.*?\bFROM (\w+)", re.DOTALL
)


class Statements:
    """Statements that were counted, and values that were looked up."""

    def __init__(self) -> None:
        self.by_kind: Counter[str] = Counter()
        """Number of statements by verb and table. A statement with many rows of parameters counts once."""
        self.looked_up: Counter[tuple[str, str, object]] = Counter()
        """How often the working set asked the database for a value, by its query and column."""

    @property
    def reads(self) -> dict[str, int]:
        """Number of SELECT statements by their first table."""
        return {kind.split()[1]: count for kind, count in self.by_kind.items() if kind.startswith("SELECT")}

    def __str__(self) -> str:
        kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(self.by_kind.items()))
        return f"{self.by_kind.total()} statements: {kinds}"


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Statements]:
    """Count the statements and look-ups within the block."""
    statements = Statements()

    def count(*args: Any) -> None:
        if found := _TARGET.match(args[2]):
            verb, table = filter(None, found.groups())
            statements.by_kind[f"{verb} {table}"] += 1

    def look_up(
        connection: sa.Connection, select: str, lookup: cached_rows.Lookup, *, values: Collection[Any]
    ) -> list[Sequence[Any]]:
        statements.looked_up.update((select, lookup.column, value) for value in values)
        return read(connection, select, lookup, values=values)

    read = cached_rows.read_rows
    for module in (cached_rows, devices, match_keys):
        monkeypatch.setattr(module, "read_rows", look_up)
    sa.event.listen(sa.Engine, "before_cursor_execute", count)
    try:
        yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count)
        for module in (cached_rows, devices, match_keys):
            monkeypatch.setattr(module, "read_rows", read)
