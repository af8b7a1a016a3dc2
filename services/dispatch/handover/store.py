"""Stores the handovers of a leg's desk as a hash chain of its own, to which records are only appended."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.common.rpc.errors import InvalidField
from services.dispatch.handover.domain import HandoverAcknowledged, HandoverWritten, ShiftHandover
from services.dispatch.leg import chain
from services.dispatch.leg.chain import ChainHead
from services.dispatch.leg.tables import metadata

duty_records = sa.Table(
    "duty_records",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("subject_id", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
"""Records of the shifts. `subject_id` is the id of the handover. The table `events` has the same form for incidents."""
_WRITTEN, _ACKNOWLEDGED = "handover_written", "handover_acknowledged"
_NEWEST = sa.select(duty_records.c.id, duty_records.c.hash).order_by(duty_records.c.id.desc()).limit(1)
MAX_OPEN = 200
"""Maximum number of open incidents in a handover."""
_incidents = metadata.tables["incidents"]
_OPEN = (
    sa.select(_incidents.c.incident_id)
    .where(_incidents.c.ended_ms.is_(None), sa.text("exercise <> 2"))
    .order_by(_incidents.c.opened_sequence.desc())
    .limit(MAX_OPEN)
)


def open_incident_ids(connection: sa.Connection) -> tuple[str, ...]:
    """Ids of the open incidents but canaries, newest first, at most MAX_OPEN."""
    return tuple(connection.scalars(_OPEN))


def handover(connection: sa.Connection, handover_id: str) -> ShiftHandover | None:
    """The handover with an id; None if this leg has none."""
    return next(iter(_handovers(connection, [handover_id])), None)


def newest(connection: sa.Connection, limit: int, before: str) -> list[ShiftHandover]:
    """Up to `limit` handovers, newest first; with `before` those that were written before that one. Raises InvalidField."""
    query = sa.select(duty_records.c.subject_id).where(duty_records.c.kind == _WRITTEN)
    if before:
        written = duty_records.c.subject_id == before, duty_records.c.kind == _WRITTEN
        last = connection.scalar(sa.select(duty_records.c.id).where(*written))
        if last is None:
            raise InvalidField("page_token", "isn't a token of this leg: use next_page_token of the last response")
        query = query.where(duty_records.c.id < last)
    return _handovers(connection, list(connection.scalars(query.order_by(duty_records.c.id.desc()).limit(limit))))


def append(connection: sa.Connection, record: HandoverWritten | HandoverAcknowledged) -> None:
    """Appends a record to the chain, within a transaction that writes alone."""
    row = connection.execute(_NEWEST).first()
    head = ChainHead(row.id, row.hash) if row else ChainHead()
    kind = _WRITTEN if isinstance(record, HandoverWritten) else _ACKNOWLEDGED
    body = json.dumps(dataclasses.asdict(record), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    link = chain.link(head, record.handover_id, kind, body=body)
    values = {"id": link.id, "subject_id": link.incident_id, "kind": kind, "body": body, "hash": link.hash}
    connection.execute(sa.insert(duty_records).values(values))


def _handovers(connection: sa.Connection, handover_ids: Sequence[str]) -> list[ShiftHandover]:
    """Handovers in the order of the ids. Unknown ids are omitted."""
    written: dict[str, HandoverWritten] = {}
    acknowledged: dict[str, HandoverAcknowledged] = {}
    query = sa.select(duty_records.c.kind, duty_records.c.body).where(duty_records.c.subject_id.in_(handover_ids))
    for kind, body in connection.execute(query):
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(body).items()
        }
        if kind == _WRITTEN:
            written[values["handover_id"]] = HandoverWritten(**values)
        else:
            acknowledged[values["handover_id"]] = HandoverAcknowledged(**values)
    return [ShiftHandover(written[id_], acknowledged.get(id_)) for id_ in handover_ids if id_ in written]
