"""Tables of the registry's database. The scripts in migrations/ create the same tables; a test compares both."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()
_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def _record(name: str, id_column: str, *columns: sa.Column[Any]) -> sa.Table:
    """Table for one kind of records that an agency puts."""
    return sa.Table(
        name,
        metadata,
        sa.Column(id_column, sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        *columns,
    )


def _reference(name: str, target: str, **options: bool) -> sa.Column[Any]:
    return sa.Column(name, sa.String(64), sa.ForeignKey(target), nullable=False, **options)  # type: ignore[arg-type]


def _sealed() -> sa.Column[Any]:
    return sa.Column("sealed", sa.LargeBinary, nullable=False)


def _national_hash() -> sa.Column[Any]:
    return sa.Column("national_hash", sa.LargeBinary, nullable=False, index=True)


def _vendor_id() -> sa.Column[Any]:
    # Records that were stored before this column existed get the default.
    return sa.Column("vendor_id", sa.String(64), nullable=False, server_default="")


meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)
wearers = _record("wearers", "wearer_id", _national_hash(), _sealed())
tags = _record(
    "tags",
    "device_id",
    _reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
)
protected_persons = _record("protected_persons", "person_id", _sealed())
devices = _record(
    "devices",
    "device_id",
    _reference("person_id", "protected_persons.person_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
)
orders = _record("orders", "order_id", _national_hash(), _sealed())
order_persons = sa.Table(
    "order_persons",
    metadata,
    _reference("order_id", "orders.order_id", primary_key=True),
    _reference("person_id", "protected_persons.person_id", primary_key=True, index=True),
)
cases = sa.Table(
    "cases",
    metadata,
    sa.Column("sequence", _BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, unique=True),
    _reference("order_id", "orders.order_id", index=True),
    _reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("withdrawn_at_ms", sa.BigInteger),
    sa.Column("valid_until_ms", sa.BigInteger, nullable=False),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)
routes = sa.Table(
    "routes",
    metadata,
    sa.Column("device_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("route", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
)
device_tokens = sa.Table(
    "device_tokens",
    metadata,
    sa.Column("id", _BIG_KEY, primary_key=True),
    sa.Column("device_id", sa.String(64), nullable=False, index=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False),
    sa.Column("valid_until_ms", sa.BigInteger),
    sqlite_autoincrement=True,
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", _BIG_KEY, primary_key=True),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("msg_id", sa.String(256), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("sent_at_ms", sa.BigInteger, index=True),
    sa.Column("stored_sequence", sa.BigInteger),
    sqlite_autoincrement=True,
)
