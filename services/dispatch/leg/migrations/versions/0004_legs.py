"""Creates the owner of the database, and the awaited and absent legs."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "owner",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("leg", sa.String, nullable=False),
    )
    op.create_table(
        "awaited_legs",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("leg", sa.String, primary_key=True),
        sa.Column("due_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("absent", sa.Boolean, nullable=False, index=True),
    )
