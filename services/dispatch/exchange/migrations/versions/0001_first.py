"""Creates the tables of deliveries to receivers, of links that were used, and of the alarms of match reviews."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "deliveries",
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("delivery_id", sa.String, nullable=False, unique=True),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("step", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index("deliveries_of_incident", "deliveries", ["receiver", "incident_id"])
    op.create_index("deliveries_waiting", "deliveries", ["receiver", "sequence"], sqlite_where=sa.text("outcome = ''"))
    op.create_table(
        "handed",
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "links_used",
        sa.Column("nonce", sa.String, primary_key=True),
        sa.Column("status", sa.Integer, nullable=False),
        sa.Column("answer", sa.String, nullable=False),
    )
    op.create_table(
        "review_alarms",
        sa.Column("case_id", sa.String, primary_key=True),
        sa.Column("since_ms", sa.BigInteger, primary_key=True),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("wearer_id", sa.String, nullable=False),
        sa.Column("alarmed_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "review_deliveries",
        sa.Column("receiver", sa.String, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("delivery_id", sa.String, nullable=False, unique=True),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index(
        "review_deliveries_waiting", "review_deliveries", ["receiver", "sequence"], sqlite_where=sa.text("outcome = ''")
    )
