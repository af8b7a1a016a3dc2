"""All tables of the registry's database. The scripts in migrations/ create the same tables; a test compares both."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import sqlalchemy as sa

MIGRATIONS = Path(__file__).with_name("migrations")

metadata = sa.MetaData()
BIG_KEY = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
"""Type of a key that the database counts up. SQLite counts up only columns of the type INTEGER."""

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.String(32), primary_key=True),
    sa.Column("value", sa.LargeBinary, nullable=False),
)


def reference(name: str, target: str, **options: bool) -> sa.Column[Any]:
    """Column that refers to the id of a record; `target` is `table.column`."""
    return sa.Column(name, sa.String(64), sa.ForeignKey(target), nullable=False, **options)  # type: ignore[arg-type]


def _record(name: str, id_column: str, *columns: sa.Column[Any]) -> sa.Table:
    """Table for one kind of records that an agency puts."""
    return sa.Table(
        name,
        metadata,
        sa.Column(id_column, sa.String(64), primary_key=True),
        sa.Column("source_version", sa.BigInteger, nullable=False),
        sa.Column("digest", sa.LargeBinary, nullable=False),
        *columns,
    )


def _sealed() -> sa.Column[Any]:
    return sa.Column("sealed", sa.LargeBinary, nullable=False)


def _vendor_id() -> sa.Column[Any]:
    return sa.Column("vendor_id", sa.String(64), nullable=False)


wearers = _record("wearers", "wearer_id", _sealed())
tags = _record(
    "tags",
    "device_id",
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
    sa.Column("basis", sa.String(32), nullable=False),
    # When this version was recorded, mesh time.
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
)
protected_persons = _record("protected_persons", "person_id", _sealed())
devices = _record(
    "devices",
    "device_id",
    reference("person_id", "protected_persons.person_id", index=True),
    sa.Column("removed_at_ms", sa.BigInteger),
    _vendor_id(),
)
wearer_units = _record("wearer_units", "unit_id", reference("wearer_id", "wearers.wearer_id", index=True), _sealed())
person_units = _record(
    "person_units", "unit_id", reference("person_id", "protected_persons.person_id", index=True), _sealed()
)
orders = _record("orders", "order_id", _sealed())
order_persons = sa.Table(
    "order_persons",
    metadata,
    reference("order_id", "orders.order_id", primary_key=True),
    reference("person_id", "protected_persons.person_id", primary_key=True, index=True),
)
order_stages = sa.Table(
    "order_stages",
    metadata,
    sa.Column("order_id", sa.String(64), sa.ForeignKey("orders.order_id"), primary_key=True),
    sa.Column("source_version", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("stage", sa.String(16), nullable=False),
    sa.Column("end_reason", sa.String(32), nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
)


data_keys = sa.Table(
    "data_keys",
    metadata,
    sa.Column("owner", sa.String(96), primary_key=True),
    sa.Column("ring", sa.String(16), nullable=False, index=True),
    sa.Column("wrapped", sa.LargeBinary, nullable=False),
    sa.Column("destroy_at_ms", sa.BigInteger, index=True),
    sa.Column("destroyed_at_ms", sa.BigInteger),
)
"""`owner` is table/id of the record. The row of a destroyed key stays, with empty bytes in `wrapped` and the time of destruction.
In such a row, `destroy_at_ms` is the time until which the match events of the record are kept."""


match_keys = sa.Table(
    "match_keys",
    metadata,
    sa.Column("side", sa.String(8), primary_key=True),
    sa.Column("key_hash", sa.LargeBinary, primary_key=True),
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Index("ix_match_keys_record", "side", "record_id"),
)
reviews = sa.Table(
    "reviews",
    metadata,
    sa.Column("case_id", sa.String(64), primary_key=True),
    reference("order_id", "orders.order_id", index=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("state", sa.String(16), nullable=False, index=True),
    sa.Column("enforced", sa.Boolean, nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),
    sa.Column("weight_bits", sa.Float, nullable=False),
    sa.Column("agreements", sa.Text, nullable=False),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("paged_at_ms", sa.BigInteger),
    sa.Column("legal_basis", sa.String(32), nullable=False),
)
review_comparisons = sa.Table(
    "review_comparisons",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("order_version", sa.BigInteger, nullable=False),
    sa.Column("wearer_version", sa.BigInteger, nullable=False),
    sa.Column("weight_bits", sa.Float, nullable=False),
    sa.Column("agreements", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
review_decisions = sa.Table(
    "review_decisions",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("decision", sa.String(16), nullable=False),
    sa.Column("decided_by", sa.String(256), nullable=False),
    sa.Column("evidence", sa.LargeBinary, nullable=False),
    sa.Column("sealed_reason", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sqlite_autoincrement=True,
)
match_events = sa.Table(
    "match_events",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("event", sa.String(24), nullable=False),
    sa.Column("case_id", sa.String(64), nullable=False, index=True),
    sa.Column("order_id", sa.String(64), nullable=False),
    sa.Column("wearer_id", sa.String(64), nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)


cases = sa.Table(
    "cases",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("case_id", sa.String(64), nullable=False, unique=True),
    reference("order_id", "orders.order_id", index=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("matched_at_ms", sa.BigInteger, nullable=False),
    sa.Column("withdrawn_at_ms", sa.BigInteger),
    sa.Column("valid_until_ms", sa.BigInteger),
    sa.Column("entry", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
    sqlite_autoincrement=True,
)


routes = sa.Table(
    "routes",
    metadata,
    sa.Column("device_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("route", sa.LargeBinary, nullable=False),
    sa.Column("sent_day", sa.BigInteger, nullable=False, index=True),
)


device_tokens = sa.Table(
    "device_tokens",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("device_id", sa.String(64), nullable=False, index=True),
    sa.Column("sha256", sa.LargeBinary, nullable=False, index=True),
    sa.Column("valid_until_ms", sa.BigInteger),
    sqlite_autoincrement=True,
)


enrolment_codes = sa.Table(
    "enrolment_codes",
    metadata,
    sa.Column("sha256", sa.LargeBinary, primary_key=True),
    sa.Column("device_id", sa.String(64), nullable=False, index=True),
    sa.Column("expires_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("used_ms", sa.BigInteger),
    sa.Column("issued_by", sa.String(256), nullable=False),
)


tag_records = sa.Table(
    "tag_records",
    metadata,
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Column("kind", sa.String(16), nullable=False),
    reference("wearer_id", "wearers.wearer_id", index=True),
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


cctv_requests = sa.Table(
    "cctv_requests",
    metadata,
    sa.Column("sequence", BIG_KEY, primary_key=True),
    sa.Column("request_id", sa.String(64), nullable=False, unique=True),
    reference("wearer_id", "wearers.wearer_id", index=True),
    sa.Column("ground", sa.String(16), nullable=False),
    sa.Column("government", sa.String(100), nullable=False),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
cctv_entries = sa.Table(
    "cctv_entries",
    metadata,
    sa.Column("request_id", sa.String(64), sa.ForeignKey("cctv_requests.request_id"), primary_key=True),
    sa.Column("step", sa.String(16), primary_key=True),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("recorded_ms", sa.BigInteger, nullable=False),
    sa.Column("recorded_by", sa.String(256), nullable=False),
    sa.Column("sealed_text", sa.LargeBinary, nullable=False),
)


record_digests = sa.Table(
    "record_digests",
    metadata,
    sa.Column("kind", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("record_id", sa.String(64), primary_key=True),
    sa.Column("source_version", sa.BigInteger, nullable=False),
    # Masked, because a plain digest would reveal a national number to an attacker who tries all numbers.
    sa.Column("masked", sa.LargeBinary, nullable=False),
)
reconciliations = sa.Table(
    "reconciliations",
    metadata,
    sa.Column("agency", sa.String(8), primary_key=True),
    sa.Column("since_ms", sa.BigInteger, nullable=False),
    sa.Column("compared_at_ms", sa.BigInteger),
    sa.Column("differences", sa.BigInteger, nullable=False),
    sa.Column("proven_at_ms", sa.BigInteger),
    sa.Column("root", sa.LargeBinary),
    sa.Column("alarmed_at_ms", sa.BigInteger),
)


outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", BIG_KEY, primary_key=True),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("msg_id", sa.String(256), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("sent_at_ms", sa.BigInteger, index=True),
    sa.Column("stored_sequence", sa.BigInteger),
    sqlite_autoincrement=True,
)


ledger = sa.Table(
    "ledger",
    metadata,
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
    sa.Column("positions", sa.BigInteger),
    sa.Column("previous", sa.LargeBinary, nullable=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
)
ledger_heads = sa.Table(
    "ledger_heads",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("hash", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("signature", sa.LargeBinary, nullable=False),
)


held_disclosures = sa.Table(
    "held_disclosures",
    metadata,
    sa.Column("disclosure_id", sa.String(64), primary_key=True),
    sa.Column("subject", sa.String(256), nullable=False),
    sa.Column("data", sa.LargeBinary, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("held_at_ms", sa.BigInteger, nullable=False),
    sa.Column("check_at_ms", sa.BigInteger, nullable=False, index=True),
    sa.Column("is_reported", sa.Boolean, nullable=False),
)
"""`subject`, `data` and `sequence` are those of the message in DISCLOSURES. Times are milliseconds of wall time since 1970 UTC."""


trace_facts = sa.Table(
    "trace_facts",
    metadata,
    sa.Column("incident_id", sa.String(64), primary_key=True),
    sa.Column("fact_id", sa.String(160), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("fact", sa.Text, nullable=False),
)
alerted_incidents = sa.Table(
    "alerted_incidents",
    metadata,
    sa.Column("incident_id", sa.String(64), primary_key=True),
)
"""Each incident that an alert has opened, without an end: the decision alone writes alerts, so no other service can make one up."""
trace_positions = sa.Table(
    "trace_positions",
    metadata,
    sa.Column("stream", sa.String(32), primary_key=True),
    sa.Column("log_id", sa.String(64), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("trail", sa.Text, nullable=False),
)
case_versions = sa.Table(
    "case_versions",
    metadata,
    sa.Column("case_id", sa.String(64), primary_key=True),
    sa.Column("version", sa.BigInteger, primary_key=True),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("stored_at_ms", sa.BigInteger, nullable=False),
)
"""`version` is also the time at which the version was made, milliseconds of mesh time. `sequence` is its sequence in the log."""


findings = sa.Table(
    "findings",
    metadata,
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
"""`sealed` is the text and the owner as JSON. One key in `data_keys` seals it and the outcome."""
