"""Create the tables of the agencies' records, joint cases, routes and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "meta",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("value", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "wearers",
        sa.Column("wearer_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("national_hash", sa.LargeBinary, nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "tags",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
    )
    op.create_table(
        "protected_persons",
        sa.Column("person_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("person_id", sa.String(64), sa.ForeignKey("protected_persons.person_id"), nullable=False, index=True),
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("national_hash", sa.LargeBinary, nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "order_persons",
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
        sa.Column(
            "person_id", sa.String(64), sa.ForeignKey("protected_persons.person_id"), primary_key=True, index=True
        ),
    )
    op.create_table(
        "cases",
        sa.Column("sequence", _KEY, primary_key=True),
        sa.Column("case_id", sa.String(64), nullable=False, unique=True),
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), nullable=False, index=True),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
        sa.Column("withdrawn_at_ms", sa.BigInteger),
        sa.Column("valid_until_ms", sa.BigInteger, nullable=False),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "routes",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("route", sa.LargeBinary, nullable=False),
        sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("msg_id", sa.String(256), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger, index=True),
        sqlite_autoincrement=True,
    )
