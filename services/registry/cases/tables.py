"""Table of the joint cases."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import BIG_KEY, metadata, reference

cases = sa.Table(
    "cases",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, unique=True),
    reference("order_id", "orders.order_id", index=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("withdrawn_at_ms", sa.BigInteger),
    sa.Column("valid_until_ms", sa.BigInteger),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)
