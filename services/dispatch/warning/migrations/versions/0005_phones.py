"""Finds the notices to a device, and those that can still be read."""

from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_index("sendings_of_way", "sendings", ["way", "expires_ms"])
    op.create_index("sendings_by_end", "sendings", ["expires_ms"])
