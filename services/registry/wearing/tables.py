"""Table of the records about the wearing of tags."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata, reference

tag_records = sa.Table(
    "tag_records",
    metadata,
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("order_id", sa.String(64), nullable=False, index=True),
    sa.Column("device_id", sa.String(64), nullable=False),
    sa.Column("from_ms", sa.BigInteger, nullable=False),
    sa.Column("until_ms", sa.BigInteger),
    sa.Column("allowed_by", sa.String(64), nullable=False),
    sa.Column("afterwards", sa.Boolean, nullable=False),
    sa.Column("recorded_by", sa.String(256), nullable=False),
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("ended_by", sa.String(256), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
)
