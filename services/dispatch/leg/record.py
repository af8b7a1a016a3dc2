"""Record of a leg's incidents, in memory and in the store. It decides commands and commits their results in one transaction.

A step is sent only after its commit: to the desks at once, and to INCIDENTS through the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from services.common.observability.telemetry import logger
from services.common.priority import PriorityGate
from services.common.retrying import retried
from services.common.rpc.errors import FailedPrecondition
from services.dispatch.domain.assignment import AssignmentState
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import EVENTS, Event
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import chain, change_store
from services.dispatch.leg.change import Change, CommittedIncident, IncidentCommand
from services.dispatch.leg.change_store import CommittedState
from services.dispatch.leg.deadlines import DeadlineWatch
from services.dispatch.leg.rows import StreamPosition
from services.dispatch.leg.store import Store
from services.dispatch.leg.subscriptions import Subscriptions
from services.dispatch.metrics import DispatchMetrics
from services.dispatch.publications import store as publications
from services.dispatch.publications.changes import ChangedIncidents, ChangeReaders
from services.dispatch.publications.outbox import StepOutbox
from services.dispatch.publications.steps import NumberedStep, numbered
from services.dispatch.publications.store import Published
from services.dispatch.roster.availability import AvailabilityView
from tandem.common.v1 import exercise_pb2

KNOWN_MAX = 10_000
"""Maximum number of incidents in memory. Other incidents are folded from their events when needed."""
ADOPT_AFTER_S = 2.0
"""Interval of the search for unpublished steps of other processes, seconds. Such a step is published after one to two intervals."""
STEP_STATES = (
    *(state.name.lower() for state in AssignmentState),
    *(names.log_name for names in EVENTS.values() if names.log_name),
)
"""All log names of steps."""
_NAMES = {names.stored_name: names for names in EVENTS.values()}
T = TypeVar("T")


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
        self.leg = leg
        self.store = store
        self.subscriptions = Subscriptions(unanswered)
        self.outbox = StepOutbox(leg, unpublished, metrics)
        self.gate = PriorityGate()
        """Who goes first in this process. Each command is response work."""
        self.head = head
        """Link of the last event that this process knows."""
        self._watch = watch
        self._availability = availability
        self._metrics = metrics
        self._readers = ChangeReaders()
        self._known: OrderedDict[str, CommittedIncident] = OrderedDict()
        self._lock = asyncio.Lock()

    async def handle(
        self,
        commands: Sequence[IncidentCommand],
        situation: Situation,
        *,
        position: StreamPosition | None = None,
        first: Callable[[Connection], Sequence[IncidentCommand]] | None = None,
    ) -> Mapping[str, CommittedIncident]:
        """Decides commands in their order and commits all results. Returns the incidents after the commit.

        The board of `situation` holds travel times and positions, which are looked up before the transaction. The roster is read
        in the transaction. `first` may change the store in the same transaction and return more commands. `position` is stored with
        the results. If a command raises an error, nothing is changed and the error is raised.
        """
        with self.gate.response():
            return await _complete(self._gather_decide_apply(commands, situation, position, first=first))

    def gather(
        self, connection: Connection, incident_ids: set[str], remembered: Mapping[str, CommittedIncident]
    ) -> dict[str, CommittedIncident]:
        """Incidents by id, from `remembered` or else folded from their events. An incident without events is empty."""
        found = {id_: remembered[id_] for id_ in incident_ids if id_ in remembered}
        missing = [id_ for id_ in incident_ids if id_ not in found]
        if missing:
            events = self.store.events(connection, missing)
            latencies = self.store.latencies(connection, list(events)) if events else {}
            found |= self._folded(missing, events, latencies)
        return found

    def _folded(
        self, ids: Iterable[str], events: Mapping[str, Sequence[Event]], latency_ms: Mapping[str, float]
    ) -> dict[str, CommittedIncident]:
        found: dict[str, CommittedIncident] = {}
        for incident_id in ids:
            incident = Incident(incident_id, self.leg)
            for event in events.get(incident_id, ()):
                incident = evolve(incident, event)
            mine = {id_: latency_ms[id_] for id_ in incident.assignments if id_ in latency_ms}
            found[incident_id] = CommittedIncident(incident, mine)
        return found

    async def open_incidents(self) -> list[Incident]:
        """Incidents with an open assignment."""

        def read(connection: Connection) -> tuple[dict[str, CommittedIncident], bool]:
            up_to_date = self.store.head_within(connection) == self.head
            ids = self.store.open_incidents(connection)
            return self.gather(connection, ids, self._known if up_to_date else {}), up_to_date

        async with self._lock:
            known, up_to_date = await self.store.transaction(read)
            if up_to_date:
                self._remember(known)
        return [committed.incident for committed in known.values()]

    def changes(self) -> AbstractAsyncContextManager[ChangedIncidents]:
        """All open incidents, and then each change, also of other processes of this leg."""
        return self._readers.reading(partial(retried, self.open_incidents))

    async def mark_published(self, published: Published, log_id: str) -> None:
        """Records that steps were published, under the id of the log."""

        async def work() -> None:
            async with self._lock:
                await self.store.transaction(partial(publications.mark, published=published, log_id=log_id))
                for assignment in (step.step.assignment for step in published.steps):
                    id_, known = assignment.assignment_id, self._known.get(assignment.incident_id)
                    if known and id_ in published.latency_ms:
                        latencies = {**known.latency_ms, id_: published.latency_ms[id_]}
                        self._known[assignment.incident_id] = CommittedIncident(known.incident, latencies)
                self.subscriptions.update_latencies(published.latency_ms)

        await retried(lambda: _complete(work()))

    async def adopt_steps(self) -> None:
        """Publishes steps of other processes that stay unpublished, until cancelled.

        A step stays unpublished if its process died, or if the answer to a commit of this process was lost.
        """
        previous: set[int] = set()
        while True:
            await asyncio.sleep(ADOPT_AFTER_S)
            orphans = [row for row in await retried(self.store.unpublished) if not self.outbox.holds(row.sequence)]
            # Take only steps that the previous search found too. Another process may be about to publish the newer ones.
            self.outbox.add(numbered(row for row in orphans if row.sequence in previous))
            previous = {row.sequence for row in orphans}

    async def finish(self) -> None:
        """Returns when a running transaction is over."""
        async with self._lock:
            pass

    # ── one transaction ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _gather_decide_apply(
        self,
        commands: Sequence[IncidentCommand],
        situation: Situation,
        position: StreamPosition | None,
        *,
        first: Callable[[Connection], Sequence[IncidentCommand]] | None,
    ) -> Mapping[str, CommittedIncident]:
        async with self._lock:

            def work(connection: Connection) -> Change:
                all_commands = [*commands, *first(connection)] if first else commands
                change, committed = self._begin(connection, {command.incident_id for command in all_commands})
                board, change.engaged = self._availability.within(connection, situation.board, committed)
                present = replace(situation, board=board)
                for incident_id, command in all_commands:
                    change.decide(incident_id, command, present)
                change_store.write(connection, change, position)
                return change

            try:
                change = await self.store.transaction(work)
            except BaseException:
                self._availability.forget()
                raise
            self._committed(change)
            return change.known

    def _begin(self, connection: Connection, incident_ids: set[str]) -> tuple[Change, CommittedState]:
        """Begins a change with the committed state. If another process of this leg wrote meanwhile, the store replaces the memory.

        So a deadline fires once: the second process finds the result of the first. Raises FailedPrecondition if the store holds an
        older state than this process has seen.
        """
        missing = [id_ for id_ in incident_ids if id_ not in self._known]
        committed = change_store.read(connection, missing, self._availability.asks_units())
        if committed.head == self.head:
            known = {id_: self._known[id_] for id_ in incident_ids if id_ in self._known}
            known |= self._folded(missing, committed.events, committed.latency_ms)
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

    def _remember(self, known: Mapping[str, CommittedIncident]) -> None:
        for incident_id, committed in known.items():
            self._known[incident_id] = committed
            self._known.move_to_end(incident_id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _committed(self, change: Change) -> None:
        """Applies a committed change to memory. The method doesn't await, so readers see all of the change or nothing."""
        if change.behind:
            self._known.clear()
            self.subscriptions.notify(change.missed)
        self.head = change.head
        self._remember(change.known)
        self.subscriptions.notify(change.steps)
        self.outbox.add(change.steps)
        changed = change.known if change.behind else {link.incident_id for link in change.links}
        self._readers.notify((change.known[id_].incident for id_ in changed), self._availability.take_moved())
        dues_ms = (row.due_ms for row in change.assignments.values() if row.due_ms is not None)
        self._watch.due(min(dues_ms, default=math.inf), min((row.due_ms for row in change.awaited), default=math.inf))
        _log(self.leg, change, self._metrics)


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


async def _complete(work: Awaitable[T]) -> T:
    """Completes `work` even if the caller is cancelled, so that memory and store don't diverge."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_note_failure)
        raise


def _note_failure(task: asyncio.Future[T]) -> None:
    """Logs the failure of work whose caller was cancelled, since nobody else sees it."""
    if not task.cancelled() and (error := task.exception()):
        logger().error("work_failed_unasked", reason=getattr(error, "reason", type(error).__name__))
