"""Record of a leg's incidents, in memory and in the store. It decides commands and commits their results in one transaction.

A step is sent only after its commit: to the desks at once, and to INCIDENTS through the outbox.

Records of publications and the other legs' steps are secondary writes: no offer waits for them. Writes that come at about the same time
share one transaction, since a commit costs more than the rows in it.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field, replace
from functools import partial

from sqlalchemy import Connection

from services.common.errors import FailedPrecondition, Unavailable
from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.common.retrying import retried
from services.common.running import completed
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import EVENTS, Event
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain
from services.dispatch.leg.availability import AvailabilityView
from services.dispatch.leg.change import (
    Change,
    CommittedIncident,
    IncidentCommand,
    IncidentMemory,
    Request,
    RequestQueue,
)
from services.dispatch.leg.deadlines import DeadlineWatch
from services.dispatch.leg.feed import ChangedIncidents, ChangeReaders, ListingChanges, Subscriptions
from services.dispatch.leg.publications import Published, StepOutbox, mark_published
from services.dispatch.leg.store import CommittedState, Store, read_committed, write_change
from services.dispatch.leg.tables import NoteRow, PeerRow, StreamPosition
from services.dispatch.leg.translate import NumberedStep, numbered
from services.dispatch.metrics import DispatchMetrics
from tandem.common.v1 import exercise_pb2

SECONDARY_COALESCE_S = 0.02
"""Time for which writes are collected after the first one, seconds. The other legs' steps follow the own one within this time."""
SECONDARY_INTERVAL_S = 0.2
"""Minimum time between two transactions of secondary writes, seconds."""
STEP_STATES = (
    *(state.name.lower() for state in AssignmentState),
    *(names.log_name for names in EVENTS.values() if names.log_name),
)
"""All log names of steps."""
_NAMES = {names.stored_name: names for names in EVENTS.values()}


class LegRecord:
    """The incidents of one leg."""

    def __init__(
        self,
        leg: Leg,
        store: Store,
        availability: AvailabilityView,
        *,
        watch: DeadlineWatch,
        head: chain.ChainHead,
        unpublished: Iterable[NumberedStep],
        unanswered: Iterable[NumberedStep],
        metrics: DispatchMetrics,
    ) -> None:
        self.leg, self.store = leg, store
        self.subscriptions = Subscriptions(unanswered)
        self.outbox = StepOutbox(leg, unpublished, metrics)
        self.gate = PriorityGate()
        """Admission of this process's other work beside its responses. Each command is response work."""
        self.head = head
        """Link of the last event that this process knows."""
        self._watch = watch
        self._availability = availability
        self._metrics = metrics
        self._readers = ChangeReaders()
        self.memory = IncidentMemory()
        self.listing = ListingChanges()
        """Changes for the readers of the list of incidents."""
        self._moved_on = asyncio.Event()  # set, and replaced, when the head has changed
        self._requests = RequestQueue()
        self._lock = asyncio.Lock()
        self.secondary = SecondaryRecords(store, self.memory, self.subscriptions, listing=self.listing, lock=self._lock)

    async def handle(
        self,
        commands: Sequence[IncidentCommand],
        situation: Situation,
        *,
        position: StreamPosition | None = None,
        first: Callable[[Connection], Sequence[IncidentCommand]] | None = None,
    ) -> Mapping[str, CommittedIncident]:
        """Decides commands in their order and commits all results. Returns the incidents after the commit.

        Requests that arrive while a transaction runs share the next one. The board of `situation` holds travel times and positions,
        which are looked up before the transaction. The roster is read in the transaction. `first` may change the store in the same
        transaction and return more commands. `position` is stored with the results. If a command raises an error, nothing is changed
        and the error is raised.
        """
        with self.gate.response():
            return await completed(self._commit(Request(commands, situation, position=position, first=first)))

    def gather(
        self, connection: Connection, incident_ids: set[str], remembered: Mapping[str, CommittedIncident]
    ) -> dict[str, CommittedIncident]:
        """Incidents by id, from `remembered` or else folded from their events. An incident without events is empty."""
        found = {id_: remembered[id_] for id_ in incident_ids if id_ in remembered}
        missing = [id_ for id_ in incident_ids if id_ not in found]
        if missing:
            events = self.store.events(connection, missing)
            latencies = self.store.latencies(connection, list(events)) if events else {}
            found |= _folded(self.leg, missing, events, latency_ms=latencies)
        return found

    async def open_incidents(self) -> list[Incident]:
        """Incidents with an open assignment. Commits of other processes of this leg show once this process has caught up with them."""

        def read(connection: Connection) -> tuple[dict[str, CommittedIncident], bool]:
            up_to_date = self.store.head_within(connection) == self.head
            ids = self.store.open_incidents(connection)
            return self.gather(connection, ids, self.memory.known if up_to_date else {}), up_to_date

        if self.memory.open is not None:
            return list(self.memory.open.values())
        async with self._lock:
            known, up_to_date = await self.store.transaction(read)
            incidents = {id_: committed.incident for id_, committed in known.items()}
            if up_to_date:
                self.memory.remember(known)
                self.memory.open = incidents
        return list(incidents.values())

    def changes(self) -> AbstractAsyncContextManager[ChangedIncidents]:
        """All open incidents, and then each change, also of other processes of this leg."""
        return self._readers.reading(partial(retried, self.open_incidents))

    async def changed(self, since: chain.ChainHead) -> None:
        """Returns once the leg has events after `since`."""
        while self.head == since:
            await self._moved_on.wait()

    async def finish(self) -> None:
        """Returns when a running transaction is over."""
        await self.secondary.close()
        async with self._lock:
            pass

    # ── one transaction ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _commit(self, request: Request) -> Mapping[str, CommittedIncident]:
        self._requests.add(request)
        async with self._lock:
            while not request.over:  # unless another request's transaction included this one
                await self._commit_together(self._requests.next())
        return request.outcome()

    async def _commit_together(self, requests: Sequence[Request]) -> None:
        """Commits the results of requests in one transaction. Each of them is over then, and has its outcome."""

        def work(connection: Connection) -> Change:
            change = self._decide(connection, requests)
            positions = {request.position.stream: request.position for request in requests if request.position}
            write_change(connection, change, list(positions.values()))
            return change

        roster = self._availability.loaded
        try:
            change = await self.store.transaction(work)
        except BaseException as error:
            self._availability.loaded = roster  # rows of a refused change were rolled back
            failure = error if isinstance(error, Exception) else Unavailable("the leg stops")
            for request in requests:
                request.error = request.error or failure
            if not isinstance(error, Exception):
                raise
        else:
            self._committed(change)
        finally:
            for request in requests:
                request.over = True

    def _decide(self, connection: Connection, requests: Sequence[Request]) -> Change:
        """Decides the commands of requests, in their order. A request that raises an error is left out, and the others are decided
        afresh without it. The error of a single request ends the transaction, as `first` may have changed the store."""
        while True:
            going = [request for request in requests if request.error is None]
            commands = [
                [*request.commands, *request.first(connection)] if request.first else request.commands
                for request in going
            ]
            ids = {command.incident_id for request_commands in commands for command in request_commands}
            change, committed = self._begin(connection, ids)
            board, change.engaged = self._availability.within(connection, committed)
            for request, request_commands in zip(going, commands, strict=True):
                ahead = request.situation.board
                present = replace(board, positions=ahead.positions, travel=ahead.travel)
                try:
                    request.decided = change.decide_all(request_commands, replace(request.situation, board=present))
                except Exception as error:
                    if len(requests) == 1:
                        raise
                    request.error = error
                    break
            else:
                return change

    def _begin(self, connection: Connection, incident_ids: set[str]) -> tuple[Change, CommittedState]:
        """Begins a change with the committed state. If another process of this leg wrote meanwhile, the store replaces the memory.

        So a deadline fires once: the second process finds the result of the first. Raises FailedPrecondition if the store holds an
        older state than this process has seen.
        """
        missing = [id_ for id_ in incident_ids if id_ not in self.memory.known]
        committed = read_committed(connection, missing, self._availability.asks_units())
        if committed.head == self.head:
            known = {id_: self.memory.known[id_] for id_ in incident_ids if id_ in self.memory.known}
            known |= _folded(self.leg, missing, committed.events, latency_ms=committed.latency_ms)
            return Change(committed.head, known, {}), committed
        if committed.head.id <= self.head.id:
            # Desks have seen steps that no longer exist. Only a restart clears the memory of them.
            raise FailedPrecondition(
                "the leg's database went back: an older copy was restored while the leg ran; restart the leg"
            )
        missed = list(numbered(self.store.steps_within(connection, self.head.id)))
        # The readers of changes get the incidents that the other process changed, too.
        changed = self.store.incidents_changed(connection, self.head.id)
        return Change(
            head=committed.head,
            known=self.gather(connection, incident_ids | changed, {}),
            engaged={},
            behind=True,
            missed=missed,
        ), committed

    def _committed(self, change: Change) -> None:
        """Applies a committed change to memory. The method doesn't await, so readers see all of the change or nothing."""
        if change.behind:
            self.memory.forget()
            self.subscriptions.notify(change.missed)
        self.head = change.head
        self.memory.changed(change.known)  # the desks' streams look into it
        # Of the tasks that wake now, the desks' and the publications' come first.
        self.subscriptions.notify(change.steps)
        self.outbox.add(change.steps)
        self._moved_on.set()
        self._moved_on = asyncio.Event()
        changed = change.known if change.behind else dict.fromkeys(link.incident_id for link in change.links)
        self.listing.note(changed)
        self._readers.notify((change.known[id_].incident for id_ in changed), self._availability.take_moved())
        dues_ms = (row.due_ms for row in change.assignments.values() if row.due_ms is not None)
        self._watch.due(min(dues_ms, default=math.inf), min((row.due_ms for row in change.awaited), default=math.inf))
        asyncio.get_running_loop().call_soon(_log, self.leg, change, self._metrics)  # after the desks' streams


def _folded(
    leg: Leg, ids: Iterable[str], events: Mapping[str, Sequence[Event]], *, latency_ms: Mapping[str, float]
) -> dict[str, CommittedIncident]:
    found: dict[str, CommittedIncident] = {}
    for incident_id in ids:
        incident = Incident(incident_id, leg)
        for event in events.get(incident_id, ()):
            incident = evolve(incident, event)
        mine = {id_: latency_ms[id_] for id_ in incident.assignments if id_ in latency_ms}
        found[incident_id] = CommittedIncident(incident, mine)
    return found


def _log(leg: Leg, change: Change, metrics: DispatchMetrics) -> None:
    """Logs and counts the steps of a committed change."""
    names = {link.id: _NAMES[link.kind] for link in change.links}
    for step in change.steps:
        assignment, kind = step.step.assignment, names[step.sequence]
        state = kind.log_name or AssignmentState(assignment.state).name.lower()
        metrics.count(leg, state, assignment)
        if assignment.exercise == exercise_pb2.CANARY:
            continue  # canaries would hide live incidents in the log
        logger().log(
            logging.CRITICAL if kind.alarms else logging.INFO,
            f"assignment_{state}",
            assignment_id=assignment.assignment_id,
            incident_id=assignment.incident_id,
            sequence=step.sequence,
        )


@dataclass(frozen=True, slots=True)
class SecondaryWrite:
    """A write that may share its transaction with others."""

    work: Callable[[Connection], None]
    then: Callable[[], None]
    """Called once the transaction is committed, before another one begins."""
    done: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class SecondaryWrites:
    """Collects secondary writes. `commit` commits writes in their order, in one transaction, and raises Unavailable."""

    def __init__(self, commit: Callable[[Sequence[SecondaryWrite]], Awaitable[None]]) -> None:
        self._commit = commit
        self._pending: list[SecondaryWrite] = []
        self._running: asyncio.Task[None] | None = None

    async def add(self, work: Callable[[Connection], None], then: Callable[[], None] = lambda: None) -> None:
        """Returns once `work` is committed. Raises the error of its transaction, which may be another write's."""
        write = SecondaryWrite(work, then)
        self._pending.append(write)
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        await write.done

    async def close(self) -> None:
        """Ends the work. Writes that aren't committed are lost, and follow from the streams after a restart."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])

    async def _run(self) -> None:
        await asyncio.sleep(SECONDARY_COALESCE_S)
        while self._pending:
            writes, self._pending = self._pending, []
            try:
                await self._commit(writes)
            except Exception as error:  # each caller gets it
                for write in writes:
                    if not write.done.done():
                        write.done.set_exception(error)
            else:
                for write in writes:
                    if not write.done.done():
                        write.done.set_result(None)
            await asyncio.sleep(SECONDARY_INTERVAL_S)


class SecondaryRecords:
    """Records of a leg that no offer waits for. They share transactions, see SecondaryWrites."""

    def __init__(
        self,
        store: Store,
        memory: IncidentMemory,
        subscriptions: Subscriptions,
        *,
        listing: ListingChanges,
        lock: asyncio.Lock,
    ) -> None:
        self._store = store
        self._memory = memory
        self._subscriptions = subscriptions
        self._lock = lock
        self._listing = listing
        self._writes = SecondaryWrites(self._commit)

    async def close(self) -> None:
        """Ends the work, as SecondaryWrites.close."""
        await self._writes.close()

    async def put_peers(self, rows: Sequence[PeerRow], position: StreamPosition, notes: Sequence[NoteRow] = ()) -> None:
        """Stores the newest step of each assignment of another leg, by step number, its notes, and the stream position."""
        await self._writes.add(partial(self._store.put_peers, rows=rows, position=position, notes=notes))

    async def mark_published(self, published: Published, log_id: str) -> None:
        """Records that steps were published, under the id of the log."""

        def remember() -> None:
            self._memory.measured(published.steps, published.latency_ms)
            self._subscriptions.update_latencies(published.latency_ms)
            assignments = (step.step.assignment for step in published.steps)
            self._listing.note(each.incident_id for each in assignments if each.assignment_id in published.latency_ms)

        await retried(lambda: self._writes.add(partial(mark_published, published=published, log_id=log_id), remember))

    async def _commit(self, writes: Sequence[SecondaryWrite]) -> None:
        """Commits secondary writes between two transactions of commands, whose rows hold the known latencies of offers."""

        def work(connection: Connection) -> None:
            for write in writes:
                write.work(connection)

        async def commit() -> None:
            async with self._lock:
                await self._store.transaction(work)
                for write in writes:
                    write.then()

        await completed(commit())
