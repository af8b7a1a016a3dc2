"""What may be asked of a leg, by the stream, by the desks and by time. record.py keeps what comes of it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.rpc.errors import InvalidField, NotFound, PermissionDenied
from services.common.storage.db import once_it_answers
from services.dispatch import metrics
from services.dispatch.absence import store as store_legs
from services.dispatch.absence.store import Looked
from services.dispatch.domain.answers import Acknowledge, Answering
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
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import Place, WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, ShowTargets, TargetUpdate
from services.dispatch.domain.roster import NO_ROSTER, Board
from services.dispatch.leg import translate
from services.dispatch.leg.deadlines import DeadlineWatch, Pulse
from services.dispatch.leg.record import STEP_STATES, Asked, LegRecord, numbered
from services.dispatch.leg.store import AssignmentRow, Store, StreamPosition
from services.dispatch.leg.subscriptions import Numbered
from services.dispatch.retrying import retried
from services.dispatch.roster import store as store_roster
from services.dispatch.roster.availability import AvailabilityView
from services.dispatch.roster.travel import TravelTimes
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

T = TypeVar("T")


class LegService:
    """One leg of the response, over its own store."""

    def __init__(
        self, record: LegRecord, clock: MeshClock, deadlines: Deadlines, boards: AvailabilityView, watch: DeadlineWatch
    ) -> None:
        self.name = record.leg
        self.record = record
        self.store = record.store
        self.watch = watch
        self.last_known_positions = boards.last_known_positions
        self._boards = boards
        self._clock = clock
        self._deadlines = deadlines
        metrics.watch(self.name, watch.overdue_s, record.outbox.age_s, states=STEP_STATES)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fold(self, alerts: Sequence[Alert], position: StreamPosition) -> None:
        """Takes alerts in up to a position, in one transaction; durable when it returns. What was taken before changes nothing."""
        alerts = sorted((alert for alert in alerts if concerns(self.name, alert)), key=_gravest_of_entry_first)
        now_ms = self._clock.now_ms()
        subject_ids = {subject_id for alert in alerts for subject_id in alert.subject_ids}
        await self.record.handle(
            [(alert.incident_id, partial(FoldAlert, alert, now_ms, self._deadlines)) for alert in alerts],
            await self._boards.ahead(subject_ids, now_ms),
            position,
        )

    async def reconcile(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Of alerts that demand a response of this leg, those that its record lacked. They are taken in, and the chain says so."""
        now_ms = self._clock.now_ms()

        def missing(connection: Connection) -> list[Alert]:
            known = self.record.gather(connection, {alert.incident_id for alert in alerts}, {})
            return [alert for alert in alerts if alert.alert_id not in known[alert.incident_id].incident.alert_ids]

        found = await self.store.transaction(missing)
        if found:
            subject_ids = {subject_id for alert in found for subject_id in alert.subject_ids}
            await self.record.handle(
                [
                    (one.incident_id, partial(FoldAlert, one, now_ms, self._deadlines, was_missing=True))
                    for one in sorted(found, key=_gravest_of_entry_first)
                ],
                await self._boards.ahead(subject_ids, now_ms),
            )
        return found

    async def find_steps(self, steps: Sequence[dispatch_pb2.Step]) -> None:
        """Looks whether the record has these steps of this leg, which INCIDENTS holds. Where it lacks some, the chain says so, and the
        next is numbered behind them; else whoever has seen them would take it for older."""
        now_ms = self._clock.now_ms()
        known = await self.store.transaction(partial(self.store.known_steps, step_ids=[step.step_id for step in steps]))
        lost: dict[str, dispatch_pb2.Step] = {}
        for step in sorted(steps, key=lambda step: step.number):
            if step.step_id not in known:
                lost[step.assignment.assignment_id] = step
        await self.record.handle(
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
        known = await self.record.handle(
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

        await self.record.handle([(incident_id, command)], await self._boards.ahead({subject_id}, now_ms))

    async def pass_deadlines(self) -> None:
        """Offers on what has waited too long, a page of it at once: the watch looks again while anything is due."""
        now_ms = self._clock.now_ms()
        if due := await self.store.due(now_ms):
            await self.record.handle(
                [(row.incident_id, partial(PassDeadline, row.assignment_id, now_ms, self._deadlines)) for row in due],
                await self._boards.ahead(_subjects(due), now_ms),
            )

    async def look_for_legs(self) -> None:
        """Tells the desk which other legs have shown no step in time of what an alert demands of them, and which show some again."""
        now_ms = self._clock.now_ms()

        def look(connection: Connection) -> Sequence[Asked]:
            looked = store_legs.look(connection, now_ms)
            return [(one.incident_id, partial(_look_for, one, now_ms)) for one in looked]

        await self.record.handle([], first=look)

    async def follow_targets(self, looks: Sequence[TargetUpdate]) -> None:
        """Chooses anew where a target went far, tells whoever goes, runs the race."""
        now_ms = self._clock.now_ms()
        await self.record.handle(
            [(one.incident_id, partial(Follow, one, now_ms, self._deadlines)) for one in looks],
            await self._boards.ahead({one.subject_id for one in looks}, now_ms),
        )

    async def show_targets(self, incident_id: str, by: str) -> None:
        """Writes down that a desk sees from now on where an incident's targets are. Raises FailedPrecondition."""
        now_ms = self._clock.now_ms()
        await self.record.handle([(incident_id, lambda _: ShowTargets(by, now_ms))])

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

        await self.record.handle([], ahead, first=change)
        return results[0]

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(
        self, after_sequence: int, others: bool = False, new_only: bool = False, canaries: bool = False
    ) -> AsyncIterator[Numbered | dispatch_pb2.Assignment]:
        """Steps after a sequence or from now on, as Hub.follow. Raises InvalidField for a sequence that this leg never gave."""
        if after_sequence > self.record.head.id:
            await self.record.catch_up()  # another process of this leg may have given it
        if after_sequence > self.record.head.id:
            raise InvalidField("after_sequence", f"is beyond this leg's last step, {self.record.head.id}")
        if after_sequence and new_only:
            raise InvalidField("new_only", "doesn't go with after_sequence")
        after_sequence = self.record.head.id if new_only else after_sequence
        async for one in self.record.subscriptions.follow(self.store, after_sequence, others, canaries):
            yield one

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch_deadlines(self) -> None:
        """Does what time asks for, for ever: deadlines first, then other legs. Needs nothing but the leg's own store."""
        await self.watch.run(partial(retried, self.watch.pulse), self._act)

    async def _act(self, pulse: Pulse, now_ms: int) -> None:
        if pulse.head != self.record.head:
            await retried(self.record.catch_up)
        if pulse.due_ms <= now_ms:
            await retried(self.pass_deadlines)
        if pulse.absent or pulse.leg_due_ms <= now_ms:
            await retried(self.look_for_legs)


@asynccontextmanager
async def open_leg(
    name: str, store: Store, clock: MeshClock, deadlines: Deadlines, travel_times: TravelTimes | None = None
) -> AsyncIterator[LegService]:
    """The leg as its store left it, once that answers; at the end a transaction that has begun is finished."""
    await once_it_answers(partial(store.claim, name))
    boards = AvailabilityView(travel_times)
    watch = DeadlineWatch(name, store, clock)
    record = await once_it_answers(partial(_read, name, store, boards, watch))
    try:
        yield LegService(record, clock, deadlines, boards, watch)
    finally:
        await record.finish()


async def _read(name: str, store: Store, boards: AvailabilityView, watch: DeadlineWatch) -> LegRecord:
    await store.transaction(boards.load)
    unpublished, unanswered = numbered(await store.unpublished()), numbered(await store.unanswered())
    return LegRecord(name, store, boards, watch, await store.head(), unpublished, unanswered)


def _gravest_of_entry_first(alert: Alert) -> tuple[int, int, int]:
    """As they are published: who is sent by one alert isn't told first what a lesser one of the same moment says."""
    sequence, ordinal = alert.place
    return sequence, -alert.demand, ordinal


def _look_for(looked: Looked, now_ms: int, _: Board) -> Command:
    return LookForLeg(looked.leg, looked.seen, now_ms)


def _find_steps(assignment_id: str, number: int, now_ms: int, _: Board) -> Command:
    return FindSteps(assignment_id, number, now_ms)


def _subjects(rows: Iterable[AssignmentRow]) -> set[str]:
    return {translate.stored_assignment(row).subject_id for row in rows}
