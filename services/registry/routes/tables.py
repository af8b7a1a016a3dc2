"""Table of the last sent routes of the devices."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

routes = sa.Table(
    "routes",
    metadata,
    sa.Column("device_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("route", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
)
