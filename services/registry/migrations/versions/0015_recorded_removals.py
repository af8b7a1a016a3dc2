"""Store when a tag's record was put, so that a removal that is recorded late can be corrected before the wearer's data is destroyed."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("tags", sa.Column("recorded_ms", sa.BigInteger, nullable=False, server_default="0"))
