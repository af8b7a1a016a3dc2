"""Table of the enrolment codes."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

enrolment_codes = sa.Table(
    "enrolment_codes",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("device_id", sa.String(64), nullable=False, index=True),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("used_ms", sa.BigInteger),
    sa.Column("issued_by", sa.String(256), nullable=False),
)
