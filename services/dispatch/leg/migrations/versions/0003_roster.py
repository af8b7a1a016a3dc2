"""Creates offices and units, and adds the unit of an assignment."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("assignments", sa.Column("unit_id", sa.String))
    op.create_index("ix_assignments_unit_id", "assignments", ["unit_id"])
    op.create_table(
        "roster",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("version", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "offices",
        sa.Column("office_id", sa.String, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "units",
        sa.Column("unit_id", sa.String, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("changed", sa.BigInteger, nullable=False, index=True),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("reported_ms", sa.BigInteger),
        sa.Column("lat_deg", sa.Float),
        sa.Column("lon_deg", sa.Float),
        sa.Column("position_ms", sa.BigInteger),
    )
