"""Lets the contact of a case have no end: an order may be valid until the court decides."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    with op.batch_alter_table("contacts") as batch:
        batch.alter_column("valid_until_ms", existing_type=sa.BigInteger, nullable=True)
