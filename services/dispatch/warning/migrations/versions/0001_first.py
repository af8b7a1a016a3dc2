"""Creates the tables of contacts, threats, advice, messages with their sendings and receipts, and pending updates of the leg."""

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
        sa.Column("trail", sa.String, nullable=False),
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
        sa.Column("valid_until_ms", sa.BigInteger, index=True),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("valid_from_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "contact_devices",
        sa.Column("device_id", sa.String, primary_key=True),
        sa.Column("case_id", sa.String, primary_key=True),
        sa.Column("person_id", sa.String, primary_key=True),
    )
    op.create_index("contact_devices_of_case", "contact_devices", ["case_id", "person_id"])
    op.create_table(
        "told",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("person_id", sa.String, primary_key=True),
        sa.Column("state", sa.JSON, nullable=False),
        sa.Column("is_open", sa.Boolean, nullable=False),
        sa.Column("is_silent", sa.Boolean, nullable=False),
        sa.Column("drill", sa.Boolean, nullable=False),
        sa.Column("over_ms", sa.BigInteger),
        sa.Column("flag", sa.Integer, nullable=False, index=True),
        sa.Column("flag_ms", sa.BigInteger, nullable=False),
        sa.Column("duress", sa.Boolean, nullable=False),
    )
    op.create_index("told_open", "told", ["person_id"], sqlite_where=sa.text("is_open"))
    op.create_index("told_silent", "told", ["person_id"], sqlite_where=sa.text("is_silent"))
    op.create_index("told_over", "told", ["person_id", "over_ms"], sqlite_where=sa.text("over_ms is not null"))
    op.create_table(
        "advice",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("subject_id", sa.String, primary_key=True),
        sa.Column("advice", sa.Integer, nullable=False),
        sa.Column("advice_id", sa.String, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "closings",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("subject_id", sa.String, primary_key=True),
        sa.Column("closed_ms", sa.BigInteger, nullable=False),
        sa.Column("found_nobody", sa.Boolean, nullable=False),
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
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("drill", sa.Boolean, nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False),
        sa.Column("due_ms", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("instruction", sa.String, nullable=False),
        sa.Column("in_app_only", sa.Boolean, nullable=False),
        sa.Column("receipt_due_ms", sa.BigInteger, index=True),
        sa.Column("issued_ms", sa.BigInteger),
        sa.Column("past_ms", sa.BigInteger),
        sa.Column("language", sa.String, nullable=False),
        sa.Column("text", sa.String, nullable=False),
        sa.Column("who_text", sa.String, nullable=False),
        sa.Column("where_text", sa.String, nullable=False),
        sa.Column("act_text", sa.String, nullable=False),
        sa.Column("repetitions", sa.Integer, nullable=False),
        sa.Column("repeated_ms", sa.BigInteger),
        sa.Column("repeat_ms", sa.BigInteger),
        sa.Column("delivered_ms", sa.BigInteger),
        sa.Column("displayed_ms", sa.BigInteger),
        sa.Column("acknowledged_ms", sa.BigInteger),
        sa.Column("ground", sa.String, nullable=False),
        sa.Column("wearer_id", sa.String, nullable=False),
        sa.Column("case_id", sa.String, nullable=False),
    )
    op.create_index("messages_of_person", "messages", ["person_id", "due_ms"])
    op.create_index("messages_waiting", "messages", ["due_ms"], sqlite_where=sa.text("state = 'waiting'"))
    op.create_index("messages_present", "messages", ["person_id"], sqlite_where=sa.text("past_ms is null"))
    op.create_index("messages_repeated", "messages", ["repeat_ms"], sqlite_where=sa.text("repeat_ms is not null"))
    op.create_table(
        "covered_alerts",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("alert_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("acknowledged", sa.Boolean, nullable=False),
    )
    op.create_index("covered_alerts_of_incident", "covered_alerts", ["incident_id"])
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
    op.create_table(
        "sendings",
        sa.Column("message_id", sa.String, primary_key=True),
        sa.Column("way", sa.String, primary_key=True),
        sa.Column("repetition", sa.Integer, primary_key=True),
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
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("person_id", sa.String, nullable=False),
        sa.Column("order_id", sa.String, nullable=False),
        sa.Column("alert_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.Integer, nullable=False),
        sa.Column("what", sa.String, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
    )
