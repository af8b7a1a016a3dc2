"""Creates the tables of contacts, notified persons, messages with their sendings and receipts, and pending updates of the leg."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "positions",
        sa.Column("stream", sa.String, primary_key=True),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "taken",
        sa.Column("alert_id", sa.String, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "contacts",
        sa.Column("case_id", sa.String, primary_key=True),
        sa.Column("person_id", sa.String, primary_key=True, index=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("device_ids", sa.JSON, nullable=False),
        sa.Column("valid_until_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "told",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("person_id", sa.String, primary_key=True),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("figure_alert_id", sa.String, nullable=False),
        sa.Column("flag", sa.Integer, nullable=False, index=True),
        sa.Column("flag_ms", sa.BigInteger, nullable=False),
        sa.Column("duress", sa.Boolean, nullable=False),
    )
    op.create_table(
        "messages",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("person_id", sa.String, nullable=False),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("partition", sa.Integer, nullable=False),
        sa.Column("alert_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("before_alert_id", sa.String, nullable=False),
        sa.Column("notice", sa.String, nullable=False),
        sa.Column("demand", sa.Integer, nullable=False),
        sa.Column("ring_m", sa.Float, nullable=False),
        sa.Column("of_place", sa.Boolean, nullable=False),
        sa.Column("drill", sa.Boolean, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("receipt_due_ms", sa.BigInteger, index=True),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("language", sa.String, nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("delivered_ms", sa.BigInteger),
        sa.Column("displayed_ms", sa.BigInteger),
        sa.Column("acknowledged_ms", sa.BigInteger),
    )
    op.create_index("messages_of_person", "messages", ["incident_id", "person_id", "due_ms"])
    op.create_index("messages_waiting", "messages", ["due_ms"], sqlite_where=sa.text("state = 'waiting'"))
    op.create_table(
        "sendings",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("way", sa.String, primary_key=True),
        sa.Column("command_id", sa.String, nullable=False, index=True),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("next_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False),
        sa.Column("outcome", sa.String, nullable=False),
    )
    op.create_index("sendings_open", "sendings", ["next_ms"], sqlite_where=sa.text("outcome = ''"))
    op.create_table(
        "to_leg",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("message_id", sa.String, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
    )
