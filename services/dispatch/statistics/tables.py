"""Tables of a leg's statistics, in the leg's own database."""

from __future__ import annotations

import sqlalchemy as sa

from services.dispatch.leg.tables import metadata

figures = sa.Table(
    "figures",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False),
    sa.Column("leg", sa.String, nullable=False),
    sa.Column("subject_id", sa.String, nullable=False),
    sa.Column("order_ids", sa.String, nullable=False),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("task", sa.Integer, nullable=False),
    sa.Column("offered_ms", sa.BigInteger),
    sa.Column("received_ms", sa.BigInteger),
    sa.Column("acknowledged_ms", sa.BigInteger),
    sa.Column("arrived_ms", sa.BigInteger),
    sa.Column("arrival_due_ms", sa.BigInteger),
    sa.Column("has_arrived", sa.Boolean, nullable=False),
    sa.Column("office_id", sa.String, nullable=False),
    sa.Column("kind", sa.Integer, nullable=False),
    sa.Column("outcome", sa.Integer, nullable=False),
    sa.Column("receipt_took_ms", sa.Integer),
    sa.Column("acceptance_took_ms", sa.Integer),
    sa.Column("arrival_took_ms", sa.Integer),
    sa.Column("arrived_in_time", sa.Boolean),
    # Over a long period each statistic is counted along an index that has its groups in their order, so that none is sorted.
    sa.Index("figures_receipt", "leg", "office_id", "receipt_took_ms", "opened_ms", "offered_ms"),
    sa.Index("figures_acceptance", "leg", "office_id", "acceptance_took_ms", "opened_ms", "offered_ms"),
    sa.Index("figures_arrival", "leg", "office_id", "arrival_took_ms", "arrived_in_time", "opened_ms", "offered_ms"),
    sa.Index("figures_outcome", "leg", "outcome", "kind", "opened_ms"),
    sa.Index("figures_subject", "leg", "subject_id", "opened_ms", "outcome", "task"),
    # Over a short period all are counted along this one, so that the other years' rows aren't read. It has all of their columns.
    sa.Index(
        "figures_period",
        *("leg", "opened_ms", "acceptance_took_ms", "office_id", "receipt_took_ms", "arrival_took_ms"),
        *("arrived_in_time", "offered_ms", "outcome", "kind", "task", "subject_id"),
    ),
)
"""A row for each assignment of an incident that isn't an exercise. The columns that end with `took_ms` are rounded."""

progress = sa.Table(
    "figures_progress",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("step_sequence", sa.BigInteger, nullable=False),
)
"""Sequence of the last step of this leg that the figures have. One row."""

changed_peers = sa.Table(
    "figures_changed_peers",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("has_arrived", sa.Boolean, nullable=False),
)
"""Other legs' assignments that changed and that the figures don't have yet. Written together with the assignment. `has_arrived` says
that one of the changes was an arrival: only the last change is kept."""
