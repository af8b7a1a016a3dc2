"""Adds the trail of accepted entries to the position of a stream. Existing positions get an empty trail."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("positions", sa.Column("trail", sa.String, nullable=False, server_default=""))
