"""Databases of simulated processes: what the services do at each start is done once in each run of the command line.

The real migrations run once, and worlds get copies. Alembic reads and runs all scripts at each start of a service, which would take a
tenth of a simulation. Statements are compiled once, while a service that starts after a crash would compile all of its own.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

import services.dispatch
import services.geofence
import services.registry
from services.common.storage import db

_FOLDERS = (
    Path(services.registry.__file__).parent / "migrations",
    Path(services.dispatch.__file__).parent / "leg" / "migrations",
    Path(services.dispatch.__file__).parent / "exchange" / "migrations",
    Path(services.dispatch.__file__).parent / "warning" / "migrations",
    Path(services.geofence.__file__).parent / "migrations",
)
_schemas: dict[Path, tuple[str, ...]] = {}
"""Statements that make each migrated database, by its folder of migrations."""
_migrate = db._upgrade
_dialects: dict[type[sa.Dialect], sa.Dialect] = {}
_statements: dict[type[sa.Dialect], MutableMapping[Any, Any]] = {}
"""Compiled statements of all engines with a kind of dialect."""


def prepare() -> None:
    """Runs all migrations. Call it before the machine is replaced; each world that begins afterwards uses the result."""
    for folder in _FOLDERS:
        engine = sa.create_engine("sqlite://")
        with engine.begin() as connection:
            _migrate(connection, folder)
        with engine.connect() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            _schemas[folder] = tuple(line for line in raw.iterdump() if line not in ("BEGIN TRANSACTION;", "COMMIT;"))
        engine.dispose()


def upgrade(connection: Connection, migrations: Path) -> None:
    """In the place of db._upgrade: an empty database gets a copy of the migrated one, and a migrated one stays as it is."""
    statements = _schemas.get(migrations)
    if statements is None:
        _migrate(connection, migrations)
    elif not connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar():
        for statement in statements:
            connection.exec_driver_sql(statement)


def with_kept_statements(create: Callable[..., Any]) -> Callable[..., Any]:
    """The function that creates engines, so that all engines share their compiled statements."""

    def created(*arguments: Any, **options: Any) -> Any:
        engine = create(*arguments, **options)
        own: sa.Engine = getattr(engine, "sync_engine", engine)
        kind = type(own.dialect)
        own.dialect = _dialects.setdefault(kind, own.dialect)  # a part of the key of a compiled statement
        own._compiled_cache = _statements.setdefault(kind, {})
        return engine

    return created
