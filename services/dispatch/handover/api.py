"""gRPC service of handovers: the shifts of a leg's desk write and acknowledge them, and reviewers read them.

Parsing validates, and names the field of an error. The handovers are stored as a hash chain of its own, to which records are only
appended.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.dispatch.handover import domain
from services.dispatch.handover.domain import HandoverAcknowledged, HandoverWritten, ShiftHandover
from services.dispatch.leg import chain
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.chain import ChainHead
from services.dispatch.leg.service import LegService
from services.dispatch.leg.tables import incidents, metadata
from tandem.dispatch.v1 import handover_pb2, handover_pb2_grpc

USUAL_PAGE, MAX_PAGE = 20, 100


class HandoverApi(handover_pb2_grpc.HandoverServiceServicer):
    """HandoverService of one leg."""

    def __init__(self, leg: LegService, clock: MeshClock) -> None:
        self._leg, self._clock = leg, clock

    async def WriteHandover(
        self, request: handover_pb2.WriteHandoverRequest, context: Context
    ) -> handover_pb2.WriteHandoverResponse:
        """Stores a handover with the incidents that are open now."""
        admit(self._leg.name)
        by, now_ms = server.caller().spiffe_id, self._clock.now_ms()
        _parse_written(request, by, now_ms)  # an invalid request needs no transaction

        def work(connection: sa.Connection) -> ShiftHandover:
            known = _find_handover(connection, request.handover_id)
            written = _parse_written(
                request, by, now_ms, open_incident_ids=open_incident_ids(connection) if known is None else ()
            )
            if not domain.decide_write(known, written) and known is not None:
                return known
            append_record(connection, written)
            return ShiftHandover(written)

        return handover_pb2.WriteHandoverResponse(handover=_handover_message(await self._leg.store.transaction(work)))

    async def AcknowledgeHandover(
        self, request: handover_pb2.AcknowledgeHandoverRequest, context: Context
    ) -> handover_pb2.AcknowledgeHandoverResponse:
        """Stores that the next shift has acknowledged a handover."""
        admit(self._leg.name)
        acknowledged = _parse_acknowledged(request, server.caller().spiffe_id, self._clock.now_ms())

        def work(connection: sa.Connection) -> ShiftHandover:
            known = _find_handover(connection, acknowledged.handover_id)
            if known is None:
                raise NotFound(f"no handover {acknowledged.handover_id} in the {self._leg.name} leg")
            if not domain.decide_acknowledge(known, acknowledged):
                return known
            append_record(connection, acknowledged)
            return ShiftHandover(known.written, acknowledged)

        stored = await self._leg.store.transaction(work)
        return handover_pb2.AcknowledgeHandoverResponse(handover=_handover_message(stored))

    async def ListHandovers(
        self, request: handover_pb2.ListHandoversRequest, context: Context
    ) -> handover_pb2.ListHandoversResponse:
        """Lists handovers, newest first. The token of a page is the id of its last handover."""
        admit(self._leg.name, Role.ROLE_REVIEWER)
        size = int(fields.number("page_size", request.page_size, 0, greatest=MAX_PAGE)) or USUAL_PAGE
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        found = await self._leg.store.reading_history(
            lambda connection: newest_handovers(connection, size + 1, request.page_token)
        )
        return handover_pb2.ListHandoversResponse(
            handovers=map(_handover_message, found[:size]),
            next_page_token=found[size - 1].written.handover_id if len(found) > size else "",
        )


NOTES_MAX_CHARS = 4_000
REMARK_MAX_CHARS = 500
MAX_NAMED = 200
"""Maximum number of reviews, and of devices, in a handover."""


def _parse_written(
    request: handover_pb2.WriteHandoverRequest, by: str, at_ms: int, *, open_incident_ids: tuple[str, ...] = ()
) -> HandoverWritten:
    """Parses a handover. Raises InvalidField."""
    if not request.notes.strip():
        raise InvalidField("notes", 'is missing: state what the next shift has to know (example: "No special events")')
    return HandoverWritten(
        handover_id=fields.required_id("handover_id", request.handover_id),
        notes=_text("notes", request.notes, NOTES_MAX_CHARS),
        open_incident_ids=open_incident_ids,
        review_case_ids=_ids("review_case_ids", request.review_case_ids),
        device_ids=_ids("device_ids", request.device_ids),
        by=by,
        at_ms=at_ms,
        reviews_incomplete=request.reviews_incomplete,
        devices_incomplete=request.devices_incomplete,
    )


def _parse_acknowledged(request: handover_pb2.AcknowledgeHandoverRequest, by: str, at_ms: int) -> HandoverAcknowledged:
    """Parses an acknowledgement. Raises InvalidField."""
    return HandoverAcknowledged(
        handover_id=fields.required_id("handover_id", request.handover_id),
        remark=_text("remark", request.remark, REMARK_MAX_CHARS),
        by=by,
        at_ms=at_ms,
    )


def _handover_message(handover: ShiftHandover) -> handover_pb2.Handover:
    """The message of a handover."""
    stored = handover.written
    shown = handover_pb2.Handover(
        handover_id=stored.handover_id,
        notes=stored.notes,
        open_incident_ids=stored.open_incident_ids,
        review_case_ids=stored.review_case_ids,
        device_ids=stored.device_ids,
        written_by=stored.by,
        written_at=times.to_timestamp(stored.at_ms),
        reviews_incomplete=stored.reviews_incomplete,
        devices_incomplete=stored.devices_incomplete,
    )
    if handover.acknowledged is not None:
        shown.acknowledged_by = handover.acknowledged.by
        shown.acknowledged_at.CopyFrom(times.to_timestamp(handover.acknowledged.at_ms))
        shown.remark = handover.acknowledged.remark
    return shown


def _text(field: str, text: str, max_chars: int) -> str:
    """Checks free text: lines of printable characters. Raises InvalidField."""
    stripped = text.replace("\r\n", "\n").strip()
    if len(stripped) > max_chars:
        raise InvalidField(field, f"must be at most {max_chars} characters, and has {len(stripped)}")
    if not all(line.isprintable() for line in stripped.replace("\t", " ").split("\n")):
        raise InvalidField(field, "must hold printable characters only")
    return stripped


def _ids(field: str, given: Sequence[str]) -> tuple[str, ...]:
    fields.at_most(field, given, MAX_NAMED)
    return tuple(dict.fromkeys(fields.required_id(f"{field}[{n}]", id_) for n, id_ in enumerate(given)))


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
_OPEN = (
    sa.select(incidents.c.incident_id)
    .where(incidents.c.ended_ms.is_(None), sa.text("exercise <> 2"))
    .order_by(incidents.c.opened_sequence.desc())
    .limit(MAX_OPEN)
)


def open_incident_ids(connection: sa.Connection) -> tuple[str, ...]:
    """Ids of the open incidents but canaries, newest first, at most MAX_OPEN."""
    return tuple(connection.scalars(_OPEN))


def _find_handover(connection: sa.Connection, handover_id: str) -> ShiftHandover | None:
    """The handover with an id; None if this leg has none."""
    return next(iter(_handovers(connection, [handover_id])), None)


def newest_handovers(connection: sa.Connection, limit: int, before: str) -> list[ShiftHandover]:
    """Up to `limit` handovers, newest first; with `before` those that were written before that one. Raises InvalidField."""
    query = sa.select(duty_records.c.subject_id).where(duty_records.c.kind == _WRITTEN)
    if before:
        written = duty_records.c.subject_id == before, duty_records.c.kind == _WRITTEN
        last = connection.scalar(sa.select(duty_records.c.id).where(*written))
        if last is None:
            raise InvalidField("page_token", "isn't a token of this leg: use next_page_token of the last response")
        query = query.where(duty_records.c.id < last)
    return _handovers(connection, list(connection.scalars(query.order_by(duty_records.c.id.desc()).limit(limit))))


def append_record(connection: sa.Connection, record: HandoverWritten | HandoverAcknowledged) -> None:
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
