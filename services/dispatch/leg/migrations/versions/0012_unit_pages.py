"""Creates the links and sign-ins of units' pages, and the time of a unit's call for help."""

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    op.create_table(
        "unit_links",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("unit_id", sa.String, nullable=False, index=True),
        sa.Column("shift_until_ms", sa.BigInteger, nullable=False),
        sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("issued_by", sa.String, nullable=False),
    )
    op.create_table(
        "unit_sign_ins",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("unit_id", sa.String, nullable=False, index=True),
        sa.Column("shift_until_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("ended_ms", sa.BigInteger),
    )
    op.add_column("units", sa.Column("distress_ms", sa.BigInteger))
