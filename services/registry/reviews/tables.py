"""Tables of matching: match keys, reviews with their decisions, and match events."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import BIG_KEY, metadata, reference

match_keys = sa.Table(
    "match_keys",
    metadata,
    sa.Column("side", sa.String(8), primary_key=True),
    sa.Column("key_hash", sa.LargeBinary, primary_key=True),
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Index("ix_match_keys_record", "side", "record_id"),
)
reviews = sa.Table(
    "reviews",
    metadata,
    sa.Column("case_id", sa.String(64), primary_key=True),
    reference("order_id", "orders.order_id", index=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("enforced", sa.Boolean, nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),
    sa.Column("weight_bits", sa.Float, nullable=False),
    # Reviews that were stored before these columns existed get the defaults.
    sa.Column("agreements", sa.Text, nullable=False, server_default="[]"),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("paged_at_ms", sa.BigInteger),
    sa.Column("legal_basis", sa.String(32), nullable=False, server_default=""),
)
review_comparisons = sa.Table(
    "review_comparisons",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("order_version", sa.BigInteger, nullable=False),
    sa.Column("wearer_version", sa.BigInteger, nullable=False),
    sa.Column("weight_bits", sa.Float, nullable=False),
    sa.Column("agreements", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
review_decisions = sa.Table(
    "review_decisions",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),
    sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
match_events = sa.Table(
    "match_events",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("event", sa.String(24), nullable=False),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("wearer_id", sa.String(64), nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)
