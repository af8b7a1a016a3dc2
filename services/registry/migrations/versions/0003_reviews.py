"""Create the tables for reconciliation, match keys, reviews of uncertain matches, match events and stages of orders."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("tags", sa.Column("removed_at_ms", sa.BigInteger))
    op.add_column("devices", sa.Column("removed_at_ms", sa.BigInteger))
    op.create_table(
        "record_digests",
        sa.Column("kind", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("record_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("masked", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "reconciliations",
        sa.Column("agency", sa.String(8), primary_key=True),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("compared_at_ms", sa.BigInteger),
        sa.Column("differences", sa.BigInteger, nullable=False),
        sa.Column("proven_at_ms", sa.BigInteger),
        sa.Column("root", sa.LargeBinary),
        sa.Column("alarmed_at_ms", sa.BigInteger),
    )
    op.create_table(
        "match_keys",
        sa.Column("side", sa.String(8), primary_key=True),
        sa.Column("key_hash", sa.LargeBinary, primary_key=True),
        sa.Column("record_id", sa.String(64), primary_key=True),
    )
    op.create_index("ix_match_keys_record", "match_keys", ["side", "record_id"])
    op.create_table(
        "reviews",
        sa.Column("case_id", sa.String(64), primary_key=True),
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), nullable=False, index=True),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("enforced", sa.Boolean, nullable=False),
        sa.Column("evidence", sa.LargeBinary, nullable=False),
        sa.Column("weight_bits", sa.Float, nullable=False),
        sa.Column("reasons", sa.Text, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("paged_at_ms", sa.BigInteger),
    )
    op.create_table(
        "review_decisions",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("case_id", sa.String(64), nullable=False, index=True),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("evidence", sa.LargeBinary, nullable=False),
        sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "match_events",
        sa.Column("sequence", _KEY, primary_key=True),
        sa.Column("event", sa.String(24), nullable=False),
        sa.Column("case_id", sa.String(64), nullable=False, index=True),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("wearer_id", sa.String(64), nullable=False),
        sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "order_stages",
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
        sa.Column("source_version", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("end_reason", sa.String(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    # Events keep the sequence of their match, because the agencies hold these sequences as resume tokens.
    op.execute(
        "insert into match_events (sequence, event, case_id, order_id, wearer_id, matched_at_ms, at_ms) "
        "select sequence, 'MATCHED', case_id, order_id, wearer_id, matched_at_ms, matched_at_ms from cases order by sequence"
    )
    if op.get_bind().dialect.name == "postgresql":
        op.execute(
            "select setval(pg_get_serial_sequence('match_events', 'sequence'), "
            "(select coalesce(max(sequence), 0) + 1 from match_events), false)"
        )
