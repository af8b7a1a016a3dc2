"""Add the reason for which a wearer wears a tag. Tags that were stored before have none, which gives no ground for a notice."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tags", sa.Column("basis", sa.String(32), nullable=False, server_default=""))
