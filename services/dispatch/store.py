"""The leg's own database, an SQLite file or a schema of PostgreSQL. `events` is the truth, append-only and hash-chained; steps,
assignments (with deadlines) and incidents are derived from it in the same transaction. `peer_assignments` is what the other legs
last said. `positions` says how far ALERTS and INCIDENTS are in this database, so that a copy of it knows what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import sqlalchemy as sa

from services.common.db import Database, inserting
from services.common.errors import FailedPrecondition, InvalidField
from services.dispatch import chain
from services.dispatch.chain import Head, Link
from services.dispatch.domain.events import Event
from services.dispatch.domain.incident import OVER, UNANSWERED, State

metadata = sa.MetaData()

_UNPUBLISHED: dict[str, Any] = {
    "sqlite_where": sa.text("published = 0"),
    "postgresql_where": sa.text("NOT published"),
}

_events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("kind", sa.String, nullable=False),
    sa.Column("body", sa.String, nullable=False),
    sa.Column("hash", sa.String, nullable=False),
)
_steps = sa.Table(
    "steps",
    metadata,
    sa.Column("sequence", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("step_id", sa.String, nullable=False, unique=True),
    sa.Column("assignment_id", sa.String, nullable=False, index=True),
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.Column("published", sa.Boolean, nullable=False),
    sa.Index("steps_unpublished", "sequence", **_UNPUBLISHED),
)
_assignments = sa.Table(
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
_incidents = sa.Table(
    "incidents",
    metadata,
    sa.Column("incident_id", sa.String, primary_key=True),
    sa.Column("opened_sequence", sa.BigInteger, nullable=False, index=True),
    sa.Column("opened_ms", sa.BigInteger, nullable=False),
    sa.Column("ended_ms", sa.BigInteger),
    sa.Column("order_ids", sa.JSON, nullable=False),
    sa.Column("exercise", sa.Integer, nullable=False),
    # Canaries are most of all incidents, and in no list.
    sa.Index(
        *("incidents_but_canaries", "opened_sequence"),
        sqlite_where=sa.text("exercise <> 2"),
        postgresql_where=sa.text("exercise <> 2"),
    ),
)
_peers = sa.Table(
    "peer_assignments",
    metadata,
    sa.Column("assignment_id", sa.String, primary_key=True),
    sa.Column("incident_id", sa.String, nullable=False, index=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),
)

_positions = sa.Table(
    "positions",
    metadata,
    sa.Column("stream", sa.String, primary_key=True),
    sa.Column("log_id", sa.String, nullable=False),
    sa.Column("sequence", sa.BigInteger, nullable=False),
)

_owner = sa.Table(
    "owner",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("leg", sa.String, nullable=False),
)

_PAGE = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepRow:
    """A step as it is stored: its event's id and its message."""

    sequence: int
    step_id: str
    assignment_id: str
    payload: bytes
    """tandem.dispatch.v1.Step, serialised."""
    report_to_published_ms: float | None = None
    """What the assignment's row knows of it by now."""


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """The state of an assignment, derived from its events."""

    assignment_id: str
    incident_id: str
    state: int
    due_ms: int | None
    """When it is escalated, mesh time; None where nothing is due."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""
    report_to_published_ms: float | None
    unit_id: str | None
    """The unit that has a part in it now."""


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """The state of an incident, derived from its events."""

    incident_id: str
    opened_sequence: int
    """Its place in the order of opening; an update leaves it alone."""
    opened_ms: int
    ended_ms: int | None
    order_ids: list[str]
    exercise: int
    """Number of the domain's Exercise."""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """The last known step of another leg's assignment."""

    assignment_id: str
    incident_id: str
    number: int
    """Number of the step; a greater one replaces it."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""


@dataclass(frozen=True, slots=True)
class ListedIncident:
    """An incident with all legs' assignments."""

    row: IncidentRow
    own: list[AssignmentRow]
    peers: list[bytes]
    """tandem.dispatch.v1.Assignment, serialised."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a stream has been taken in."""

    stream: str
    log_id: str
    """Which mesh's stream: that of a new log begins at 1 again."""
    sequence: int
    """The last message whose effect is in this database."""


class Store:
    """SQL of one leg. Writing is for one caller at a time; record.py sees to it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """Does `work` in one transaction: all or nothing, durable. Raises Unavailable where the disk or the server fails."""
        return await self._database.visit(work)

    async def claim(self, leg: str) -> None:
        """Makes the database the leg's own for good. Raises FailedPrecondition where it is another's: two chains would be one."""

        def work(connection: sa.Connection) -> None:
            owner = connection.scalar(sa.select(_owner.c.leg))
            if owner is None:
                connection.execute(sa.insert(_owner), {"id": 1, "leg": leg})
            elif owner != leg:
                raise FailedPrecondition(f"the database is the {owner} leg's, not the {leg} leg's")

        await self.transaction(work)

    async def head(self) -> Head:
        """The end of the chain."""
        return await self.transaction(self.head_within)

    def head_within(self, connection: sa.Connection) -> Head:
        """The same within a transaction. Behind it another process of this leg may have written."""
        row = connection.execute(_HEAD).first()
        return Head(row.id, row.hash) if row else Head()

    async def first_broken_event(self) -> int | None:
        """Id of the first event that was changed, added or taken out after it was written; None where there is none."""
        head, broken = Head(), None
        while broken is None:
            query = sa.select(_events).where(_events.c.id > head.id).order_by(_events.c.id).limit(_PAGE)
            links = [Link(**row._mapping) for row in await self._rows(query)]
            if not links:
                return None
            head, broken = chain.first_broken(head, links)
        return broken

    async def position(self, stream: str, log_id: str) -> int:
        """The last sequence of a stream that was taken in; 0 where none was."""
        query = sa.select(_positions.c.sequence).where(_positions.c.stream == stream, _positions.c.log_id == log_id)
        found: int | None = await self.transaction(lambda connection: connection.scalar(query))
        return found or 0

    def put_position(self, connection: sa.Connection, position: Position) -> None:
        """Notes how far a stream has been taken in, together with what came of it."""
        connection.execute(_UPSERT_POSITION[connection.dialect.name], _columns(position))

    # ── the leg's own incidents ──────────────────────────────────────────────────────────────────────────────────────

    def events(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, list[Event]]:
        """The events of incidents in their order; an incident without any is left out."""
        found: dict[str, list[Event]] = {}
        columns = (_events.c.incident_id, _events.c.kind, _events.c.body)
        for some in _paged(incident_ids):
            query = sa.select(*columns).where(_events.c.incident_id.in_(some)).order_by(_events.c.id)
            for incident_id, kind, body in connection.execute(query):
                found.setdefault(incident_id, []).append(chain.read(kind, body))
        return found

    def latencies(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, float]:
        """report_to_published_ms by assignment, where it is known."""
        column = _assignments.c.report_to_published_ms
        found: dict[str, float] = {}
        for some in _paged(incident_ids):
            query = sa.select(_assignments.c.assignment_id, column).where(
                _assignments.c.incident_id.in_(some), column.is_not(None)
            )
            found.update((id_, ms) for id_, ms in connection.execute(query))
        return found

    def open_incidents(self, connection: sa.Connection) -> set[str]:
        """Incidents in which an assignment isn't over."""
        query = sa.select(_assignments.c.incident_id).where(
            _assignments.c.state.in_([int(state) for state in set(State) - OVER])
        )
        return {id_ for (id_,) in connection.execute(query.distinct())}

    def append(
        self,
        connection: sa.Connection,
        links: Sequence[Link],
        steps: Sequence[StepRow],
        assignments: Sequence[AssignmentRow],
        incidents: Sequence[IncidentRow],
    ) -> None:
        """Writes events and all that is derived from them."""
        connection.execute(sa.insert(_events), [_columns(link) for link in links])
        if steps:
            unpublished = [
                {
                    "sequence": step.sequence,
                    "step_id": step.step_id,
                    "assignment_id": step.assignment_id,
                    "payload": step.payload,
                    "published": False,
                }
                for step in steps
            ]
            connection.execute(sa.insert(_steps), unpublished)
        if assignments:
            connection.execute(_UPSERT_ASSIGNMENT[connection.dialect.name], [_columns(row) for row in assignments])
        if incidents:
            connection.execute(_UPSERT_INCIDENT[connection.dialect.name], [_columns(row) for row in incidents])

    async def assignment(self, assignment_id: str) -> AssignmentRow | None:
        """An assignment; None where there is none of that id."""
        rows = await self._rows(sa.select(_assignments).where(_assignments.c.assignment_id == assignment_id))
        return AssignmentRow(**rows[0]._mapping) if rows else None

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def steps_after(self, sequence: int) -> list[StepRow]:
        """The next steps after a sequence, in their order; empty at the end."""
        return await self._read_steps(_next_steps(sequence).limit(_PAGE))

    def steps_within(self, connection: sa.Connection, after_sequence: int) -> list[StepRow]:
        """All steps after a sequence, within a transaction."""
        return [StepRow(*row) for row in connection.execute(_joined(_next_steps(after_sequence)))]

    async def unpublished(self) -> list[StepRow]:
        """Steps that INCIDENTS may not have yet."""
        return await self._read_steps(sa.select(*_STEP).where(sa.not_(_steps.c.published)).order_by(_steps.c.sequence))

    async def unanswered(self) -> list[StepRow]:
        """The last step of each assignment that waits for the desk."""
        waiting = sa.select(_assignments.c.assignment_id).where(_assignments.c.state.in_([int(s) for s in UNANSWERED]))
        last = sa.select(sa.func.max(_steps.c.sequence)).where(_steps.c.assignment_id.in_(waiting))
        query = sa.select(*_STEP).where(_steps.c.sequence.in_(last.group_by(_steps.c.assignment_id)))
        return await self._read_steps(query.order_by(_steps.c.sequence))

    def known_steps(self, connection: sa.Connection, step_ids: Sequence[str]) -> set[str]:
        """Those of the steps that are here."""
        query = sa.select(_steps.c.step_id).where(_steps.c.step_id.in_(step_ids))
        return set(connection.scalars(query))

    async def _read_steps(self, query: sa.Select[*tuple[Any, ...]]) -> list[StepRow]:
        return [StepRow(*row) for row in await self._rows(_joined(query))]

    async def _rows(self, query: sa.Select[*tuple[Any, ...]]) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        return await self.transaction(lambda connection: connection.execute(query).all())

    async def mark_published(self, sequences: Iterable[int], latency_ms: Mapping[str, float]) -> None:
        """Notes that steps are in INCIDENTS, and by assignment how long the offer took."""

        def mark(connection: sa.Connection) -> None:
            connection.execute(_MARK_PUBLISHED, [{"which": sequence} for sequence in sequences])
            if latency_ms:
                connection.execute(_MARK_LATENCY, [{"which": id_, "ms": ms} for id_, ms in latency_ms.items()])

        await self.transaction(mark)

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[AssignmentRow]:
        """Assignments whose deadlines have passed, the oldest first."""
        query = sa.select(_assignments).where(_assignments.c.due_ms <= now_ms)
        rows = await self._rows(query.order_by(_assignments.c.due_ms).limit(_PAGE))
        return [AssignmentRow(**row._mapping) for row in rows]

    def next_due_within(self, connection: sa.Connection) -> int | None:
        """The next deadline, mesh time."""
        found: int | None = connection.scalar(sa.select(sa.func.min(_assignments.c.due_ms)))
        return found

    # ── all legs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_peers(self, rows: Sequence[PeerRow], position: Position) -> None:
        """Keeps of each assignment the step with the greatest number."""
        values = [_columns(row) for row in rows]

        def put(connection: sa.Connection) -> None:
            if values:
                connection.execute(_UPSERT_PEER[connection.dialect.name], values)
            self.put_position(connection, position)

        await self.transaction(put)

    async def incidents(self, incident_id: str, limit: int, before: str) -> list[ListedIncident]:
        """Up to `limit` incidents, newest first: all but canaries, or one, or those opened before the one called `before`.

        Raises InvalidField where `before` isn't an incident of this leg.
        """

        def listing(connection: sa.Connection) -> sa.Select[*tuple[Any, ...]]:
            query = sa.select(_incidents).order_by(_incidents.c.opened_sequence.desc()).limit(limit)
            query = query.where(_incidents.c.incident_id == incident_id if incident_id else sa.text("exercise <> 2"))
            if before:
                named = sa.select(_incidents.c.opened_sequence).where(_incidents.c.incident_id == before)
                last = connection.scalar(named)
                if last is None:
                    raise InvalidField("page_token", "isn't a token that this leg gave")
                query = query.where(_incidents.c.opened_sequence < last)
            return query

        def read(connection: sa.Connection) -> list[ListedIncident]:
            rows = [IncidentRow(**row._mapping) for row in connection.execute(listing(connection))]
            own: dict[str, list[AssignmentRow]] = {row.incident_id: [] for row in rows}
            peers: dict[str, list[bytes]] = {row.incident_id: [] for row in rows}
            for some in _paged(list(own)):
                mine = sa.select(_assignments).where(_assignments.c.incident_id.in_(some))
                for row in connection.execute(mine.order_by(_assignments.c.assignment_id)):
                    own[row.incident_id].append(AssignmentRow(**row._mapping))
                theirs = sa.select(_peers.c.incident_id, _peers.c.payload).where(_peers.c.incident_id.in_(some))
                for id_, payload in connection.execute(theirs.order_by(_peers.c.assignment_id)):
                    peers[id_].append(payload)
            return [ListedIncident(row, own[row.incident_id], peers[row.incident_id]) for row in rows]

        return await self.transaction(read)


_HEAD = sa.select(_events.c.id, _events.c.hash).order_by(_events.c.id.desc()).limit(1)
_STEP = (
    _steps.c.sequence,
    _steps.c.step_id,
    _steps.c.assignment_id,
    _steps.c.payload,
    _assignments.c.report_to_published_ms,
)


def _next_steps(sequence: int) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(*_STEP).where(_steps.c.sequence > sequence).order_by(_steps.c.sequence)


def _joined(query: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
    return query.select_from(_steps.join(_assignments, _steps.c.assignment_id == _assignments.c.assignment_id))


_MARK_PUBLISHED = sa.update(_steps).where(_steps.c.sequence == sa.bindparam("which")).values(published=True)
_MARK_LATENCY = (
    sa.update(_assignments)
    .where(_assignments.c.assignment_id == sa.bindparam("which"))
    .values(report_to_published_ms=sa.bindparam("ms"))
)


def upsert(table: sa.Table, changing: Sequence[str], newer: str | None = None) -> Mapping[str, Any]:
    """By dialect, what writes rows in place of those with the same key: their columns `changing`, where `newer` is greater or
    isn't given."""
    return inserting(
        table,
        lambda made: made.on_conflict_do_update(
            index_elements=list(table.primary_key),
            set_={name: made.excluded[name] for name in changing},
            where=table.c[newer] < made.excluded[newer] if newer else None,
        ),
    )


_UPSERT_ASSIGNMENT = upsert(_assignments, ("state", "due_ms", "payload", "report_to_published_ms", "unit_id"))
_UPSERT_INCIDENT = upsert(_incidents, ("ended_ms", "order_ids"))
_UPSERT_POSITION = upsert(_positions, ("log_id", "sequence"))
_UPSERT_PEER = upsert(_peers, ("number", "payload"), newer="number")


def _columns(row: Any) -> dict[str, Any]:
    return {field.name: getattr(row, field.name) for field in fields(row)}


def _paged(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))
