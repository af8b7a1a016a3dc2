"""Create the tables of the records about tags and of the requests for CCTV. A joint case may have no end."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("cases", table_kwargs={"sqlite_autoincrement": True}) as batch:
        batch.alter_column("valid_until_ms", existing_type=sa.BigInteger, nullable=True)
    op.create_table(
        "tag_records",
        sa.Column("record_id", sa.String(64), primary_key=True),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("order_id", sa.String(64), nullable=False, index=True),
        sa.Column("device_id", sa.String(64), nullable=False),
        sa.Column("from_ms", sa.BigInteger, nullable=False),
        sa.Column("until_ms", sa.BigInteger),
        sa.Column("allowed_by", sa.String(64), nullable=False),
        sa.Column("afterwards", sa.Boolean, nullable=False),
        sa.Column("recorded_by", sa.String(256), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("ended_by", sa.String(256), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "cctv_requests",
        sa.Column("sequence", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), primary_key=True),
        sa.Column("request_id", sa.String(64), nullable=False, unique=True),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("ground", sa.String(16), nullable=False),
        sa.Column("government", sa.String(100), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "cctv_entries",
        sa.Column("request_id", sa.String(64), sa.ForeignKey("cctv_requests.request_id"), primary_key=True),
        sa.Column("step", sa.String(16), primary_key=True),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("recorded_ms", sa.BigInteger, nullable=False),
        sa.Column("recorded_by", sa.String(256), nullable=False),
        sa.Column("sealed_text", sa.LargeBinary, nullable=False),
    )
