"""Creates the table of the Ministry's notices, and adds the ground of a notice to its message. Other messages have none."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "ministry_notices",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("person_id", sa.String, primary_key=True),
        sa.Column("ground", sa.String, nullable=False),
        sa.Column("wearer_id", sa.String, nullable=False),
        sa.Column("case_id", sa.String, nullable=False),
        sa.Column("due_sequence", sa.BigInteger, nullable=False),
        sa.Column("due_ordinal", sa.Integer, nullable=False),
        sa.Column("ended_sequence", sa.BigInteger, nullable=False),
        sa.Column("ended_ordinal", sa.Integer, nullable=False),
    )
    for name in ("ground", "wearer_id", "case_id"):
        op.add_column("messages", sa.Column(name, sa.String, nullable=False, server_default=""))
