"""Tables of the ledger of disclosures and its signed heads."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

ledger = sa.Table(
    "ledger",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("disclosure_id", sa.String(64), nullable=False, unique=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("deed", sa.String(16), nullable=False),
    sa.Column("who", sa.String(256), nullable=False),
    sa.Column("legal_basis", sa.String(32), nullable=False),
    sa.Column("purpose", sa.String(32), nullable=False),
    sa.Column("reference", sa.String(64), nullable=False, index=True),
    sa.Column("record_kind", sa.String(32), nullable=False),
    sa.Column("record_id", sa.String(64), nullable=False, index=True),
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("recipient", sa.String(256), nullable=False),
    sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
    sa.Column("positions", sa.BigInteger),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
ledger_heads = sa.Table(
    "ledger_heads",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)
