"""Adds the phone that named an address, so that a phone deletes its own address and nobody else's."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("push_addresses", sa.Column("phone_key", sa.String, nullable=False, server_default=""))
