"""Drop the hashes of the national numbers from the records. The match keys hold them, and every look-up uses the match keys."""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("wearers", "orders"):
        op.drop_index(f"ix_{table}_national_hash", table)
        op.drop_column(table, "national_hash")
