"""Creates the tables of deliveries, of the last queued step of each receiver, and of used links."""

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
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("delivery_id", sa.String, nullable=False, unique=True),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("step", sa.LargeBinary, nullable=False),
        sa.Column("body", sa.LargeBinary, nullable=False),
        sa.Column("content_type", sa.String, nullable=False),
        sa.Column("deadline_ms", sa.BigInteger, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index("deliveries_waiting", "deliveries", ["receiver", "sequence"], sqlite_where=sa.text("outcome = ''"))
    op.create_index("deliveries_of_incident", "deliveries", ["receiver", "incident_id"])
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
