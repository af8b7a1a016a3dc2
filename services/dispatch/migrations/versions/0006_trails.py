"""Which entries of a stream the leg has taken in, and as which entries its steps were published.

A position from before has an empty trail: its number alone is compared. A step that was published before has no row.
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
