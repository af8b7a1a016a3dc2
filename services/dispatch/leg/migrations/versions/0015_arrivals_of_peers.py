"""Adds to other legs' changed assignments whether one of the changes was an arrival, which the last change no longer says."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"


def upgrade() -> None:
    op.add_column(
        "figures_changed_peers", sa.Column("has_arrived", sa.Boolean, nullable=False, server_default=sa.false())
    )
