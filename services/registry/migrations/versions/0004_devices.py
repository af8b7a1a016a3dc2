"""The vendor of each tag and device."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("tags", "devices"):
        op.add_column(table, sa.Column("vendor_id", sa.String(64), nullable=False, server_default=""))
    # Routes say more than they did, so each is due again.
    op.execute("update routes set sent_day = 0")
