"""Creates the consumed positions of the streams."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "positions",
        sa.Column("stream", sa.String, primary_key=True),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
