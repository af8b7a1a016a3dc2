"""The leg's own database, an SQLite file or a schema of PostgreSQL. The table `events` is the source of truth, append-only and
hash-chained. Steps, assignments (with deadlines) and incidents are derived from events in the same transaction. `peer_assignments` has
the last assignments of other legs. `positions` has the positions up to which ALERTS and INCIDENTS were consumed, so that a restored
copy reads the messages that it lacks.

A change of the leg's incidents is read and written in one transaction that holds the writers' lock, so the read returns the last commit
of any process of the leg. On PostgreSQL each of the two takes one round trip, whatever the number of tables.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa

from services.common.errors import FailedPrecondition, InvalidField
from services.common.storage import rows, statements
from services.common.storage.db import Database
from services.common.storage.rows import RowTarget, write
from services.common.storage.statements import Prepared
from services.dispatch.domain.assignment import OVER, UNANSWERED, AssignmentState
from services.dispatch.domain.events import Event
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, tables
from services.dispatch.leg.chain import ChainHead
from services.dispatch.leg.change import Change
from services.dispatch.leg.tables import (
    AssignmentRow,
    IncidentRow,
    ListedIncident,
    NoteRow,
    PeerRow,
    StepRow,
    StreamPosition,
    figures_changed_peers,
)
from services.dispatch.leg.translate import NumberedStep, assigned_leg

POSITIONS = RowTarget(tables.positions, ("log_id", "sequence", "trail"))
_PEERS = (
    RowTarget(tables.peers, ("number", "payload"), newer="number"),
    RowTarget(figures_changed_peers, ("has_arrived",), newer="has_arrived"),
    RowTarget(tables.notes, ()),
    POSITIONS,
)
_PAGE = 100
T = TypeVar("T")


class Store:
    """SQL access to one leg's database, which runs write transactions one at a time. Only record.py writes events."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one transaction, atomic and durable. Raises Unavailable if the disk or the server fails."""
        return await self._database.visit(work)

    async def reading_history(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` on a snapshot, beside the leg's transactions. It neither waits for them nor delays them."""
        async with self._database.reading() as connection:
            return await connection.run_sync(work)

    async def claim(self, leg: Leg) -> None:
        """Makes the leg the permanent owner of the database, as two legs would mix their chains.

        Raises FailedPrecondition if another leg owns the database.
        """

        def work(connection: sa.Connection) -> None:
            owner = connection.scalar(sa.select(tables.owner.c.leg))
            if owner is None:
                connection.execute(sa.insert(tables.owner), {"id": 1, "leg": leg})
            elif owner != leg:
                raise FailedPrecondition(
                    f"the database is the {owner} leg's, not the {leg} leg's: give each leg its own database"
                )

        await self.transaction(work)

    async def head(self) -> ChainHead:
        """Last link of the chain."""
        return await self.transaction(self.head_within)

    def head_within(self, connection: sa.Connection) -> ChainHead:
        """Last link of the chain, read within a transaction. Another process of this leg may write more afterwards."""
        row = connection.execute(_HEAD).first()
        return ChainHead(row.id, row.hash) if row else ChainHead()

    async def reading(self, stream: str, log_id: str) -> StreamPosition:
        """Position up to which a stream was consumed, with its trail; sequence 0 if nothing was consumed."""
        which = {"stream": stream, "log_id": log_id}
        rows = await self.transaction(lambda connection: _POSITION.fetch(connection, which))
        return StreamPosition._make(rows[0]) if rows else StreamPosition(stream, log_id, 0)

    # ── the leg's own incidents ──────────────────────────────────────────────────────────────────────────────────────

    def events(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, list[Event]]:
        """Events by incident id, in their order. An incident without events is omitted."""
        found: dict[str, list[Event]] = {}
        columns = (tables.events.c.incident_id, tables.events.c.kind, tables.events.c.body)
        for some in _paged(incident_ids):
            query = sa.select(*columns).where(tables.events.c.incident_id.in_(some)).order_by(tables.events.c.id)
            for incident_id, kind, body in connection.execute(query):
                found.setdefault(incident_id, []).append(chain.read(kind, body))
        return found

    def latencies(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, float]:
        """Known latencies of offers (report_to_published_ms), milliseconds, by assignment id."""
        column = tables.assignments.c.report_to_published_ms
        found: dict[str, float] = {}
        for some in _paged(incident_ids):
            query = sa.select(tables.assignments.c.assignment_id, column).where(
                tables.assignments.c.incident_id.in_(some), column.is_not(None)
            )
            found.update((id_, ms) for id_, ms in connection.execute(query))
        return found

    def open_incidents(self, connection: sa.Connection) -> set[str]:
        """Ids of incidents with an open assignment."""
        query = sa.select(tables.assignments.c.incident_id).where(
            tables.assignments.c.state.in_([int(state) for state in set(AssignmentState) - OVER])
        )
        return {id_ for (id_,) in connection.execute(query.distinct())}

    def incidents_changed(self, connection: sa.Connection, after_id: int) -> set[str]:
        """Ids of incidents with an event after a link of the chain."""
        query = sa.select(tables.events.c.incident_id).where(tables.events.c.id > after_id)
        return set(connection.scalars(query.distinct()))

    async def assignment(self, assignment_id: str) -> AssignmentRow | None:
        """The row of an assignment; None if the id is unknown."""
        return (await self.assignments([assignment_id])).get(assignment_id)

    async def assignments(self, assignment_ids: Sequence[str]) -> dict[str, AssignmentRow]:
        """Rows of assignments by id; unknown ids are omitted."""

        def read(connection: sa.Connection) -> dict[str, AssignmentRow]:
            found: dict[str, AssignmentRow] = {}
            for some in _paged(assignment_ids):
                query = sa.select(tables.assignments).where(tables.assignments.c.assignment_id.in_(some))
                found.update((row.assignment_id, AssignmentRow._make(row)) for row in connection.execute(query))
            return found

        return await self.transaction(read)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def steps_after(self, sequence: int) -> list[StepRow]:
        """A page of steps after a sequence, in their order; empty at the end."""
        query = _joined(_next_steps(sequence).limit(_PAGE))
        rows = await self.reading_history(lambda connection: connection.execute(query).all())
        return [StepRow._make(row) for row in rows]

    async def steps_at(self, sequences: Sequence[int]) -> list[StepRow]:
        """The steps with these sequences, at most _PAGE of them, in their order. Unknown sequences are omitted."""
        query = _joined(_next_steps(0).where(tables.steps.c.sequence.in_(sequences[:_PAGE])))
        rows = await self.reading_history(lambda connection: connection.execute(query).all())
        return [StepRow._make(row) for row in rows]

    def steps_within(self, connection: sa.Connection, after_sequence: int) -> list[StepRow]:
        """All steps after a sequence, read within a transaction."""
        return [StepRow._make(row) for row in connection.execute(_joined(_next_steps(after_sequence)))]

    async def unpublished_sequences(self) -> list[int]:
        """Sequences of the steps that INCIDENTS may not have yet."""
        return await self.transaction(
            lambda connection: [n for (n,) in statements.fetch(connection, _UNPUBLISHED[connection.dialect.name])]
        )

    async def unpublished(self) -> list[StepRow]:
        """Steps that INCIDENTS may not have yet."""
        return await self._read_steps(
            sa.select(*_STEP).where(sa.not_(tables.steps.c.published)).order_by(tables.steps.c.sequence)
        )

    async def unanswered(self) -> list[StepRow]:
        """The last step of each unanswered assignment."""
        waiting = sa.select(tables.assignments.c.assignment_id).where(
            tables.assignments.c.state.in_([int(s) for s in UNANSWERED])
        )
        last = sa.select(sa.func.max(tables.steps.c.sequence)).where(tables.steps.c.assignment_id.in_(waiting))
        query = sa.select(*_STEP).where(tables.steps.c.sequence.in_(last.group_by(tables.steps.c.assignment_id)))
        return await self._read_steps(query.order_by(tables.steps.c.sequence))

    def known_steps(self, connection: sa.Connection, step_ids: Sequence[str]) -> set[str]:
        """Returns which of these step ids the database has."""
        query = sa.select(tables.steps.c.step_id).where(tables.steps.c.step_id.in_(step_ids))
        return set(connection.scalars(query))

    async def _read_steps(self, query: sa.Select[*tuple[Any, ...]]) -> list[StepRow]:
        joined = _joined(query)
        return [
            StepRow._make(row) for row in await self.transaction(lambda connection: connection.execute(joined).all())
        ]

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[AssignmentRow]:
        """A page of assignments whose deadlines have passed, oldest first."""
        rows = await self.transaction(lambda connection: _DUE.fetch(connection, {"now_ms": now_ms}))
        return [AssignmentRow._make(row) for row in rows]

    # ── all legs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def put_peers(
        self,
        connection: sa.Connection,
        rows: Sequence[PeerRow],
        position: StreamPosition,
        *,
        notes: Sequence[NoteRow] = (),
    ) -> None:
        """Stores the newest step of each assignment of another leg, by step number, its notes, and the stream position.

        A leg that shows a first step is no longer awaited.
        """
        newest = {row.assignment_id: row for row in sorted(rows, key=lambda row: row.number)}
        peers = [(row.assignment_id, row.incident_id, row.number, row.payload) for row in newest.values()]
        arrived = {row.assignment_id for row in rows if row.has_arrived}
        changed = [(id_, id_ in arrived) for id_ in newest]
        notes = list({note.note_id: note for note in notes}.values())
        _note_first_steps(connection, [row for row in rows if row.number == 1])
        write(connection, _PEERS, (peers, changed, notes, [position]))

    async def incidents(
        self, incident_id: str, limit: int, before: str, *, only_open: bool = False
    ) -> list[ListedIncident]:
        """Up to `limit` incidents, newest first: all but canaries, or only `incident_id` if it isn't empty.

        With `before`, only incidents that were opened before the incident `before`. Raises InvalidField if this leg doesn't have it.
        """
        return await self.reading_history(
            lambda connection: _listed(
                connection, _newest(connection, incident_id, limit, before=before, only_open=only_open)
            )
        )

    async def incidents_by_id(self, incident_ids: Sequence[str]) -> list[ListedIncident]:
        """At most 100 incidents, in the order of their ids. Canaries and unknown ids are left out."""
        query = sa.select(tables.incidents).where(
            tables.incidents.c.incident_id.in_(incident_ids), sa.text("exercise <> 2")
        )
        found = await self.reading_history(lambda connection: _listed(connection, query))
        by_id = {incident.row.incident_id: incident for incident in found}
        return [by_id[incident_id] for incident_id in incident_ids if incident_id in by_id]


def _listed(connection: sa.Connection, query: sa.Select[*tuple[Any, ...]]) -> list[ListedIncident]:
    """The incidents of a query with all legs' assignments."""
    rows = [IncidentRow._make(row) for row in connection.execute(query)]
    ids = [row.incident_id for row in rows]
    own, peers = _assignments_by_incident(connection, ids), _peers_by_incident(connection, ids)
    return [ListedIncident(row, own[row.incident_id], peers[row.incident_id]) for row in rows]


def _newest(
    connection: sa.Connection, incident_id: str, limit: int, *, before: str, only_open: bool
) -> sa.Select[*tuple[Any, ...]]:
    """Query of the incidents that `Store.incidents` lists."""
    incidents = tables.incidents.c
    query = sa.select(tables.incidents).order_by(incidents.opened_sequence.desc()).limit(limit)
    query = query.where(incidents.incident_id == incident_id if incident_id else sa.text("exercise <> 2"))
    if only_open:
        query = query.where(incidents.ended_ms.is_(None))
    if not before:
        return query
    last = connection.scalar(sa.select(incidents.opened_sequence).where(incidents.incident_id == before))
    if last is None:
        raise InvalidField("page_token", "isn't a token of this leg: use next_page_token of the last response")
    return query.where(incidents.opened_sequence < last)


def _assignments_by_incident(connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, list[AssignmentRow]]:
    found: dict[str, list[AssignmentRow]] = {id_: [] for id_ in incident_ids}
    for some in _paged(incident_ids):
        query = sa.select(tables.assignments).where(tables.assignments.c.incident_id.in_(some))
        for row in connection.execute(query.order_by(tables.assignments.c.assignment_id)):
            found[row.incident_id].append(AssignmentRow._make(row))
    return found


def _peers_by_incident(connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, list[bytes]]:
    """The other legs' assignments, serialised."""
    found: dict[str, list[bytes]] = {id_: [] for id_ in incident_ids}
    for some in _paged(incident_ids):
        query = sa.select(tables.peers.c.incident_id, tables.peers.c.payload)
        query = query.where(tables.peers.c.incident_id.in_(some)).order_by(tables.peers.c.assignment_id)
        for incident_id, payload in connection.execute(query):
            found[incident_id].append(payload)
    return found


_UNPUBLISHED = {  # in the words of the partial index
    "postgresql": "SELECT sequence FROM steps WHERE NOT published ORDER BY sequence",
    "sqlite": "SELECT sequence FROM steps WHERE published = 0 ORDER BY sequence",
}
_POSITION = Prepared(
    sa.select(tables.positions).where(
        tables.positions.c.stream == sa.bindparam("stream"), tables.positions.c.log_id == sa.bindparam("log_id")
    )
)
_HEAD = sa.select(tables.events.c.id, tables.events.c.hash).order_by(tables.events.c.id.desc()).limit(1)
_DUE = Prepared(
    sa.select(tables.assignments)
    .where(tables.assignments.c.due_ms <= sa.bindparam("now_ms"))
    .order_by(tables.assignments.c.due_ms)
    .limit(_PAGE)
)
_STEP = (
    tables.steps.c.sequence,
    tables.steps.c.step_id,
    tables.steps.c.assignment_id,
    tables.steps.c.payload,
    tables.assignments.c.report_to_published_ms,
)


def _next_steps(sequence: int) -> sa.Select[*tuple[Any, ...]]:
    return sa.select(*_STEP).where(tables.steps.c.sequence > sequence).order_by(tables.steps.c.sequence)


def _joined(query: sa.Select[*tuple[Any, ...]]) -> sa.Select[*tuple[Any, ...]]:
    return query.select_from(
        tables.steps.join(tables.assignments, tables.steps.c.assignment_id == tables.assignments.c.assignment_id)
    )


def _paged(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))


_WRITTEN = (
    RowTarget(tables.events),
    RowTarget(tables.steps),
    RowTarget(tables.assignments, ("state", "due_ms", "payload", "report_to_published_ms", "unit_ids")),
    RowTarget(tables.incidents, ("ended_ms", "order_ids")),
    RowTarget(tables.awaited_legs, ()),
    RowTarget(tables.notes, ()),
    POSITIONS,
)
_READ_HEAD = """
    SELECT 'head' AS what, id AS number, hash AS text1, NULL AS text2, NULL AS text3, CAST(NULL AS DOUBLE PRECISION) AS ms
        FROM events WHERE id = (SELECT max(id) FROM events)
    UNION ALL SELECT 'roster', version, NULL, NULL, NULL, NULL FROM roster
"""
_READ = """
    {head}
    UNION ALL SELECT 'event', id, incident_id, kind, body, NULL FROM events WHERE incident_id {among}
    UNION ALL SELECT 'latency', NULL, assignment_id, NULL, NULL, report_to_published_ms FROM assignments
        WHERE incident_id {among} AND report_to_published_ms IS NOT NULL
    UNION ALL SELECT 'engaged', NULL, unit_ids, assignment_id, incident_id, NULL FROM assignments
        WHERE {asked} AND unit_ids IS NOT NULL
    ORDER BY number
"""
_READ_BY_DIALECT = {
    "postgresql": _READ.format(head=_READ_HEAD, among="= ANY($1::VARCHAR[])", asked="$2::BOOLEAN"),
    "sqlite": _READ.format(head=_READ_HEAD, among="IN (SELECT value FROM json_each(?1))", asked="?2"),
}


@dataclass(slots=True)
class CommittedState:
    """State that the transaction of a change reads from the store."""

    head: chain.ChainHead = field(default_factory=chain.ChainHead)
    roster_version: int = 0
    events: dict[str, list[Event]] = field(default_factory=dict)
    """Events by incident, in their order."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Known latencies of offers (report_to_published_ms), by assignment id."""
    engaged: dict[str, dict[str, str]] | None = None
    """Incident id by assignment id, for the assignments that each unit id has or is asked for; None if they weren't requested."""


def read_committed(connection: sa.Connection, incident_ids: Sequence[str], engaged: bool) -> CommittedState:
    """Reads the chain's head, the roster's version and the events of incidents; if `engaged`, also the units' open assignments."""
    state = CommittedState(engaged={} if engaged else None)
    for what, number, text1, text2, text3, ms in _committed_rows(connection, incident_ids, engaged):
        match what:
            case "head":
                state.head = chain.ChainHead(number, text1)
            case "roster":
                state.roster_version = number
            case "event":
                state.events.setdefault(text1, []).append(chain.read(text2, text3))
            case "latency":
                state.latency_ms[text1] = ms
            case "engaged" if state.engaged is not None:
                for unit_id in text1.split():
                    state.engaged.setdefault(unit_id, {})[text2] = text3
    return state


def _committed_rows(connection: sa.Connection, incident_ids: Sequence[str], engaged: bool) -> Sequence[tuple[Any, ...]]:
    if not incident_ids and not engaged:  # a desk's answer, as its incident is in memory
        return statements.fetch(connection, _READ_HEAD)
    ids = list(incident_ids) if statements.is_postgresql(connection) else json.dumps(list(incident_ids))
    return statements.fetch(connection, _READ_BY_DIALECT[connection.dialect.name], (ids, engaged))


def write_change(connection: sa.Connection, change: Change, positions: Sequence[StreamPosition]) -> None:
    """Writes the events of a change, the rows derived from them, unpublished steps, and the stream positions that they came from."""
    if not change.links and not positions:
        return
    rows.write(
        connection,
        _WRITTEN,
        (
            change.links,
            [_step_row(step) for step in change.steps],
            list(change.assignments.values()),
            [(*row[:4], json.dumps(row.order_ids), row.exercise) for row in change.incidents.values()],
            change.awaited,
            change.notes,
            positions,
        ),
    )


def _step_row(step: NumberedStep) -> tuple[object, ...]:
    message, published = step.step, False
    return (step.sequence, message.step_id, message.assignment.assignment_id, message.SerializeToString(), published)


_CAME_SQLITE = "DELETE FROM awaited_legs WHERE incident_id = ? AND leg = ? AND absent = 0"


_CAME_POSTGRESQL = """
    DELETE FROM awaited_legs USING unnest($1::VARCHAR[], $2::VARCHAR[]) AS came (incident_id, leg)
        WHERE awaited_legs.incident_id = came.incident_id AND awaited_legs.leg = came.leg AND NOT absent
"""


def _note_first_steps(connection: sa.Connection, rows: Sequence[PeerRow]) -> None:
    """Deletes the rows of legs that came in time, so that no deadline comes for them. `rows` are the first steps of assignments.

    The row of a leg that counts as absent stays, since `deadlines.AbsenceCheck` finds its return by it.
    """
    shown = [(row.incident_id, assigned_leg(row.payload)) for row in rows]
    if shown and statements.is_postgresql(connection):
        statements.execute(connection, _CAME_POSTGRESQL, list(zip(*shown, strict=True)))
    else:
        statements.execute_many(connection, _CAME_SQLITE, shown)
