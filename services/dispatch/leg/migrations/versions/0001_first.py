"""Creates the tables of a leg: its events, steps and assignments, its incidents and figures, its roster, and what it has read."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("body", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    op.create_table(
        "steps",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("step_id", sa.String, nullable=False, unique=True),
        sa.Column("assignment_id", sa.String, nullable=False, index=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("published", sa.Boolean, nullable=False),
    )
    op.create_index(
        "steps_unpublished",
        "steps",
        ["sequence"],
        sqlite_where=sa.text("published = 0"),
        postgresql_where=sa.text("NOT published"),
    )
    op.create_table(
        "peer_assignments",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("state", sa.Integer, nullable=False, index=True),
        sa.Column("due_ms", sa.BigInteger, index=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("report_to_published_ms", sa.Float),
        sa.Column("unit_ids", sa.String),
    )
    op.create_index(
        "assignments_engaging",
        "assignments",
        ["unit_ids"],
        sqlite_where=sa.text("unit_ids IS NOT NULL"),
        postgresql_where=sa.text("unit_ids IS NOT NULL"),
    )
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
        "owner",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("leg", sa.String, nullable=False),
    )
    op.create_table(
        "awaited_legs",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("leg", sa.String, primary_key=True),
        sa.Column("due_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("absent", sa.Boolean, nullable=False),
    )
    op.create_index("awaited_legs_next", "awaited_legs", ["absent", "due_ms"])
    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("opened_sequence", sa.BigInteger, nullable=False, index=True),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("order_ids", sa.JSON, nullable=False),
        sa.Column("exercise", sa.Integer, nullable=False),
    )
    op.create_index(
        "incidents_but_canaries",
        "incidents",
        ["opened_sequence"],
        sqlite_where=sa.text("exercise <> 2"),
        postgresql_where=sa.text("exercise <> 2"),
    )
    op.create_index(
        "incidents_live",
        "incidents",
        ["opened_ms"],
        sqlite_where=sa.text("exercise = 0"),
        postgresql_where=sa.text("exercise = 0"),
    )
    op.create_table(
        "positions",
        sa.Column("stream", sa.String, primary_key=True),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("trail", sa.String, nullable=False),
    )
    op.create_table(
        "published_steps",
        sa.Column("step_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("recorded", sa.BigInteger, nullable=False, index=True),
        sa.Column("stream", sa.String, nullable=False),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("stream_sequence", sa.BigInteger, nullable=False),
    )
    op.create_index("published_steps_furthest", "published_steps", ["stream", "log_id", "stream_sequence"])
    op.create_index("published_steps_newest", "published_steps", ["stream", "log_id", "recorded"])
    op.create_table(
        "disclosures",
        sa.Column("disclosure_id", sa.String, primary_key=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "figures",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False),
        sa.Column("leg", sa.String, nullable=False),
        sa.Column("subject_id", sa.String, nullable=False),
        sa.Column("order_ids", sa.String, nullable=False),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("task", sa.Integer, nullable=False),
        sa.Column("offered_ms", sa.BigInteger),
        sa.Column("received_ms", sa.BigInteger),
        sa.Column("acknowledged_ms", sa.BigInteger),
        sa.Column("arrived_ms", sa.BigInteger),
        sa.Column("arrival_due_ms", sa.BigInteger),
        sa.Column("has_arrived", sa.Boolean, nullable=False),
        sa.Column("office_id", sa.String, nullable=False),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Integer, nullable=False),
        sa.Column("receipt_took_ms", sa.Integer),
        sa.Column("acceptance_took_ms", sa.Integer),
        sa.Column("arrival_took_ms", sa.Integer),
        sa.Column("arrived_in_time", sa.Boolean),
    )
    op.create_index(
        "figures_acceptance", "figures", ["leg", "office_id", "acceptance_took_ms", "opened_ms", "offered_ms"]
    )
    op.create_index(
        "figures_arrival",
        "figures",
        ["leg", "office_id", "arrival_took_ms", "arrived_in_time", "opened_ms", "offered_ms"],
    )
    op.create_index("figures_outcome", "figures", ["leg", "outcome", "kind", "opened_ms"])
    op.create_index(
        "figures_period",
        "figures",
        [
            "leg",
            "opened_ms",
            "acceptance_took_ms",
            "office_id",
            "receipt_took_ms",
            "arrival_took_ms",
            "arrived_in_time",
            "offered_ms",
            "outcome",
            "kind",
            "task",
            "subject_id",
        ],
    )
    op.create_index("figures_receipt", "figures", ["leg", "office_id", "receipt_took_ms", "opened_ms", "offered_ms"])
    op.create_index("figures_subject", "figures", ["leg", "subject_id", "opened_ms", "outcome", "task"])
    op.create_table(
        "figures_progress",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step_sequence", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "notes",
        sa.Column("note_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "unit_positions",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("unit_id", sa.String, primary_key=True),
        sa.Column("at_ms", sa.BigInteger, primary_key=True, index=True),
        sa.Column("lat_deg", sa.Float, nullable=False),
        sa.Column("lon_deg", sa.Float, nullable=False),
    )
    op.create_table(
        "duty_records",
        sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("subject_id", sa.String, nullable=False, index=True),
        sa.Column("kind", sa.String, nullable=False),
        sa.Column("body", sa.String, nullable=False),
        sa.Column("hash", sa.String, nullable=False),
    )
    op.create_table(
        "unit_links",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("unit_id", sa.String, nullable=False, index=True),
        sa.Column("shift_until_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("issued_by", sa.String, nullable=False),
    )
    op.create_table(
        "unit_sign_ins",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("unit_id", sa.String, nullable=False, index=True),
        sa.Column("shift_until_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("ended_ms", sa.BigInteger),
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
        sa.Column("distress_ms", sa.BigInteger),
    )
    op.create_table(
        "phone_states",
        sa.Column("device_id", sa.String, primary_key=True),
        sa.Column("location", sa.Integer, nullable=False),
        sa.Column("location_ms", sa.BigInteger, nullable=False),
        sa.Column("screen", sa.Integer, nullable=False),
        sa.Column("screen_ms", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "figures_changed_peers",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("has_arrived", sa.Boolean, nullable=False),
    )
