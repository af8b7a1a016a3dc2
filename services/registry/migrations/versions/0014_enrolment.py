"""Create the table of the codes by which phones are enrolled, and find a device by its token."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "enrolment_codes",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("device_id", sa.String(64), nullable=False, index=True),
        sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("issued_by", sa.String(256), nullable=False),
    )
    op.create_index("ix_device_tokens_sha256", "device_tokens", ["sha256"])
