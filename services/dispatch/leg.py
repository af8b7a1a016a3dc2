"""The one writer of a leg: gathers the incidents that commands are about, decides, applies all in one transaction.

Nothing is sent before it is committed; what is committed goes to the desks at once and to INCIDENTS through the outbox.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeAlias, TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound, PermissionDenied, RetryableError
from services.common.telemetry import logger
from services.dispatch import chain, metrics, store_legs, store_roster, translate
from services.dispatch.boards import Boards
from services.dispatch.change import Change, Known
from services.dispatch.domain.answers import Acknowledge, Answering
from services.dispatch.domain.climbing import Deadlines
from services.dispatch.domain.decisions import (
    Alert,
    Command,
    FindSteps,
    FoldAlert,
    LookForLeg,
    LoseUnit,
    PassDeadline,
    concerns,
)
from services.dispatch.domain.events import (
    Flagged,
    LegAbsent,
    LegReturned,
    OfferedAgain,
    Place,
    Raced,
    Received,
    Retargeted,
    SceneShared,
    StepsLost,
    WarningFlag,
)
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, Look, ShowTargets
from services.dispatch.domain.incident import Incident, State, evolve
from services.dispatch.domain.roster import NO_ROSTER, Board
from services.dispatch.hub import Hub, Numbered
from services.dispatch.outbox import Outbox
from services.dispatch.store import AssignmentRow, Position, StepRow, Store
from services.dispatch.store_legs import Looked
from services.dispatch.travel import TravelTimes
from services.dispatch.watching import Pulse, Watch
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

KNOWN_MAX = 10_000
"""Incidents whose state is kept in memory; the others are folded anew when they are needed."""
RETRY_S = 0.5
ADOPT_AFTER_S = 2.0
"""How long a committed step may be in the store alone before whoever finds it publishes it, and at most twice that."""
_SAID = {
    OfferedAgain.__name__: "offered_again",
    Received.__name__: "received",
    LegAbsent.__name__: "leg_absent",
    LegReturned.__name__: "leg_returned",
    StepsLost.__name__: "steps_lost",
    Flagged.__name__: "flagged",
    Retargeted.__name__: "retargeted",
    Raced.__name__: "raced",
    SceneShared.__name__: "scene_shared",
}
_ALARMS = {LegAbsent.__name__, StepsLost.__name__}
"""What the log calls a step that its state alone doesn't tell."""
T = TypeVar("T")
Asked: TypeAlias = tuple[str, Callable[[Board], Command]]
"""An incident, and what is asked of it once the board is known."""


class Leg:
    """One leg of the response, over its own store."""

    def __init__(
        self,
        name: str,
        store: Store,
        clock: MeshClock,
        deadlines: Deadlines,
        boards: Boards,
        head: chain.Head,
        unpublished: Iterable[Numbered],
        unanswered: Iterable[Numbered],
    ) -> None:
        self.name = name
        self.store = store
        self.hub = Hub(unanswered)
        self.outbox = Outbox(unpublished)
        self.whereabouts = boards.whereabouts
        self._boards = boards
        self._clock = clock
        self._deadlines = deadlines
        self._head = head
        self._known: OrderedDict[str, Known] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self.watch = Watch(name, store, clock)
        metrics.watch(name, self.watch.overdue_s, self.outbox.age_s)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fold(self, alerts: Sequence[Alert], position: Position) -> None:
        """Takes alerts in up to a position, in one transaction; durable when it returns. What was taken before changes nothing."""
        alerts = sorted((alert for alert in alerts if concerns(self.name, alert)), key=lambda alert: alert.place)
        now_ms = self._clock.now_ms()
        subject_ids = {subject_id for alert in alerts for subject_id in alert.subject_ids}
        await self._handle(
            [(one.incident_id, partial(FoldAlert, one, now_ms, self._deadlines)) for one in alerts],
            await self._boards.ahead(subject_ids, now_ms),
            position,
        )

    async def reconcile(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Of alerts that demand a response of this leg, those that its record lacked. They are taken in, and the chain says so."""
        now_ms = self._clock.now_ms()

        def missing(connection: Connection) -> list[Alert]:
            known = self._gather(connection, {one.incident_id for one in alerts}, {})
            return [one for one in alerts if one.alert_id not in known[one.incident_id].incident.alert_ids]

        found = await self.store.transaction(missing)
        if found:
            subject_ids = {subject_id for alert in found for subject_id in alert.subject_ids}
            await self._handle(
                [
                    (one.incident_id, partial(FoldAlert, one, now_ms, self._deadlines, was_missing=True))
                    for one in sorted(found, key=lambda alert: alert.place)
                ],
                await self._boards.ahead(subject_ids, now_ms),
            )
        return found

    async def find_steps(self, steps: Sequence[dispatch_pb2.Step]) -> None:
        """Looks whether the record has these steps of this leg, which INCIDENTS holds. Where it lacks some, the chain says so, and the
        next is numbered behind them; else whoever has seen them would take it for older."""
        now_ms = self._clock.now_ms()
        known = await self.store.transaction(partial(self.store.known_steps, step_ids=[one.step_id for one in steps]))
        lost: dict[str, dispatch_pb2.Step] = {}
        for step in sorted(steps, key=lambda one: one.number):
            if step.step_id not in known:
                lost[step.assignment.assignment_id] = step
        await self._handle(
            [
                (step.assignment.incident_id, partial(_find_steps, id_, step.number, now_ms))
                for id_, step in lost.items()
            ]
        )

    async def answer(
        self, assignment_id: str, say: Callable[[int, Deadlines, Board], Answering], canary: bool = False
    ) -> dispatch_pb2.Assignment:
        """What the desk says of an assignment, or the watch of a canary; saying it again changes nothing.

        Raises NotFound, FailedPrecondition, or PermissionDenied where it is the other's.
        """
        row = await self.store.assignment(assignment_id)
        if row is None:
            raise NotFound("no such assignment")
        if (translate.stored_assignment(row).exercise == exercise_pb2.CANARY) is not canary:
            raise PermissionDenied("the watch answers canaries, and nobody else does")
        incident_id, now_ms = row.incident_id, self._clock.now_ms()
        known = await self._handle(
            [(incident_id, partial(say, now_ms, self._deadlines))], await self._boards.ahead(_subjects([row]), now_ms)
        )
        incident, latency_ms = known[incident_id].incident, known[incident_id].latency_ms.get(assignment_id)
        return translate.assignment_message(incident, incident.assignments[assignment_id], latency_ms)

    async def acknowledge(
        self, assignment_id: str, by: str, offer_number: int = 0, canary: bool = False
    ) -> dispatch_pb2.Assignment:
        """A person takes an assignment, as `answer`: the offer of that number, or the present one."""
        return await self.answer(
            assignment_id,
            lambda now_ms, deadlines, _: Acknowledge(assignment_id, by, now_ms, deadlines, offer_number),
            canary,
        )

    async def flag(
        self,
        incident_id: str,
        subject_id: str,
        flag: WarningFlag,
        alert_id: str,
        place: Place,
        order_id: str,
        since_ms: int,
    ) -> None:
        """Notes what the police must know of a protected person, as Flag tells it; again, it changes nothing. Raises NotFound."""
        now_ms, deadlines = self._clock.now_ms(), self._deadlines

        def command(board: Board) -> Flag:
            return Flag(subject_id, flag, since_ms, alert_id, place, order_id, now_ms, deadlines, board)

        await self._handle([(incident_id, command)], await self._boards.ahead({subject_id}, now_ms))

    async def pass_deadlines(self) -> None:
        """Offers on what has waited too long."""
        now_ms = self._clock.now_ms()
        while due := await self.store.due(now_ms):
            await self._handle(
                [(row.incident_id, partial(PassDeadline, row.assignment_id, now_ms, self._deadlines)) for row in due],
                await self._boards.ahead(_subjects(due), now_ms),
            )

    async def look_for_legs(self) -> None:
        """Tells the desk which other legs have shown no step in time of what an alert demands of them, and which show some again."""
        now_ms = self._clock.now_ms()

        def look(connection: Connection) -> Sequence[Asked]:
            looked = store_legs.look(connection, now_ms)
            return [(one.incident_id, partial(_look_for, one, now_ms)) for one in looked]

        await self._handle([], first=look)

    async def open_incidents(self) -> list[Incident]:
        """Incidents in which somebody has something to do."""

        def read(connection: Connection) -> tuple[dict[str, Known], bool]:
            up_to_date = self.store.head_within(connection) == self._head
            ids = self.store.open_incidents(connection)
            return self._gather(connection, ids, self._known if up_to_date else {}), up_to_date

        async with self._one_at_a_time:
            known, up_to_date = await self.store.transaction(read)
            if up_to_date:
                self._remember(known)
        return [one.incident for one in known.values()]

    async def follow_targets(self, looks: Sequence[Look]) -> None:
        """Chooses anew where a target went far, tells whoever goes, runs the race."""
        now_ms = self._clock.now_ms()
        await self._handle(
            [(one.incident_id, partial(Follow, one, now_ms, self._deadlines)) for one in looks],
            await self._boards.ahead({one.subject_id for one in looks}, now_ms),
        )

    async def show_targets(self, incident_id: str, by: str) -> None:
        """Writes down that a desk sees from now on where an incident's targets are. Raises FailedPrecondition."""
        now_ms = self._clock.now_ms()
        await self._handle([(incident_id, lambda _: ShowTargets(by, now_ms))])

    async def change_roster(self, work: Callable[[Connection], T], going: Sequence[str] = ()) -> T:
        """Changes the roster; what a unit had that is gone with it is offered on in the same transaction.

        `going` names the units that may be gone, so that where they had to go is known before.
        """
        now_ms = self._clock.now_ms()
        ahead = NO_ROSTER
        if going:
            to = await self.store.transaction(partial(store_roster.destinations, unit_ids=going))
            ahead = await self._boards.ahead(to, now_ms)
        results: list[T] = []

        def change(connection: Connection) -> Sequence[Asked]:
            results.append(work(connection))
            return [
                (incident_id, partial(LoseUnit, assignment_id, now_ms, self._deadlines))
                for assignment_id, incident_id in self._boards.gone(connection)
            ]

        await self._handle([], ahead, first=change)
        return results[0]

    async def mark_published(self, steps: Sequence[Numbered], latency_ms: Mapping[str, float]) -> None:
        """Notes what has reached INCIDENTS, and by assignment how long its offer took, milliseconds."""

        async def work() -> None:
            async with self._one_at_a_time:
                await self.store.mark_published([one.sequence for one in steps], latency_ms)
                for assignment in (one.step.assignment for one in steps):
                    id_, known = assignment.assignment_id, self._known.get(assignment.incident_id)
                    if known and id_ in latency_ms:
                        latencies = {**known.latency_ms, id_: latency_ms[id_]}
                        self._known[assignment.incident_id] = Known(known.incident, latencies)
                self.hub.tell_latencies(latency_ms)

        await retried(lambda: _to_the_end(work()))

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(
        self, after_sequence: int, others: bool = False, new_only: bool = False, canaries: bool = False
    ) -> AsyncIterator[Numbered | dispatch_pb2.Assignment]:
        """Steps after a sequence or from now on, as Hub.follow. Raises InvalidField for a sequence that this leg never gave."""
        if after_sequence > self._head.id:
            await self.catch_up()  # another process of this leg may have given it
        if after_sequence > self._head.id:
            raise InvalidField("after_sequence", f"is beyond this leg's last step, {self._head.id}")
        if after_sequence and new_only:
            raise InvalidField("new_only", "doesn't go with after_sequence")
        after_sequence = self._head.id if new_only else after_sequence
        async for one in self.hub.follow(self.store, after_sequence, others, canaries):
            yield one

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch_deadlines(self) -> None:
        """Does what time asks for, for ever: deadlines first, then other legs. Needs nothing but the leg's own store."""
        await self.watch.run(partial(retried, self.watch.pulse), self._act)

    async def _act(self, pulse: Pulse, now_ms: int) -> None:
        if pulse.head != self._head:
            await retried(self.catch_up)
        if pulse.due_ms <= now_ms:
            await retried(self.pass_deadlines)
        if pulse.absent or pulse.leg_due_ms <= now_ms:
            await retried(self.look_for_legs)

    async def catch_up(self) -> None:
        """Takes over what another process of this leg has committed, and tells it to the desks that are here."""
        if await self.store.head() != self._head:
            await self._handle([])

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

    async def _handle(
        self,
        asked: Sequence[Asked],
        ahead: Board = NO_ROSTER,
        position: Position | None = None,
        first: Callable[[Connection], Sequence[Asked]] | None = None,
    ) -> Mapping[str, Known]:
        return await _to_the_end(self._gather_decide_apply(asked, ahead, position, first))

    async def _gather_decide_apply(
        self,
        asked: Sequence[Asked],
        ahead: Board,
        position: Position | None,
        first: Callable[[Connection], Sequence[Asked]] | None,
    ) -> Mapping[str, Known]:
        async with self._one_at_a_time:

            def work(connection: Connection) -> Change:
                every = [*asked, *first(connection)] if first else asked
                change = self._begin(connection, {id_ for id_, _ in every})
                board, change.engaged = self._boards.within(connection, ahead)
                for incident_id, command in every:
                    change.decide(incident_id, command(board))
                if change.links:
                    self._write(connection, change)
                if position:
                    self.store.put_position(connection, position)
                return change

            try:
                change = await self.store.transaction(work)
            except BaseException:
                self._boards.forget()
                raise
            self._committed(change)
            return change.known

    def _begin(self, connection: Connection, incident_ids: set[str]) -> Change:
        """What is committed. Where another process of this leg wrote meanwhile, memory is behind, and the store is read instead.

        So a deadline fires once: whoever comes second finds what the first made of it.
        """
        head = self.store.head_within(connection)
        if head == self._head:
            return Change(head, self._gather(connection, incident_ids, self._known), {})
        if head.id <= self._head.id:
            # Desks have been told steps that are no longer there: only a start from nothing is right.
            raise FailedPrecondition("the leg's database went back: an older copy was restored while it ran")
        missed = numbered(self.store.steps_within(connection, self._head.id))
        return Change(head, self._gather(connection, incident_ids, {}), {}, True, missed)

    def _gather(
        self, connection: Connection, incident_ids: set[str], remembered: Mapping[str, Known]
    ) -> dict[str, Known]:
        found = {id_: remembered[id_] for id_ in incident_ids if id_ in remembered}
        missing = [id_ for id_ in incident_ids if id_ not in found]
        if missing:
            events = self.store.events(connection, missing)
            latencies = self.store.latencies(connection, list(events)) if events else {}
            for id_ in missing:
                incident = Incident(id_, self.name)
                for event in events.get(id_, ()):
                    incident = evolve(incident, event)
                mine = {id_: latencies[id_] for id_ in incident.assignments if id_ in latencies}
                found[id_] = Known(incident, mine)
        return found

    def _write(self, connection: Connection, change: Change) -> None:
        steps = [
            StepRow(one.sequence, one.step.step_id, one.step.assignment.assignment_id, one.step.SerializeToString())
            for one in change.steps
        ]
        self.store.append(
            connection, change.links, steps, list(change.assignments.values()), list(change.incidents.values())
        )
        if change.awaited:
            store_legs.await_legs(connection, change.awaited)

    def _remember(self, known: Mapping[str, Known]) -> None:
        for incident_id, one in known.items():
            self._known[incident_id] = one
            self._known.move_to_end(incident_id)
        while len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)

    def _committed(self, change: Change) -> None:
        """Takes over what the transaction made durable. No await: readers see all of it or nothing."""
        if change.behind:
            self._known.clear()
            self.hub.tell(change.missed)
        self._head = change.head
        self._remember(change.known)
        self.hub.tell(change.steps)
        self.outbox.add(change.steps)
        dues_ms = [row.due_ms for row in change.assignments.values() if row.due_ms is not None]
        self.watch.due(min([*dues_ms, *(row.due_ms for row in change.awaited)], default=math.inf))
        kinds = {link.id: link.kind for link in change.links}
        for one in change.steps:
            assignment, kind = one.step.assignment, kinds[one.sequence]
            state = _SAID.get(kind) or State(assignment.state).name.lower()
            metrics.count(self.name, state, assignment)
            if assignment.exercise == exercise_pb2.CANARY:
                continue  # who looks for what happened doesn't look for these
            logger().log(
                logging.CRITICAL if kind in _ALARMS else logging.INFO,
                f"assignment_{state}",
                assignment_id=assignment.assignment_id,
                incident_id=assignment.incident_id,
                sequence=one.sequence,
            )


@asynccontextmanager
async def open_leg(
    name: str, store: Store, clock: MeshClock, deadlines: Deadlines, travel_times: TravelTimes | None = None
) -> AsyncIterator[Leg]:
    """The leg as its store left it; at the end a transaction that has begun is finished."""
    await store.claim(name)
    boards = Boards(travel_times)
    await store.transaction(boards.load)
    unpublished, unanswered = numbered(await store.unpublished()), numbered(await store.unanswered())
    leg = Leg(name, store, clock, deadlines, boards, await store.head(), unpublished, unanswered)
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


def _look_for(looked: Looked, now_ms: int, _: Board) -> Command:
    return LookForLeg(looked.leg, looked.seen, now_ms)


def _find_steps(assignment_id: str, number: int, now_ms: int, _: Board) -> Command:
    return FindSteps(assignment_id, number, now_ms)


def numbered(rows: Iterable[StepRow]) -> list[Numbered]:
    """Stored steps with their places."""
    return [Numbered(row.sequence, translate.stored_step(row)) for row in rows]


def _subjects(rows: Iterable[AssignmentRow]) -> set[str]:
    return {translate.stored_assignment(row).subject_id for row in rows}
