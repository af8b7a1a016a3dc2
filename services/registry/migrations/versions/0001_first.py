"""Creates the tables of the agencies' records, joint cases, reviews, the ledger with its keys, traces, and the outbox."""

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
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "protected_persons",
        sa.Column("person_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "orders",
        sa.Column("order_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
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
        sa.Column("valid_until_ms", sa.BigInteger),
        sa.Column("entry", sa.LargeBinary, nullable=False),
        sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "routes",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("route", sa.LargeBinary, nullable=False),
        sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    )
    op.create_table(
        "data_keys",
        sa.Column("owner", sa.String(96), primary_key=True),
        sa.Column("ring", sa.String(16), nullable=False, index=True),
        sa.Column("wrapped", sa.LargeBinary, nullable=False),
        sa.Column("destroy_at_ms", sa.BigInteger, index=True),
        sa.Column("destroyed_at_ms", sa.BigInteger),
    )
    op.create_table(
        "ledger_heads",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "record_digests",
        sa.Column("kind", sa.Integer, primary_key=True),
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
        "review_decisions",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("case_id", sa.String(64), nullable=False, index=True),
        sa.Column("decision", sa.String(16), nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("evidence", sa.LargeBinary, nullable=False),
        sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
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
    )
    op.create_table(
        "order_stages",
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
        sa.Column("source_version", sa.BigInteger, primary_key=True),
        sa.Column("stage", sa.String(16), nullable=False),
        sa.Column("end_reason", sa.String(32), nullable=False),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "devices",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("person_id", sa.String(64), sa.ForeignKey("protected_persons.person_id"), nullable=False, index=True),
        sa.Column("removed_at_ms", sa.BigInteger),
        sa.Column("vendor_id", sa.String(64), nullable=False),
    )
    op.create_table(
        "device_tokens",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("device_id", sa.String(64), nullable=False, index=True),
        sa.Column("sha256", sa.LargeBinary, nullable=False, index=True),
        sa.Column("valid_until_ms", sa.BigInteger),
    )
    op.create_table(
        "ledger",
        sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("disclosure_id", sa.String(64), nullable=False, unique=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("deed", sa.String(16), nullable=False),
        sa.Column("who", sa.String(256), nullable=False),
        sa.Column("legal_basis", sa.String(32), nullable=False),
        sa.Column("purpose", sa.String(32), nullable=False),
        sa.Column("reference", sa.String(64), nullable=False, index=True),
        sa.Column("record_kind", sa.String(32), nullable=False),
        sa.Column("record_id", sa.String(64), nullable=False, index=True),
        sa.Column("order_id", sa.String(64), nullable=False),
        sa.Column("recipient", sa.String(256), nullable=False),
        sa.Column("expires_at_ms", sa.BigInteger, nullable=False),
        sa.Column("previous", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
        sa.Column("positions", sa.BigInteger),
    )
    op.create_table(
        "trace_facts",
        sa.Column("incident_id", sa.String(64), primary_key=True),
        sa.Column("fact_id", sa.String(160), primary_key=True),
        sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
        sa.Column("fact", sa.Text, nullable=False),
    )
    op.create_table(
        "case_versions",
        sa.Column("case_id", sa.String(64), primary_key=True),
        sa.Column("version", sa.BigInteger, primary_key=True),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "trace_positions",
        sa.Column("stream", sa.String(32), primary_key=True),
        sa.Column("log_id", sa.String(64), nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("trail", sa.Text, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("msg_id", sa.String(256), nullable=False),
        sa.Column("payload", sa.LargeBinary, nullable=False),
        sa.Column("sent_at_ms", sa.BigInteger, index=True),
        sa.Column("stored_sequence", sa.BigInteger),
    )
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
        sa.Column("sequence", _KEY, primary_key=True),
        sa.Column("request_id", sa.String(64), nullable=False, unique=True),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("ground", sa.String(16), nullable=False),
        sa.Column("government", sa.String(100), nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
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
    op.create_table(
        "wearer_units",
        sa.Column("unit_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "person_units",
        sa.Column("unit_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("person_id", sa.String(64), sa.ForeignKey("protected_persons.person_id"), nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
    )
    op.create_table(
        "reviews",
        sa.Column("case_id", sa.String(64), primary_key=True),
        sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), nullable=False, index=True),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("state", sa.String(16), nullable=False, index=True),
        sa.Column("enforced", sa.Boolean, nullable=False),
        sa.Column("evidence", sa.LargeBinary, nullable=False),
        sa.Column("weight_bits", sa.Float, nullable=False),
        sa.Column("since_ms", sa.BigInteger, nullable=False),
        sa.Column("decided_by", sa.String(256), nullable=False),
        sa.Column("paged_at_ms", sa.BigInteger),
        sa.Column("agreements", sa.Text, nullable=False),
        sa.Column("legal_basis", sa.String(32), nullable=False),
    )
    op.create_table(
        "review_comparisons",
        sa.Column("id", _KEY, primary_key=True),
        sa.Column("case_id", sa.String(64), nullable=False, index=True),
        sa.Column("at_ms", sa.BigInteger, nullable=False),
        sa.Column("order_version", sa.BigInteger, nullable=False),
        sa.Column("wearer_version", sa.BigInteger, nullable=False),
        sa.Column("weight_bits", sa.Float, nullable=False),
        sa.Column("agreements", sa.Text, nullable=False),
    )
    op.create_table(
        "findings",
        sa.Column("finding_id", sa.String(64), primary_key=True),
        sa.Column("incident_id", sa.String(64), nullable=False, index=True),
        sa.Column("due_on", sa.Date, nullable=False),
        sa.Column("made_by", sa.String(256), nullable=False),
        sa.Column("made_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("sealed", sa.LargeBinary, nullable=False),
        sa.Column("closed_ms", sa.BigInteger, index=True),
        sa.Column("closed_by", sa.String(256)),
        sa.Column("sealed_outcome", sa.LargeBinary),
    )
    op.create_table(
        "enrolment_codes",
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("device_id", sa.String(64), nullable=False, index=True),
        sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("used_ms", sa.BigInteger),
        sa.Column("issued_by", sa.String(256), nullable=False),
    )
    op.create_table(
        "tags",
        sa.Column("device_id", sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        sa.Column("wearer_id", sa.String(64), sa.ForeignKey("wearers.wearer_id"), nullable=False, index=True),
        sa.Column("removed_at_ms", sa.BigInteger),
        sa.Column("vendor_id", sa.String(64), nullable=False),
        sa.Column("basis", sa.String(32), nullable=False),
        sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "alerted_incidents",
        sa.Column("incident_id", sa.String(64), primary_key=True),
    )
    op.create_table(
        "held_disclosures",
        sa.Column("disclosure_id", sa.String(64), primary_key=True),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("held_at_ms", sa.BigInteger, nullable=False),
        sa.Column("check_at_ms", sa.BigInteger, nullable=False, index=True),
        sa.Column("is_reported", sa.Boolean, nullable=False),
    )
