"""Creates the tables of the alarms of match reviews, and of the deliveries about them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "review_alarms",
        sa.Column("case_id", sa.String, primary_key=True),
        sa.Column("since_ms", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("wearer_id", sa.String, nullable=False),
        sa.Column("alarmed_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "review_deliveries",
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("delivery_id", sa.String, nullable=False, unique=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index(
        "review_deliveries_waiting",
        "review_deliveries",
        ["receiver", "sequence"],
        sqlite_where=sa.text("outcome = ''"),
    )
