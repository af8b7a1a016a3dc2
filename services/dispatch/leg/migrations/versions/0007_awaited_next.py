"""Replaces the index of absent legs by one that also orders their deadlines, so that the next deadline is found at once."""

from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    op.drop_index("ix_awaited_legs_absent", "awaited_legs")
    op.create_index("awaited_legs_next", "awaited_legs", ["absent", "due_ms"])
