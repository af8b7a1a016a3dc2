"""Tables derived from the records: reconciliation, match keys, reviews with their decisions, match events and order stages."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.records.tables import metadata

_BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

record_digests = sa.Table(
    "record_digests",
    metadata,
    sa.Column("kind", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Column("source_version", sa.BigInteger, nullable=False),
    # Masked, because a plain digest would reveal a national number to an attacker who tries all numbers.
    sa.Column("masked", sa.LargeBinary, nullable=False),
)
reconciliations = sa.Table(
    "reconciliations",
    metadata,
    sa.Column("agency", sa.String(8), primary_key=True),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("compared_at_ms", sa.BigInteger),
    sa.Column("differences", sa.BigInteger, nullable=False),
    sa.Column("proven_at_ms", sa.BigInteger),
    sa.Column("root", sa.LargeBinary),
    sa.Column("alarmed_at_ms", sa.BigInteger),
)
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
    sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), nullable=False, index=True),
    sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("enforced", sa.Boolean, nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),
    sa.Column("weight_bits", sa.Float, nullable=False),
    sa.Column("reasons", sa.Text, nullable=False),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("paged_at_ms", sa.BigInteger),
)
review_decisions = sa.Table(
    "review_decisions",
    metadata,
    sa.Column("id", _BIG_KEY, primary_key=True),
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
    sa.Column("sequence", _BIG_KEY, primary_key=True),
    sa.Column("event", sa.String(24), nullable=False),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("wearer_id", sa.String(64), nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
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
