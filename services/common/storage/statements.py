"""Statements of hot paths, executed by the driver itself: without SQLAlchemy's compiling, contexts and result objects.

A statement is a text for each dialect, and the driver prepares it once for each connection. SQLite numbers its parameters `?1`,
PostgreSQL `$1`. Each function runs within a visit of `Database`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.util import await_only

from services.common.storage import postgres

T = TypeVar("T")


def is_postgresql(connection: sa.Connection) -> bool:
    """Whether the connection's database is PostgreSQL. If not, it is SQLite."""
    return connection.dialect.name == "postgresql"


def fetch(connection: sa.Connection, sql: str, parameters: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
    """Executes a statement and returns its rows."""
    driver = _driver(connection)
    if is_postgresql(connection):
        rows: Sequence[tuple[Any, ...]] = _awaited(driver.fetch(sql, *parameters))
        return rows
    found: list[tuple[Any, ...]] = driver.execute(sql, parameters).fetchall()
    return found


def execute(connection: sa.Connection, sql: str, parameters: Sequence[object] = ()) -> int:
    """Executes a statement that returns no rows. Returns the number of rows that it changed."""
    driver = _driver(connection)
    if is_postgresql(connection):
        status: str = _awaited(driver.execute(sql, *parameters))
        return int(status.rpartition(" ")[2])
    changed: int = driver.execute(sql, parameters).rowcount
    return changed


def execute_many(connection: sa.Connection, sql: str, rows: Sequence[Sequence[object]]) -> None:
    """Executes an SQLite statement once for each row of parameters. PostgreSQL gets all rows in one statement, see `rows.write`."""
    if len(rows) == 1:
        _driver(connection).execute(sql, rows[0])
    elif rows:
        _driver(connection).executemany(sql, rows)


def _driver(connection: sa.Connection) -> Any:
    return connection.connection.driver_connection


def _awaited(answer: Awaitable[T]) -> T:
    """Waits for the driver's answer, as SQLAlchemy does within `run_sync`. Raises Unavailable if the server refuses."""
    with postgres.refusals():
        return await_only(answer)
