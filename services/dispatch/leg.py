"""The one writer of a leg: gathers the incidents that commands are about, decides, applies all in one transaction.

Nothing is sent before it is committed; what is committed goes to the desks at once and to INCIDENTS through the outbox.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, RetryableError
from services.common.telemetry import logger
from services.dispatch import chain, translate
from services.dispatch.domain.decisions import Acknowledge, Alert, Command, FoldAlert, PassDeadline, concerns, decide
from services.dispatch.domain.events import AlertFolded, Offered, OfferedAgain
from services.dispatch.domain.incident import Incident, State, evolve
from services.dispatch.hub import Hub, Numbered
from services.dispatch.outbox import Outbox
from services.dispatch.store import AssignmentRow, IncidentRow, Position, StepRow, Store
from tandem.dispatch.v1 import dispatch_pb2

KNOWN_MAX = 10_000
"""Incidents whose state is kept in memory; the others are folded anew when they are needed."""
RETRY_S = 0.5
_LONGEST_SLEEP_S = 1.0
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Known:
    """An incident as it is committed."""

    incident: Incident
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """report_to_published_ms by assignment, where it is known."""


@dataclass(slots=True)
class _Change:
    """What commands lead to, before it is committed."""

    head: chain.Head
    known: dict[str, _Known]
    links: list[chain.Link] = field(default_factory=list)
    steps: list[Numbered] = field(default_factory=list)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    incidents: dict[str, IncidentRow] = field(default_factory=dict)


class Leg:
    """One leg of the response, over its own store."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: MeshClock,
        acknowledge_within_ms: int,
        head: chain.Head,
        unpublished: Iterable[Numbered],
        unanswered: Iterable[Numbered],
    ) -> None:
        self.name = name
        self.store = store
        self.hub = Hub(unanswered)
        self.outbox = Outbox(unpublished)
        self._clock = clock
        self._within_ms = acknowledge_within_ms
        self._head = head
        self._known: OrderedDict[str, _Known] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._next_due_ms = math.inf
        self._sooner = asyncio.Event()

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fold(self, alerts: Sequence[Alert], position: Position) -> None:
        """Takes alerts in up to a position, in one transaction; durable when it returns. What was taken before changes nothing."""
        alerts = [alert for alert in alerts if concerns(self.name, alert)]
        now_ms = self._clock.now_ms()
        await self._handle(
            [
                (alert.incident_id, FoldAlert(alert, now_ms, self._within_ms))
                for alert in sorted(alerts, key=lambda alert: alert.place)
            ],
            position,
        )

    async def acknowledge(self, assignment_id: str, by: str) -> dispatch_pb2.Assignment:
        """The desk takes an assignment; doing it again changes nothing. Raises NotFound or FailedPrecondition."""
        incident_id = await self.store.incident_of(assignment_id)
        if incident_id is None:
            raise NotFound("no such assignment")
        known = await self._handle([(incident_id, Acknowledge(assignment_id, by, self._clock.now_ms()))])
        incident, latency_ms = known[incident_id].incident, known[incident_id].latency_ms.get(assignment_id)
        return translate.assignment_message(incident, incident.assignments[assignment_id], latency_ms)

    async def pass_deadlines(self) -> None:
        """Escalates what has waited too long."""
        now_ms = self._clock.now_ms()
        while due := await self.store.due(now_ms):
            await self._handle([(incident, PassDeadline(id_, now_ms, self._within_ms)) for incident, id_ in due])

    async def mark_published(self, steps: Sequence[Numbered], latency_ms: Mapping[str, float]) -> None:
        """Notes what has reached INCIDENTS, and by assignment how long its offer took, milliseconds."""

        async def work() -> None:
            async with self._one_at_a_time:
                await self.store.mark_published([one.sequence for one in steps], latency_ms)
                for assignment in (one.step.assignment for one in steps):
                    id_, known = assignment.assignment_id, self._known.get(assignment.incident_id)
                    if known and id_ in latency_ms:
                        latencies = {**known.latency_ms, id_: latency_ms[id_]}
                        self._known[assignment.incident_id] = _Known(known.incident, latencies)
                self.hub.tell_latencies(latency_ms)

        await retried(lambda: _to_the_end(work()))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self, after_sequence: int) -> AsyncIterator[Numbered]:
        """Steps after a sequence, as Hub.follow. Raises InvalidField for a sequence that this leg never gave."""
        if after_sequence > self._head.id:
            raise InvalidField("after_sequence", f"is beyond this leg's last step, {self._head.id}")
        async for one in self.hub.follow(self.store, after_sequence):
            yield one

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch_deadlines(self) -> None:
        """Escalates what isn't acknowledged in time, for ever. Needs nothing but the leg's own store."""
        while True:
            self._next_due_ms = math.inf  # so that an offer committed from now on wakes this loop
            self._sooner.clear()
            await retried(self.pass_deadlines)
            next_due_ms = await retried(self.store.next_due_ms)
            if next_due_ms is not None:
                self._next_due_ms = min(self._next_due_ms, next_due_ms)
            sleep_s = _LONGEST_SLEEP_S
            if self._next_due_ms < math.inf:
                sleep_s = self._clock.wall_s(int(self._next_due_ms) - self._clock.now_ms())
            # Short sleeps, so that a jump of the system's clock delays nothing for long.
            with suppress(TimeoutError):
                async with asyncio.timeout(min(max(sleep_s, 0.001), _LONGEST_SLEEP_S)):
                    await self._sooner.wait()

    async def _handle(
        self, commands: Sequence[tuple[str, Command]], position: Position | None = None
    ) -> Mapping[str, _Known]:
        return await _to_the_end(self._gather_decide_apply(commands, position))

    async def _gather_decide_apply(
        self, commands: Sequence[tuple[str, Command]], position: Position | None
    ) -> Mapping[str, _Known]:
        async with self._one_at_a_time:

            def work(connection: Connection) -> _Change:
                change = _Change(self._head, self._gather(connection, {id_ for id_, _ in commands}))
                for incident_id, command in commands:
                    _decide(change, incident_id, command)
                if change.links:
                    self._write(connection, change)
                if position:
                    self.store.put_position(connection, position)
                return change

            change = await self.store.transaction(work)
            self._committed(change)
            return change.known

    def _gather(self, connection: Connection, incident_ids: set[str]) -> dict[str, _Known]:
        found = {id_: self._known[id_] for id_ in incident_ids if id_ in self._known}
        missing = [id_ for id_ in incident_ids if id_ not in found]
        if missing:
            events = self.store.events(connection, missing)
            latencies = self.store.latencies(connection, list(events)) if events else {}
            for id_ in missing:
                incident = Incident(id_, self.name)
                for event in events.get(id_, ()):
                    incident = evolve(incident, event)
                mine = {id_: latencies[id_] for id_ in incident.assignments if id_ in latencies}
                found[id_] = _Known(incident, mine)
        return found

    def _write(self, connection: Connection, change: _Change) -> None:
        steps = [
            StepRow(one.sequence, one.step.step_id, one.step.assignment.assignment_id, one.step.SerializeToString())
            for one in change.steps
        ]
        self.store.append(
            connection, change.links, steps, list(change.assignments.values()), list(change.incidents.values())
        )

    def _committed(self, change: _Change) -> None:
        """Takes over what the transaction made durable. No await: readers see all of it or nothing."""
        self._head = change.head
        for incident_id, known in change.known.items():
            self._known[incident_id] = known
            self._known.move_to_end(incident_id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        self.hub.tell(change.steps)
        self.outbox.add(change.steps)
        first_due_ms = min(
            (row.due_ms for row in change.assignments.values() if row.due_ms is not None), default=math.inf
        )
        if first_due_ms < self._next_due_ms:
            self._next_due_ms = first_due_ms
            self._sooner.set()
        again = {link.id for link in change.links if link.kind == OfferedAgain.__name__}
        for one in change.steps:
            assignment = one.step.assignment
            what = "offered_again" if one.sequence in again else State(assignment.state).name.lower()
            logger().info(
                "assignment_" + what,
                assignment_id=assignment.assignment_id,
                incident_id=assignment.incident_id,
                sequence=one.sequence,
            )


@asynccontextmanager
async def open_leg(name: str, store: Store, clock: MeshClock, acknowledge_within_ms: int) -> AsyncIterator[Leg]:
    """The leg as its store left it; at the end a transaction that has begun is finished."""

    def numbered(rows: Iterable[StepRow]) -> list[Numbered]:
        return [Numbered(row.sequence, translate.stored_step(row)) for row in rows]

    unpublished, unanswered = numbered(await store.unpublished()), numbered(await store.unanswered())
    leg = Leg(name, store, clock, acknowledge_within_ms, await store.head(), unpublished, unanswered)
    try:
        yield leg
    finally:
        async with leg._one_at_a_time:
            pass


async def retried(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, tried again until it succeeds or fails for good."""
    while True:
        try:
            return await work()
        except RetryableError as error:
            logger().warning("work_retried", reason=error.reason)
            await asyncio.sleep(RETRY_S)


async def _to_the_end(work: Awaitable[T]) -> T:
    """Runs `work` to its end although the caller may leave: memory and store must not part."""
    return await asyncio.shield(asyncio.ensure_future(work))


def _decide(change: _Change, incident_id: str, command: Command) -> None:
    """Adds what the command leads to."""
    before = change.known[incident_id]
    incident, latency_ms = before.incident, dict(before.latency_ms)
    for event in decide(incident, command):
        incident = evolve(incident, event)
        link = chain.write(change.head, incident_id, event)
        change.head = chain.Head(link.id, link.hash)
        change.links.append(link)
        if isinstance(event, AlertFolded):
            continue
        if isinstance(event, Offered | OfferedAgain):
            latency_ms.pop(event.assignment_id, None)  # what was known is of an earlier offer
        assignment = incident.assignments[event.assignment_id]
        step = translate.step(incident, assignment, event.at_ms, latency_ms.get(event.assignment_id))
        change.steps.append(Numbered(link.id, step))
    if incident is before.incident:
        return
    change.known[incident_id] = _Known(incident, latency_ms)
    for id_, assignment in incident.assignments.items():
        if assignment is not before.incident.assignments.get(id_):
            message = translate.assignment_message(incident, assignment, None)
            change.assignments[id_] = AssignmentRow(
                id_,
                incident_id,
                int(assignment.state),
                assignment.due_ms,
                message.SerializeToString(),
                latency_ms.get(id_),
            )
    if incident.opened_ms is not None:
        change.incidents[incident_id] = IncidentRow(
            incident_id, change.head.id, incident.opened_ms, incident.ended_ms, list(incident.order_ids)
        )
