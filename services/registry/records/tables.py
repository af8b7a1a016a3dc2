"""Tables of the records that the agencies put, and of the stages of the orders."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from services.registry.tables import metadata, reference


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


def _sealed() -> sa.Column[Any]:
    return sa.Column("sealed", sa.LargeBinary, nullable=False)


def _vendor_id() -> sa.Column[Any]:
    # Records that were stored before this column existed get the default.
    return sa.Column("vendor_id", sa.String(64), nullable=False, server_default="")


wearers = _record("wearers", "wearer_id", _sealed())
tags = _record(
    "tags",
    "device_id",
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
    sa.Column("basis", sa.String(32), nullable=False, server_default=""),
    # When this version was recorded, mesh time; 0 if that was before this column existed.
    sa.Column("recorded_ms", sa.BigInteger, nullable=False, server_default="0"),
)
protected_persons = _record("protected_persons", "person_id", _sealed())
devices = _record(
    "devices",
    "device_id",
    reference("person_id", "protected_persons.person_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
)
wearer_units = _record("wearer_units", "unit_id", reference("wearer_id", "wearers.wearer_id", index=True), _sealed())
person_units = _record(
    "person_units", "unit_id", reference("person_id", "protected_persons.person_id", index=True), _sealed()
)
orders = _record("orders", "order_id", _sealed())
order_persons = sa.Table(
    "order_persons",
    metadata,
    reference("order_id", "orders.order_id", primary_key=True),
    reference("person_id", "protected_persons.person_id", primary_key=True, index=True),
)
order_stages = sa.Table(
    "order_stages",
    metadata,
    sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
    sa.Column("source_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("end_reason", sa.String(32), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)
