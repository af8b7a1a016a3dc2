"""Creates the states of protected persons' phones. The police leg alone has rows."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"


def upgrade() -> None:
    op.create_table(
        "phone_states",
        sa.Column("device_id", sa.String, primary_key=True),
        sa.Column("location", sa.Integer, nullable=False),
        sa.Column("location_ms", sa.BigInteger, nullable=False),
        sa.Column("screen", sa.Integer, nullable=False),
        sa.Column("screen_ms", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
