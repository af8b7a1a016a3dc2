"""Metadata of the registry's tables, and the table of single values. The scripts in migrations/ create the same tables; a test
compares both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

MIGRATIONS = Path(__file__).with_name("migrations")

metadata = sa.MetaData()
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Type of a key that the database counts up. SQLite counts up only columns of the type INTEGER."""

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def reference(name: str, target: str, **options: bool) -> sa.Column[Any]:
    """Column that refers to the id of a record; `target` is `table.column`."""
    return sa.Column(name, sa.String(64), sa.ForeignKey(target), nullable=False, **options)  # type: ignore[arg-type]
