"""Adds the exercise of an incident."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("incidents", sa.Column("exercise", sa.Integer, nullable=False, server_default="0"))
    is_live = sa.text("exercise <> 2")
    op.create_index(
        *("incidents_but_canaries", "incidents", ["opened_sequence"]),
        sqlite_where=is_live,
        postgresql_where=is_live,
    )
