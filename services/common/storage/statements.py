"""Statements of hot paths, executed by the driver itself: without SQLAlchemy's compiling, contexts and result objects.

A statement is a text for each dialect, and the driver prepares it once for each connection. SQLite numbers its parameters `?1`,
PostgreSQL `$1`. Each function runs within a visit or a transaction of `Database`, which turns refusals into Unavailable.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import await_only

T = TypeVar("T")
_NOTHING: Mapping[str, object] = MappingProxyType({})


def is_postgresql(connection: sa.Connection) -> bool:
    """Whether the connection's database is PostgreSQL. If not, it is SQLite."""
    return connection.dialect.name == "postgresql"


def fetch(connection: sa.Connection, sql: str, parameters: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
    """Executes a statement and returns its rows."""
    if is_postgresql(connection):
        rows: Sequence[tuple[Any, ...]] = _awaited(_server(connection).fetch(sql, *parameters))
        return rows
    found: list[tuple[Any, ...]] = _executed(connection, sql, parameters).fetchall()
    return found


def execute(connection: sa.Connection, sql: str, parameters: Sequence[object] = ()) -> int:
    """Executes a statement that returns no rows. Returns the number of rows that it changed."""
    if is_postgresql(connection):
        status: str = _awaited(_server(connection).execute(sql, *parameters))
        return int(status.rpartition(" ")[2])
    changed: int = _executed(connection, sql, parameters).rowcount
    return changed


def execute_many(connection: sa.Connection, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """Executes an SQLite statement once for each row of parameters. PostgreSQL gets all rows in one statement, see `rows.write`."""
    if len(rows) == 1:
        _executed(connection, sql, rows[0])
    elif rows:
        _cursor(connection).executemany(sql, rows)


def _server(connection: sa.Connection) -> Any:
    """The asyncpg connection."""
    return connection.connection.driver_connection


def _cursor(connection: sa.Connection) -> Any:
    """A cursor of sqlite3, or SQLAlchemy's cursor of aiosqlite that is used like it within `run_sync`."""
    return connection.connection.cursor()


def _executed(connection: sa.Connection, sql: str, parameters: Sequence[object]) -> Any:
    cursor = _cursor(connection)
    cursor.execute(sql, parameters)
    return cursor


def _awaited(answer: Awaitable[T]) -> T:
    """Waits for the driver's answer, as SQLAlchemy does within `run_sync`."""
    return await_only(answer)


class Prepared:
    """A statement of SQLAlchemy that is compiled once for each dialect and then executed by the driver.

    Values go to the driver and come back as they are stored: JSON as text, and in SQLite a boolean as 0 or 1.
    """

    def __init__(self, statement: sa.Select[*tuple[Any, ...]] | sa.Insert | sa.Update | sa.Delete) -> None:
        self._statement = statement
        self._by_dialect: dict[str, _Compiled] = {}

    def fetch(self, connection: sa.Connection, values: Mapping[str, object] = _NOTHING) -> Sequence[tuple[Any, ...]]:
        """Executes the statement with the values of its named parameters, and returns its rows."""
        compiled = self._compiled(connection)
        return fetch(connection, compiled.sql, compiled.parameters(values))

    def execute(self, connection: sa.Connection, values: Mapping[str, object] = _NOTHING) -> int:
        """Executes the statement, which returns no rows. Returns the number of rows that it changed."""
        compiled = self._compiled(connection)
        return execute(connection, compiled.sql, compiled.parameters(values))

    def _compiled(self, connection: sa.Connection) -> _Compiled:
        compiled = self._by_dialect.get(connection.dialect.name)
        if compiled is None:
            made = self._statement.compile(dialect=connection.dialect)
            given = {name: None for name, parameter in made.binds.items() if parameter.required}
            written = made.construct_expanded_state(given)
            constants = {name: value for name, value in written.parameters.items() if name not in given}
            compiled = _Compiled(written.statement, tuple(written.positiontup or ()), constants)
            self._by_dialect[connection.dialect.name] = compiled
        return compiled


@dataclass(frozen=True, slots=True)
class _Compiled:
    sql: str
    names: tuple[str, ...]
    """Names of the parameters, in their order."""
    constants: Mapping[str, Any]
    """Values of the parameters that are part of the statement. Each execution gives the others."""

    def parameters(self, values: Mapping[str, object]) -> list[object]:
        return [values[name] if name in values else self.constants[name] for name in self.names]
