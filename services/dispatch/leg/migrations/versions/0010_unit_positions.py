"""Creates the positions of units that have an assignment."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    op.create_table(
        "unit_positions",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("unit_id", sa.String, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True, autoincrement=False, index=True),
        sa.Column("lat_deg", sa.Float, nullable=False),
        sa.Column("lon_deg", sa.Float, nullable=False),
    )
