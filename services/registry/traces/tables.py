"""Tables of the traces: facts about each incident from the streams, how far each stream was read, and when each case version
was stored in the log. These tables hold only ids and times."""

from __future__ import annotations

import sqlalchemy as sa

from services.registry.tables import metadata

trace_facts = sa.Table(
    "trace_facts",
    metadata,
    sa.Column("incident_id", sa.String(64), primary_key=True),
    sa.Column("fact_id", sa.String(160), primary_key=True),
    sa.Column("at_us", sa.BigInteger, nullable=False, index=True),
    sa.Column("fact", sa.Text, nullable=False),
)
trace_positions = sa.Table(
    "trace_positions",
    metadata,
    sa.Column("stream", sa.String(32), primary_key=True),
    sa.Column("log_id", sa.String(64), nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("trail", sa.Text, nullable=False, server_default=""),
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
