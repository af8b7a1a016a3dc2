"""Tables of a leg's own database, except the roster and the awaited legs."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

metadata = sa.MetaData()

_UNPUBLISHED: dict[str, Any] = {
    "sqlite_where": sa.text("published = 0"),
    "postgresql_where": sa.text("NOT published"),
}

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
steps = sa.Table(
    "steps",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step_id", sa.String, nullable=False, unique=True),
    sa.Column("assignment_id", sa.String, nullable=False, index=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Index("steps_unpublished", "sequence", **_UNPUBLISHED),
)
assignments = sa.Table(
    "assignments",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("state", sa.Integer, nullable=False, index=True),
    sa.Column("due_ms", sa.BigInteger, index=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("report_to_published_ms", sa.Float),
    sa.Column("unit_id", sa.String, index=True),
)
incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("opened_sequence", sa.BigInteger, nullable=False, index=True),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("order_ids", sa.JSON, nullable=False),
    sa.Column("exercise", sa.Integer, nullable=False),
    # Most incidents are canaries, which the list of incidents omits.
    sa.Index(
        *("incidents_but_canaries", "opened_sequence"),
        sqlite_where=sa.text("exercise <> 2"),
        postgresql_where=sa.text("exercise <> 2"),
    ),
    # For the statistics, which leave exercises out.
    sa.Index(
        *("incidents_live", "opened_ms"),
        sqlite_where=sa.text("exercise = 0"),
        postgresql_where=sa.text("exercise = 0"),
    ),
)
peers = sa.Table(
    "peer_assignments",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)
notes = sa.Table(
    "notes",
    metadata,
    sa.Column("note_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("at_ms", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

positions = sa.Table(
    "positions",
    metadata,
    sa.Column("stream", sa.String, primary_key=True),
    sa.Column("log_id", sa.String, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
    sa.Column("trail", sa.String, nullable=False, server_default=""),
)
published_steps = sa.Table(
    "published_steps",
    metadata,
    sa.Column("step_sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("recorded", sa.BigInteger, nullable=False, index=True),
    sa.Column("stream", sa.String, nullable=False),
    sa.Column("log_id", sa.String, nullable=False),
    sa.Column("stream_sequence", sa.BigInteger, nullable=False),
    sa.Index("published_steps_newest", "stream", "log_id", "recorded"),
    sa.Index("published_steps_furthest", "stream", "log_id", "stream_sequence"),
)
"""The message in the stream for each published step. `recorded` is the order in which the publications were recorded."""

disclosures = sa.Table(
    "disclosures",
    metadata,
    sa.Column("disclosure_id", sa.String, primary_key=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("at_ms", sa.BigInteger, nullable=False, index=True),
)

owner = sa.Table(
    "owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("leg", sa.String, nullable=False),
)
