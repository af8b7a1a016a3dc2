"""Creates the findings of reviewers about incidents."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "findings",
        sa.Column("finding_id", sa.String(64), primary_key=True),
        sa.Column("incident_id", sa.String(64), nullable=False, index=True),
        sa.Column("due_on", sa.Date, nullable=False),
        sa.Column("made_by", sa.String(256), nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, index=True),
        sa.Column("closed_by", sa.String(256)),
        sa.Column("sealed_outcome", sa.LargeBinary),
    )
