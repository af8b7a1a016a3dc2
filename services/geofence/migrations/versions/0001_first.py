"""Creates the outbox of disclosures."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "waiting",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("disclosure_id", sa.String, nullable=False, unique=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "open_shares",
        sa.Column("disclosure_id", sa.String, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("positions", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "published",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("disclosure_id", sa.String, nullable=False, unique=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
