"""Which entries of a stream the traces have read, and as which entries messages of the outbox were published.

A position from before has an empty trail: its number alone is compared. A message that was sent before has no sequence.
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
