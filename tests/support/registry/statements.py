"""Counts the SQL statements of a block by kind, and the values that its working sets look up."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from services.common.storage import statements as driver
from services.registry.working_set import cached_rows, working_set

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

    def count(self, sql: str) -> None:
        """Counts a statement, if it reads or changes a table."""
        if found := _TARGET.match(sql):
            verb, table = filter(None, found.groups())
            self.by_kind[f"{verb} {table}"] += 1

    def counting(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A function of `services.common.storage.statements` that counts what it executes. SQLAlchemy has no event of it."""

        def counted_run(connection: sa.Connection, sql: str, *arguments: Any) -> Any:
            self.count(sql)
            return run(connection, sql, *arguments)

        return counted_run

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

    def count_event(*args: Any) -> None:
        statements.count(args[2])

    def look_up(
        connection: sa.Connection, select: str, lookup: cached_rows.Lookup, *, values: Collection[Any]
    ) -> list[Sequence[Any]]:
        statements.looked_up.update((select, lookup.column, value) for value in values)
        return read(connection, select, lookup, values=values)

    read = cached_rows.read_rows
    sa.event.listen(sa.Engine, "before_cursor_execute", count_event)
    try:
        with monkeypatch.context() as patch:
            for module in (cached_rows, working_set):
                patch.setattr(module, "read_rows", look_up)
            for name in ("fetch", "execute", "execute_many"):
                patch.setattr(driver, name, statements.counting(getattr(driver, name)))
            yield statements
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", count_event)
