"""Table of the outbox: messages that the relay publishes to their streams."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import BIG_KEY, metadata

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("msg_id", sa.String(256), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("sent_at_ms", sa.BigInteger, index=True),
    sa.Column("stored_sequence", sa.BigInteger),
    sqlite_autoincrement=True,
)
