"""Tables of the reconciliation with the agencies' lists."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

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
