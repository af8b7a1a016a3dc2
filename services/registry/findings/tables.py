"""Table of the findings. Texts are sealed, as they may tell something about a person."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

findings = sa.Table(
    "findings",
    metadata,
    sa.Column("finding_id", sa.String(64), primary_key=True),
    sa.Column("incident_id", sa.String(64), nullable=False, index=True),
    sa.Column("due_on", sa.Date, nullable=False),
    sa.Column("made_by", sa.String(256), nullable=False),
    sa.Column("made_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),
    sa.Column("closed_ms", sa.BigInteger, index=True),
    sa.Column("closed_by", sa.String(256)),
    sa.Column("sealed_outcome", sa.LargeBinary),
)
"""`sealed` is the text and the owner as JSON. One key in `data_keys` seals it and the outcome."""
