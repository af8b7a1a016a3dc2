"""What a leg has done, in memory as in its store: one writer, which decides and applies all in one transaction.

Nothing is sent before it is committed; what is committed goes to the desks at once and to INCIDENTS through the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection

from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition
from services.dispatch import metrics
from services.dispatch.domain.decisions import Command
from services.dispatch.domain.events import (
    Event,
    Flagged,
    LegAbsent,
    LegReturned,
    Raced,
    Received,
    Reoffered,
    Retargeted,
    SceneShared,
    SpoofingSuspected,
    StepsLost,
)
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import AssignmentState, Incident
from services.dispatch.domain.roster import NO_ROSTER, Board
from services.dispatch.leg import chain, change_store, translate
from services.dispatch.leg.change import Change, CommittedIncident
from services.dispatch.leg.change_store import CommittedState
from services.dispatch.leg.deadlines import DeadlineWatch
from services.dispatch.leg.outbox import StepOutbox
from services.dispatch.leg.store import StepRow, Store, StreamPosition
from services.dispatch.leg.subscriptions import Numbered, Subscriptions
from services.dispatch.publications import store as store_published
from services.dispatch.publications.store import StoredAs
from services.dispatch.retrying import retried
from services.dispatch.roster.availability import AvailabilityView
from tandem.common.v1 import exercise_pb2

KNOWN_MAX = 10_000
"""Incidents whose state is kept in memory; the others are folded anew when they are needed."""
ADOPT_AFTER_S = 2.0
"""How long a committed step may be in the store alone before whoever finds it publishes it, and at most twice that."""
_SAID = {
    chain.STORED_NAMES[kind]: said
    for kind, said in {
        Reoffered: "offered_again",
        Received: "received",
        LegAbsent: "leg_absent",
        LegReturned: "leg_returned",
        StepsLost: "steps_lost",
        Flagged: "flagged",
        Retargeted: "retargeted",
        Raced: "raced",
        SceneShared: "scene_shared",
        SpoofingSuspected: "spoofing_suspected",
    }.items()
}
"""What the log calls a step that its state alone doesn't tell."""
STEP_STATES = (*(state.name.lower() for state in AssignmentState), *_SAID.values())
"""All that the log may call a step."""
_ALARMS = {chain.STORED_NAMES[kind] for kind in (LegAbsent, StepsLost)}
T = TypeVar("T")
_NOWHERE: Mapping[int, StoredAs] = {}
Asked: TypeAlias = tuple[str, Callable[[Board], Command]]
"""An incident, and what is asked of it once the board is known."""


class LegRecord:
    """The incidents of one leg."""

    def __init__(
        self,
        leg: str,
        store: Store,
        boards: AvailabilityView,
        watch: DeadlineWatch,
        head: chain.ChainHead,
        unpublished: Iterable[Numbered],
        unanswered: Iterable[Numbered],
    ) -> None:
        self.leg = leg
        self.store = store
        self.subscriptions = Subscriptions(unanswered)
        self.outbox = StepOutbox(unpublished)
        self.head = head
        """The last event that this process knows."""
        self._watch = watch
        self._boards = boards
        self._known: OrderedDict[str, CommittedIncident] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()

    async def handle(
        self,
        asked: Sequence[Asked],
        ahead: Board = NO_ROSTER,
        position: StreamPosition | None = None,
        first: Callable[[Connection], Sequence[Asked]] | None = None,
    ) -> Mapping[str, CommittedIncident]:
        """Decides what is asked of incidents, in this order, and commits it all; the incidents as they are then.

        `ahead` holds what had to be known before: travel times, positions. `first` may change the store in the same transaction and
        ask for more. `position` is kept with it. Raises what a command raises: then nothing has changed.
        """
        return await _to_the_end(self._gather_decide_apply(asked, ahead, position, first))

    def gather(
        self, connection: Connection, incident_ids: set[str], remembered: Mapping[str, CommittedIncident]
    ) -> dict[str, CommittedIncident]:
        """Incidents as they are, from memory or else folded from their events; one that isn't there yet is empty."""
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
        """Incidents in which somebody has something to do."""

        def read(connection: Connection) -> tuple[dict[str, CommittedIncident], bool]:
            up_to_date = self.store.head_within(connection) == self.head
            ids = self.store.open_incidents(connection)
            return self.gather(connection, ids, self._known if up_to_date else {}), up_to_date

        async with self._one_at_a_time:
            known, up_to_date = await self.store.transaction(read)
            if up_to_date:
                self._remember(known)
        return [one.incident for one in known.values()]

    async def mark_published(
        self,
        steps: Sequence[Numbered],
        latency_ms: Mapping[str, float],
        stored: Mapping[int, StoredAs] = _NOWHERE,
        log_id: str = "",
    ) -> None:
        """Notes what has reached a log's streams: by assignment how long its offer took, milliseconds; by step its entry there."""

        async def work() -> None:
            async with self._one_at_a_time:
                await self.store.mark_published(
                    [step.sequence for step in steps],
                    latency_ms,
                    partial(store_published.record, log_id=log_id, stored=stored),
                )
                for assignment in (step.step.assignment for step in steps):
                    id_, known = assignment.assignment_id, self._known.get(assignment.incident_id)
                    if known and id_ in latency_ms:
                        latencies = {**known.latency_ms, id_: latency_ms[id_]}
                        self._known[assignment.incident_id] = CommittedIncident(known.incident, latencies)
                self.subscriptions.tell_latencies(latency_ms)

        await retried(lambda: _to_the_end(work()))

    async def catch_up(self) -> None:
        """Takes over what another process of this leg has committed, and tells it to the desks that are here."""
        if await self.store.head() != self.head:
            await self.handle([])

    async def adopt_steps(self) -> None:
        """Publishes what was committed and is in nobody's hands, for ever: another process of this leg has died, or the answer to a
        commit of ours was lost."""
        seen: set[int] = set()
        while True:
            await asyncio.sleep(ADOPT_AFTER_S)
            orphans = [row for row in await retried(self.store.unpublished) if not self.outbox.holds(row.sequence)]
            # At the first look another process may be about to publish it; at the second it has had its time.
            self.outbox.add(numbered(row for row in orphans if row.sequence in seen))
            seen = {row.sequence for row in orphans}

    async def finish(self) -> None:
        """Returns when a transaction that has begun is over."""
        async with self._one_at_a_time:
            pass

    # ── one transaction ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def _gather_decide_apply(
        self,
        asked: Sequence[Asked],
        ahead: Board,
        position: StreamPosition | None,
        first: Callable[[Connection], Sequence[Asked]] | None,
    ) -> Mapping[str, CommittedIncident]:
        async with self._one_at_a_time:

            def work(connection: Connection) -> Change:
                every = [*asked, *first(connection)] if first else asked
                change, seen = self._begin(connection, {id_ for id_, _ in every})
                board, change.engaged = self._boards.within(connection, ahead, seen)
                for incident_id, command in every:
                    change.decide(incident_id, command(board))
                change_store.write(connection, change, position)
                return change

            try:
                change = await self.store.transaction(work)
            except BaseException:
                self._boards.forget()
                raise
            self._committed(change)
            return change.known

    def _begin(self, connection: Connection, incident_ids: set[str]) -> tuple[Change, CommittedState]:
        """What is committed. Where another process of this leg wrote meanwhile, memory is behind, and the store is read instead.

        So a deadline fires once: whoever comes second finds what the first made of it.
        """
        missing = [id_ for id_ in incident_ids if id_ not in self._known]
        seen = change_store.read(connection, missing, self._boards.asks_units())
        if seen.head == self.head:
            known = {id_: self._known[id_] for id_ in incident_ids if id_ in self._known}
            known |= self._folded(missing, seen.events, seen.latency_ms)
            return Change(seen.head, known, {}), seen
        if seen.head.id <= self.head.id:
            # Desks have been told steps that are no longer there: only a start from nothing is right.
            raise FailedPrecondition("the leg's database went back: an older copy was restored while it ran")
        missed = numbered(self.store.steps_within(connection, self.head.id))
        return Change(seen.head, self.gather(connection, incident_ids, {}), {}, True, missed), seen

    def _remember(self, known: Mapping[str, CommittedIncident]) -> None:
        for incident_id, one in known.items():
            self._known[incident_id] = one
            self._known.move_to_end(incident_id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _committed(self, change: Change) -> None:
        """Takes over what the transaction made durable. No await: readers see all of it or nothing."""
        if change.behind:
            self._known.clear()
            self.subscriptions.tell(change.missed)
        self.head = change.head
        self._remember(change.known)
        self.subscriptions.tell(change.steps)
        self.outbox.add(change.steps)
        dues_ms = (row.due_ms for row in change.assignments.values() if row.due_ms is not None)
        self._watch.due(min(dues_ms, default=math.inf), min((row.due_ms for row in change.awaited), default=math.inf))
        kinds = {link.id: link.kind for link in change.links}
        for step in change.steps:
            assignment, kind = step.step.assignment, kinds[step.sequence]
            state = _SAID.get(kind) or AssignmentState(assignment.state).name.lower()
            metrics.count(self.leg, state, assignment)
            if assignment.exercise == exercise_pb2.CANARY:
                continue  # who looks for what happened doesn't look for these
            logger().log(
                logging.CRITICAL if kind in _ALARMS else logging.INFO,
                f"assignment_{state}",
                assignment_id=assignment.assignment_id,
                incident_id=assignment.incident_id,
                sequence=step.sequence,
            )


async def _to_the_end(work: Awaitable[T]) -> T:
    """Runs `work` to its end although the caller may leave: memory and store must not part."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_note_failure)
        raise


def _note_failure(task: asyncio.Future[T]) -> None:
    """Of work whose caller has left: nobody else is told."""
    if not task.cancelled() and (error := task.exception()):
        logger().error("work_failed_unasked", reason=getattr(error, "reason", type(error).__name__))


def numbered(rows: Iterable[StepRow]) -> list[Numbered]:
    """Stored steps with their places."""
    return [Numbered(row.sequence, translate.stored_step(row)) for row in rows]
