"""Creates the events, the tables derived from them (steps, assignments with deadlines, incidents), other legs' assignments, and the
consumed positions of the streams. It is the oldest one: no database of an earlier version was ever released."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = None
branch_labels = None
depends_on = None


UNPUBLISHED = {"sqlite_where": sa.text("published = 0"), "postgresql_where": sa.text("NOT published")}


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
    op.create_index("steps_unpublished", "steps", ["sequence"], **UNPUBLISHED)
    op.create_table(
        "assignments",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("state", sa.Integer, nullable=False, index=True),
        sa.Column("due_ms", sa.BigInteger, index=True),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("report_to_published_ms", sa.Float),
    )
    op.create_table(
        "incidents",
        sa.Column("incident_id", sa.String, primary_key=True),
        sa.Column("opened_sequence", sa.BigInteger, nullable=False, index=True),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("order_ids", sa.JSON, nullable=False),
    )
    op.create_table(
        "peer_assignments",
        sa.Column("assignment_id", sa.String, primary_key=True),
        sa.Column("incident_id", sa.String, nullable=False, index=True),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "positions",
        sa.Column("stream", sa.String, primary_key=True),
        sa.Column("log_id", sa.String, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
    )
