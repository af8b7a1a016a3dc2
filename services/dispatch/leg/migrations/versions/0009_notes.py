"""Adds the notes of desks, which follow from the chain and from the other legs' steps."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.create_table(
        "notes",
        sa.Column("note_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
