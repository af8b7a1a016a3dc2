"""Add the vendor of each tag and device, the table of the tokens with which devices report directly, and the number of positions that
were sent under a share to the row of its end in the ledger. No database of revision 0004 was ever released."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0003"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for table in ("tags", "devices"):
        op.add_column(table, sa.Column("vendor_id", sa.String(64), nullable=False, server_default=""))
    op.create_table(
        "device_tokens",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("device_id", sa.String(64), nullable=False, index=True),
        sa.Column("sha256", sa.LargeBinary, nullable=False),
        sa.Column("valid_until_ms", sa.BigInteger),
        sqlite_autoincrement=True,
    )
    # Routes now contain vendor and tokens, so every route must be sent again.
    op.execute("update routes set sent_day = 0")
    op.add_column("ledger", sa.Column("positions", sa.BigInteger))
