"""Adds the trail of consumed entries, the stream entries of published steps, and the leg's disclosures.

An older position has an empty trail, and only its sequence is compared. A step that was published before has no row.
"""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    op.add_column("positions", sa.Column("trail", sa.String, nullable=False, server_default=""))
    op.create_table(
        "published_steps",
        sa.Column("step_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("recorded", sa.BigInteger, nullable=False, index=True),
        sa.Column("stream", sa.String, nullable=False),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("stream_sequence", sa.BigInteger, nullable=False),
    )
    op.create_index("published_steps_newest", "published_steps", ["stream", "log_id", "recorded"])
    op.create_index("published_steps_furthest", "published_steps", ["stream", "log_id", "stream_sequence"])
    op.create_table(
        "disclosures",
        sa.Column("disclosure_id", sa.String, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
