"""Create the tables of trace facts, read progress and case versions, and an index on the ledger's reference."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "trace_facts",
        sa.Column("incident_id", sa.String(64), primary_key=True),
        sa.Column("fact_id", sa.String(160), primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
        sa.Column("fact", sa.Text, nullable=False),
    )
    op.create_table(
        "trace_positions",
        sa.Column("stream", sa.String(32), primary_key=True),
        sa.Column("log_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "case_versions",
        sa.Column("case_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_ledger_reference", "ledger", ["reference"])
