"""Table of the devices' tokens."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import BIG_KEY, metadata

device_tokens = sa.Table(
    "device_tokens",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("device_id", sa.String(64), nullable=False, index=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False, index=True),
    sa.Column("valid_until_ms", sa.BigInteger),
    sqlite_autoincrement=True,
)
