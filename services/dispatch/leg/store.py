"""The leg's own database, an SQLite file or a schema of PostgreSQL. The table `events` is the source of truth, append-only and
hash-chained. Steps, assignments (with deadlines) and incidents are derived from it in the same transaction. `peer_assignments` has
the last assignments of other legs. `positions` has the consumed positions of ALERTS and INCIDENTS, so that a copy knows what it lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa

from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.common.storage.db import Database
from services.common.storage.rows import RowTarget, write
from services.dispatch.domain.events import Event
from services.dispatch.domain.incident import OVER, UNANSWERED, AssignmentState
from services.dispatch.leg import chain, tables
from services.dispatch.leg.chain import ChainedEvent, ChainHead

POSITIONS = RowTarget(tables.positions, ("log_id", "sequence", "trail"))
_PEERS = (RowTarget(tables.peers, ("number", "payload"), newer="number"), POSITIONS)
_PAGE = 500
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StepRow:
    """Row of a step: its event's id as `sequence`, and its message."""

    sequence: int
    step_id: str
    assignment_id: str
    payload: bytes
    """tandem.dispatch.v1.Step, serialised."""
    report_to_published_ms: float | None = None
    """Latency from the assignment's row, milliseconds; None where it isn't known yet."""


@dataclass(frozen=True, slots=True)
class AssignmentRow:
    """Row of an assignment's state, derived from its events."""

    assignment_id: str
    incident_id: str
    state: int
    due_ms: int | None
    """When the assignment is escalated, mesh time; None where nothing is due."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""
    report_to_published_ms: float | None
    unit_id: str | None
    """Unit that has a part in the assignment now."""


@dataclass(frozen=True, slots=True)
class IncidentRow:
    """Row of an incident's state, derived from its events."""

    incident_id: str
    opened_sequence: int
    """Sequence in the order of opening; an update doesn't change it."""
    opened_ms: int
    ended_ms: int | None
    order_ids: list[str]
    exercise: int
    """Number of the domain's Exercise."""


@dataclass(frozen=True, slots=True)
class PeerRow:
    """Row of the last known step of another leg's assignment."""

    assignment_id: str
    incident_id: str
    number: int
    """Number of the step; a step with a greater number replaces it."""
    payload: bytes
    """tandem.dispatch.v1.Assignment, serialised."""


@dataclass(frozen=True, slots=True)
class ListedIncident:
    """An incident with the assignments of all legs."""

    row: IncidentRow
    own: list[AssignmentRow]
    peers: list[bytes]
    """tandem.dispatch.v1.Assignment, serialised."""


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """Position up to which a stream has been consumed."""

    stream: str
    log_id: str
    """Log of the stream: sequences of a new log start at 1."""
    sequence: int
    """Sequence of the last message whose effect is in this database."""
    trail: str = ""
    """Serialised Trail of consumed messages; empty where their identities aren't known."""


class Store:
    """SQL access to one leg's database. Only one caller may write at a time, which record.py ensures."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def transaction(self, work: Callable[[sa.Connection], T]) -> T:
        """Runs `work` in one transaction, atomic and durable. Raises Unavailable where the disk or the server fails."""
        return await self._database.visit(work)

    async def claim(self, leg: str) -> None:
        """Makes the leg the permanent owner of the database, as two legs would mix their chains.

        Raises FailedPrecondition where another leg owns it.
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

    async def first_broken_event(self) -> int | None:
        """Id of the first event that breaks the chain, because an event was changed, added or removed; None where all verify."""
        head, broken = ChainHead(), None
        while broken is None:
            query = (
                sa.select(tables.events).where(tables.events.c.id > head.id).order_by(tables.events.c.id).limit(_PAGE)
            )
            links = [ChainedEvent(**row._mapping) for row in await self._rows(query)]
            if not links:
                return None
            head, broken = chain.first_broken(head, links)
        return broken

    async def reading(self, stream: str, log_id: str) -> StreamPosition:
        """Consumed position of a stream, with its trail; sequence 0 where nothing was consumed."""
        query = sa.select(tables.positions).where(
            tables.positions.c.stream == stream, tables.positions.c.log_id == log_id
        )
        rows = await self._rows(query)
        return StreamPosition(*rows[0]) if rows else StreamPosition(stream, log_id, 0)

    # ── the leg's own incidents ──────────────────────────────────────────────────────────────────────────────────────

    def events(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, list[Event]]:
        """Events by incident, in their order; an incident without events is omitted."""
        found: dict[str, list[Event]] = {}
        columns = (tables.events.c.incident_id, tables.events.c.kind, tables.events.c.body)
        for some in _paged(incident_ids):
            query = sa.select(*columns).where(tables.events.c.incident_id.in_(some)).order_by(tables.events.c.id)
            for incident_id, kind, body in connection.execute(query):
                found.setdefault(incident_id, []).append(chain.read(kind, body))
        return found

    def latencies(self, connection: sa.Connection, incident_ids: Sequence[str]) -> dict[str, float]:
        """Latency of offers (report_to_published_ms) by assignment, where it is known."""
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

    async def assignment(self, assignment_id: str) -> AssignmentRow | None:
        """The row of an assignment; None where the id is unknown."""
        return (await self.assignments([assignment_id])).get(assignment_id)

    async def assignments(self, assignment_ids: Sequence[str]) -> dict[str, AssignmentRow]:
        """Rows of assignments by id; unknown ids are omitted."""

        def read(connection: sa.Connection) -> dict[str, AssignmentRow]:
            found: dict[str, AssignmentRow] = {}
            for some in _paged(assignment_ids):
                query = sa.select(tables.assignments).where(tables.assignments.c.assignment_id.in_(some))
                found.update((row.assignment_id, AssignmentRow(*row)) for row in connection.execute(query))
            return found

        return await self.transaction(read)

    # ── steps ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def steps_after(self, sequence: int) -> list[StepRow]:
        """A page of steps after a sequence, in their order; empty at the end."""
        return await self._read_steps(_next_steps(sequence).limit(_PAGE))

    def steps_within(self, connection: sa.Connection, after_sequence: int) -> list[StepRow]:
        """All steps after a sequence, read within a transaction."""
        return [StepRow(*row) for row in connection.execute(_joined(_next_steps(after_sequence)))]

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
        """Ids of those steps that the database has."""
        query = sa.select(tables.steps.c.step_id).where(tables.steps.c.step_id.in_(step_ids))
        return set(connection.scalars(query))

    async def _read_steps(self, query: sa.Select[*tuple[Any, ...]]) -> list[StepRow]:
        return [StepRow(*row) for row in await self._rows(_joined(query))]

    async def _rows(
        self, query: sa.Select[*tuple[Any, ...]], values: Mapping[str, object] | None = None
    ) -> Sequence[sa.Row[*tuple[Any, ...]]]:
        return await self.transaction(lambda connection: connection.execute(query, values).all())

    async def mark_published(
        self, sequences: Iterable[int], latency_ms: Mapping[str, float], more: Callable[[sa.Connection], None]
    ) -> None:
        """Marks steps as published, and stores the latency of offers by assignment in milliseconds. `more` may write more with them."""

        def mark(connection: sa.Connection) -> None:
            connection.execute(_MARK_PUBLISHED, [{"which": sequence} for sequence in sequences])
            more(connection)
            if latency_ms:
                connection.execute(_MARK_LATENCY, [{"which": id_, "ms": ms} for id_, ms in latency_ms.items()])

        await self.transaction(mark)

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def due(self, now_ms: int) -> list[AssignmentRow]:
        """A page of assignments whose deadlines have passed, oldest first."""
        return [AssignmentRow(**row._mapping) for row in await self._rows(_DUE, {"now_ms": now_ms})]

    def next_due_within(self, connection: sa.Connection) -> int | None:
        """Next deadline of an assignment, mesh time; None where nothing is due."""
        due_ms: int | None = connection.scalar(_NEXT_DUE)
        return due_ms

    # ── all legs ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def put_peers(self, rows: Sequence[PeerRow], position: StreamPosition) -> None:
        """Stores the step with the greatest number of each of the other legs' assignments, and the stream position."""
        newest = {row.assignment_id: row for row in sorted(rows, key=lambda row: row.number)}
        peers = [(row.assignment_id, row.incident_id, row.number, row.payload) for row in newest.values()]
        positions = [(position.stream, position.log_id, position.sequence, position.trail)]
        await self.transaction(lambda connection: write(connection, _PEERS, (peers, positions)))

    async def incidents(self, incident_id: str, limit: int, before: str) -> list[ListedIncident]:
        """Up to `limit` incidents, newest first: all but canaries, or only `incident_id` if it isn't empty.

        With `before`, only incidents that were opened before that one. Raises InvalidField where this leg doesn't have it.
        """

        def listing(connection: sa.Connection) -> sa.Select[*tuple[Any, ...]]:
            query = sa.select(tables.incidents).order_by(tables.incidents.c.opened_sequence.desc()).limit(limit)
            query = query.where(
                tables.incidents.c.incident_id == incident_id if incident_id else sa.text("exercise <> 2")
            )
            if before:
                named = sa.select(tables.incidents.c.opened_sequence).where(tables.incidents.c.incident_id == before)
                last = connection.scalar(named)
                if last is None:
                    raise InvalidField(
                        "page_token", "isn't a token of this leg: use next_page_token of the last response"
                    )
                query = query.where(tables.incidents.c.opened_sequence < last)
            return query

        def read(connection: sa.Connection) -> list[ListedIncident]:
            rows = [IncidentRow(**row._mapping) for row in connection.execute(listing(connection))]
            own: dict[str, list[AssignmentRow]] = {row.incident_id: [] for row in rows}
            peers: dict[str, list[bytes]] = {row.incident_id: [] for row in rows}
            for some in _paged(list(own)):
                mine = sa.select(tables.assignments).where(tables.assignments.c.incident_id.in_(some))
                for row in connection.execute(mine.order_by(tables.assignments.c.assignment_id)):
                    own[row.incident_id].append(AssignmentRow(**row._mapping))
                theirs = sa.select(tables.peers.c.incident_id, tables.peers.c.payload).where(
                    tables.peers.c.incident_id.in_(some)
                )
                for id_, payload in connection.execute(theirs.order_by(tables.peers.c.assignment_id)):
                    peers[id_].append(payload)
            return [ListedIncident(row, own[row.incident_id], peers[row.incident_id]) for row in rows]

        return await self.transaction(read)


_HEAD = sa.select(tables.events.c.id, tables.events.c.hash).order_by(tables.events.c.id.desc()).limit(1)
_DUE = (
    sa.select(tables.assignments)
    .where(tables.assignments.c.due_ms <= sa.bindparam("now_ms"))
    .order_by(tables.assignments.c.due_ms)
    .limit(_PAGE)
)
_NEXT_DUE = sa.select(sa.func.min(tables.assignments.c.due_ms))
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


_MARK_PUBLISHED = sa.update(tables.steps).where(tables.steps.c.sequence == sa.bindparam("which")).values(published=True)
_MARK_LATENCY = (
    sa.update(tables.assignments)
    .where(tables.assignments.c.assignment_id == sa.bindparam("which"))
    .values(report_to_published_ms=sa.bindparam("ms"))
)


def _paged(ids: Sequence[str]) -> Iterable[Sequence[str]]:
    return (ids[start : start + _PAGE] for start in range(0, len(ids), _PAGE))
