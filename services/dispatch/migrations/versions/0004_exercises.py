"""Which incidents are exercises."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.add_column("incidents", sa.Column("exercise", sa.Integer, nullable=False, server_default="0"))
    op.create_index("incidents_but_canaries", "incidents", ["opened_sequence"], sqlite_where=sa.text("exercise <> 2"))
