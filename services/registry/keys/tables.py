"""Table of the keys that encrypt the records."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

data_keys = sa.Table(
    "data_keys",
    metadata,
    sa.Column("owner", sa.String(96), primary_key=True),
    sa.Column("ring", sa.String(16), nullable=False, index=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("destroy_at_ms", sa.BigInteger, index=True),
    sa.Column("destroyed_at_ms", sa.BigInteger),
)
"""`owner` is table/id of the record. The row of a destroyed key stays, with empty bytes in `wrapped` and the time of destruction.
In such a row, `destroy_at_ms` is the time until which the match events of the record are kept."""
