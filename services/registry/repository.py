"""Base of the repositories: reads and writes of a capability's tables within one transaction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.storage import db
from services.common.storage import rows as storage
from services.common.storage.rows import RowTarget
from services.registry.tables import meta

_META = RowTarget(meta, changing=("value",))
_SELECT_META = sa.select(meta.c.value).where(meta.c.name == sa.bindparam("name"))


class Repository:
    """The tables of a capability as one transaction sees them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def _rows(self, statement: sa.Executable) -> Sequence[sa.Row[Any]]:
        return (await self._connection.execute(statement)).all()

    async def _write(self, statement: sa.Executable, rows: Iterable[Mapping[str, Any]]) -> None:
        """Execute a statement once with all rows, in their order. Without rows, nothing is sent to the database."""
        if parameters := list(rows):
            await self._connection.execute(statement, parameters)

    async def _upsert(self, table: sa.Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Insert complete rows. A row replaces the stored row with the same primary key."""
        await self._write(_upserts(table)[self._connection.dialect.name], rows)


@cache
def _upserts(table: sa.Table) -> Mapping[str, Any]:
    """Upsert statements of a table, by database dialect."""

    def upsert(insert: Any) -> Any:
        changed = {column.name: insert.excluded[column.name] for column in table.c if not column.primary_key}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)

    return db.insert_by_dialect(table, upsert)


def read_meta(connection: sa.Connection, name: str) -> bytes | None:
    """A single value of the database; None if it isn't set."""
    value = connection.execute(_SELECT_META, {"name": name}).scalar()
    return None if value is None else bytes(value)


def write_meta(connection: sa.Connection, name: str, value: bytes) -> None:
    """Set a single value of the database."""
    storage.write(connection, [_META], [[(name, value)]])


class MetaRepository(Repository):
    """Single values of the database, by name."""

    async def get(self, name: str) -> bytes | None:
        """A value; None if it isn't set."""
        return await self._connection.run_sync(read_meta, name)

    async def set(self, name: str, value: bytes) -> None:
        """Set a value."""
        await self._connection.run_sync(write_meta, name, value)
