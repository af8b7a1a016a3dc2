"""Creates the figures of assignments. They are counted from the stored steps and the other legs' assignments after the start."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"

_INDEXES = {
    "figures_receipt": ("leg", "office_id", "receipt_took_ms", "opened_ms", "offered_ms"),
    "figures_acceptance": ("leg", "office_id", "acceptance_took_ms", "opened_ms", "offered_ms"),
    "figures_arrival": ("leg", "office_id", "arrival_took_ms", "arrived_in_time", "opened_ms", "offered_ms"),
    "figures_outcome": ("leg", "outcome", "kind", "opened_ms"),
    "figures_subject": ("leg", "subject_id", "opened_ms", "outcome", "task"),
    "figures_opened": ("leg", "opened_ms", "acceptance_took_ms", "offered_ms"),
}


def upgrade() -> None:
    op.create_table(
        "figures",
        sa.Column("assignment_id", sa.String, primary_key=True),
        *(sa.Column(name, sa.String, nullable=False) for name in ("incident_id", "leg", "subject_id", "order_ids")),
        sa.Column("opened_ms", sa.BigInteger, nullable=False),
        sa.Column("task", sa.Integer, nullable=False),
        *(
            sa.Column(f"{name}_ms", sa.BigInteger)
            for name in ("offered", "received", "acknowledged", "arrived", "arrival_due")
        ),
        sa.Column("has_arrived", sa.Boolean, nullable=False),
        sa.Column("office_id", sa.String, nullable=False),
        sa.Column("kind", sa.Integer, nullable=False),
        sa.Column("outcome", sa.Integer, nullable=False),
        *(sa.Column(f"{name}_took_ms", sa.Integer) for name in ("receipt", "acceptance", "arrival")),
        sa.Column("arrived_in_time", sa.Boolean),
    )
    for name, columns in _INDEXES.items():
        op.create_index(name, "figures", list(columns))
    op.create_table(
        "figures_progress",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("step_sequence", sa.BigInteger, nullable=False),
    )
    op.create_table("figures_changed_peers", sa.Column("assignment_id", sa.String, primary_key=True))
    is_live = sa.text("exercise = 0")
    op.create_index("incidents_live", "incidents", ["opened_ms"], sqlite_where=is_live, postgresql_where=is_live)
    op.execute("INSERT INTO figures_changed_peers SELECT assignment_id FROM peer_assignments")
