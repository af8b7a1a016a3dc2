"""Add the trail of read entries to the traces' progress, and the stream sequence to the messages of the outbox.

An older row of trace_positions has an empty trail, so only its sequence is compared. An older message has no sequence.
"""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("trace_positions", sa.Column("trail", sa.Text, nullable=False, server_default=""))
    op.add_column("outbox", sa.Column("stored_sequence", sa.BigInteger))
