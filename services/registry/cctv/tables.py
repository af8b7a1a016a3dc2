"""Tables of the log of requests for CCTV. Rows are only ever added."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import BIG_KEY, metadata, reference

cctv_requests = sa.Table(
    "cctv_requests",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("ground", sa.String(16), nullable=False),
    sa.Column("government", sa.String(100), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
cctv_entries = sa.Table(
    "cctv_entries",
    metadata,
    sa.Column("request_id", sa.String(64), sa.ForeignKey("cctv_requests.request_id"), primary_key=True),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    sa.Column("recorded_by", sa.String(256), nullable=False),
    sa.Column("sealed_text", sa.LargeBinary, nullable=False),
)
