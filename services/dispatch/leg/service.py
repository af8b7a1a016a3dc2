"""Service of one leg: handles alerts of the stream, requests of desks, and deadlines. record.py keeps the results."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.rpc.errors import InvalidField, NotFound, PermissionDenied
from services.common.storage.db import retry_until_available
from services.dispatch import metrics
from services.dispatch.absence import store as store_legs
from services.dispatch.absence.store import AbsenceChange
from services.dispatch.domain.answers import Acknowledge, Answering
from services.dispatch.domain.decisions import (
    Alert,
    Command,
    CompareSteps,
    FoldAlert,
    LoseUnit,
    PassDeadline,
    ReportLeg,
    concerns,
)
from services.dispatch.domain.enums import WarningFlag
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import LogPosition
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, ShowTargets, TargetUpdate
from services.dispatch.domain.roster import NO_ROSTER, Board
from services.dispatch.leg import translate
from services.dispatch.leg.deadlines import DeadlineWatch, Pulse
from services.dispatch.leg.record import STEP_STATES, IncidentCommand, LegRecord, numbered
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
        self,
        record: LegRecord,
        clock: MeshClock,
        deadlines: Deadlines,
        *,
        availability: AvailabilityView,
        watch: DeadlineWatch,
    ) -> None:
        self.name = record.leg
        self.record = record
        self.store = record.store
        self.watch = watch
        self.last_known_positions = availability.last_known_positions
        self._availability = availability
        self._clock = clock
        self._deadlines = deadlines
        metrics.watch(self.name, watch.overdue_s, record.outbox.age_s, states=STEP_STATES)

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def fold(self, alerts: Sequence[Alert], position: StreamPosition) -> None:
        """Applies alerts up to a stream position in one transaction, durable on return. A repeated alert changes nothing."""
        alerts = sorted((alert for alert in alerts if concerns(self.name, alert)), key=_gravest_of_entry_first)
        now_ms = self._clock.now_ms()
        subject_ids = {subject_id for alert in alerts for subject_id in alert.subject_ids}
        await self.record.handle(
            [(alert.incident_id, partial(FoldAlert, alert, now_ms, self._deadlines)) for alert in alerts],
            await self._availability.ahead(subject_ids, now_ms),
            position,
        )

    async def reconcile(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Applies the alerts that the record lacks, among alerts that demand this leg's response, and returns them.

        The chain records each of them as AlertWasMissing.
        """
        now_ms = self._clock.now_ms()

        def read_missing(connection: Connection) -> list[Alert]:
            known = self.record.gather(connection, {alert.incident_id for alert in alerts}, {})
            return [alert for alert in alerts if alert.alert_id not in known[alert.incident_id].incident.alert_ids]

        missing = await self.store.transaction(read_missing)
        if missing:
            subject_ids = {subject_id for alert in missing for subject_id in alert.subject_ids}
            await self.record.handle(
                [
                    (alert.incident_id, partial(FoldAlert, alert, now_ms, self._deadlines, was_missing=True))
                    for alert in sorted(missing, key=_gravest_of_entry_first)
                ],
                await self._availability.ahead(subject_ids, now_ms),
            )
        return missing

    async def compare_steps(self, steps: Sequence[dispatch_pb2.Step]) -> None:
        """Checks that the record has these steps of this leg, which INCIDENTS holds.

        Where it lacks some, the chain records StepsLost, and the next step is numbered after them. Otherwise readers that have seen
        the lost steps would ignore the next one as outdated.
        """
        now_ms = self._clock.now_ms()
        known = await self.store.transaction(partial(self.store.known_steps, step_ids=[step.step_id for step in steps]))
        lost: dict[str, dispatch_pb2.Step] = {}
        for step in sorted(steps, key=lambda step: step.number):
            if step.step_id not in known:
                lost[step.assignment.assignment_id] = step
        await self.record.handle(
            [
                (step.assignment.incident_id, partial(_compare_steps, CompareSteps(id_, step.number, now_ms)))
                for id_, step in lost.items()
            ]
        )

    async def answer(
        self, assignment_id: str, command: Callable[[int, Deadlines, Board], Answering], canary: bool = False
    ) -> dispatch_pb2.Assignment:
        """Applies the desk's answer to an assignment, or the watch's answer to a canary. A repeated answer changes nothing.

        Raises NotFound, FailedPrecondition, or PermissionDenied where the desk answers a canary or the watch another assignment.
        """
        row = await self.store.assignment(assignment_id)
        if row is None:
            raise NotFound(f"no assignment {assignment_id} in the {self.name} leg")
        if (translate.stored_assignment(row).exercise == exercise_pb2.CANARY) is not canary:
            raise PermissionDenied("only the watch answers canaries, and it answers nothing else")
        incident_id, now_ms = row.incident_id, self._clock.now_ms()
        known = await self.record.handle(
            [(incident_id, partial(command, now_ms, self._deadlines))],
            await self._availability.ahead(_subjects([row]), now_ms),
        )
        incident, latency_ms = known[incident_id].incident, known[incident_id].latency_ms.get(assignment_id)
        return translate.assignment_message(incident, incident.assignments[assignment_id], latency_ms)

    async def acknowledge(
        self, assignment_id: str, by: str, offer_number: int = 0, *, canary: bool = False
    ) -> dispatch_pb2.Assignment:
        """Applies the acknowledgement of an offer by its number, or of the present offer for 0. Raises as `answer`."""
        return await self.answer(
            assignment_id,
            lambda now_ms, deadlines, _: Acknowledge(
                assignment_id=assignment_id, by=by, now_ms=now_ms, deadlines=deadlines, offer_number=offer_number
            ),
            canary,
        )

    async def flag(
        self,
        incident_id: str,
        subject_id: str,
        flag: WarningFlag,
        *,
        alert_id: str,
        place: LogPosition,
        order_id: str,
        since_ms: int,
    ) -> None:
        """Records a flag of a protected person, as the command Flag. A repeated flag changes nothing. Raises NotFound."""
        now_ms, deadlines = self._clock.now_ms(), self._deadlines

        def command(board: Board) -> Flag:
            return Flag(
                subject_id=subject_id,
                flag=flag,
                flagged_ms=since_ms,
                alert_id=alert_id,
                place=place,
                order_id=order_id,
                now_ms=now_ms,
                deadlines=deadlines,
                board=board,
            )

        await self.record.handle([(incident_id, command)], await self._availability.ahead({subject_id}, now_ms))

    async def pass_deadlines(self) -> None:
        """Escalates a page of assignments whose deadlines have passed. The watch calls it until nothing is due."""
        now_ms = self._clock.now_ms()
        if due := await self.store.due(now_ms):
            await self.record.handle(
                [(row.incident_id, partial(PassDeadline, row.assignment_id, now_ms, self._deadlines)) for row in due],
                await self._availability.ahead(_subjects(due), now_ms),
            )

    async def check_other_legs(self) -> None:
        """Notifies the desk of other legs that showed no step in time for an alert that demands them, and of those that returned."""
        now_ms = self._clock.now_ms()

        def check(connection: Connection) -> Sequence[IncidentCommand]:
            changes = store_legs.check(connection, now_ms)
            return [(change.incident_id, partial(_report_leg, change, now_ms)) for change in changes]

        await self.record.handle([], first=check)

    async def follow_targets(self, updates: Sequence[TargetUpdate]) -> None:
        """Applies updates of targets: chooses a nearer unit where a target moved far, notifies the responder, updates the race."""
        now_ms = self._clock.now_ms()
        await self.record.handle(
            [(update.incident_id, partial(Follow, update, now_ms, self._deadlines)) for update in updates],
            await self._availability.ahead({update.subject_id for update in updates}, now_ms),
        )

    async def show_targets(self, incident_id: str, by: str) -> None:
        """Records that a desk receives live positions of an incident's targets from now on. Raises FailedPrecondition."""
        now_ms = self._clock.now_ms()
        await self.record.handle([(incident_id, lambda _: ShowTargets(by, now_ms))])

    async def change_roster(self, work: Callable[[Connection], T], going: Sequence[str] = ()) -> T:
        """Changes the roster with `work`, and escalates the assignments of units that are gone in the same transaction.

        `going` names the units that may be gone, so that the positions of their destinations are looked up before the transaction.
        """
        now_ms = self._clock.now_ms()
        ahead = NO_ROSTER
        if going:
            to = await self.store.transaction(partial(store_roster.destinations, unit_ids=going))
            ahead = await self._availability.ahead(to, now_ms)
        results: list[T] = []

        def change(connection: Connection) -> Sequence[IncidentCommand]:
            results.append(work(connection))
            return [
                (incident_id, partial(LoseUnit, assignment_id, now_ms, self._deadlines))
                for assignment_id, incident_id in self._availability.gone(connection)
            ]

        await self.record.handle([], ahead, first=change)
        return results[0]

    # ── questions ────────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(
        self, after_sequence: int, others: bool = False, new_only: bool = False, *, canaries: bool = False
    ) -> AsyncIterator[Numbered | dispatch_pb2.Assignment]:
        """Steps after a sequence or only new ones, as Subscriptions.follow. Raises InvalidField for a sequence after the last step."""
        if after_sequence > self.record.head.id:
            await self.record.catch_up()  # another process of this leg may have stored that step
        if after_sequence > self.record.head.id:
            raise InvalidField("after_sequence", f"is beyond this leg's last step, {self.record.head.id}")
        if after_sequence and new_only:
            raise InvalidField("new_only", "doesn't go with after_sequence: set one of the two")
        after_sequence = self.record.head.id if new_only else after_sequence
        async for item in self.record.subscriptions.follow(self.store, after_sequence, others, canaries=canaries):
            yield item

    # ── work ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def watch_deadlines(self) -> None:
        """Handles deadlines, then absent legs, until cancelled. Needs only the leg's own store."""
        await self.watch.run(partial(retried, self.watch.pulse), self._act)

    async def _act(self, pulse: Pulse, now_ms: int) -> None:
        if pulse.head != self.record.head:
            await retried(self.record.catch_up)
        if pulse.due_ms <= now_ms:
            await retried(self.pass_deadlines)
        if pulse.absent or pulse.leg_due_ms <= now_ms:
            await retried(self.check_other_legs)


@asynccontextmanager
async def open_leg(
    name: str, store: Store, clock: MeshClock, *, deadlines: Deadlines, travel_times: TravelTimes | None = None
) -> AsyncIterator[LegService]:
    """Opens a leg with the state of its store, once the store answers. On exit a running transaction is finished."""
    await retry_until_available(partial(store.claim, name))
    availability = AvailabilityView(travel_times)
    watch = DeadlineWatch(name, store, clock)
    record = await retry_until_available(partial(_read, name, store, availability, watch=watch))
    try:
        yield LegService(record=record, clock=clock, deadlines=deadlines, availability=availability, watch=watch)
    finally:
        await record.finish()


async def _read(name: str, store: Store, availability: AvailabilityView, *, watch: DeadlineWatch) -> LegRecord:
    await store.transaction(availability.load)
    unpublished, unanswered = numbered(await store.unpublished()), numbered(await store.unanswered())
    return LegRecord(
        leg=name,
        store=store,
        availability=availability,
        watch=watch,
        head=await store.head(),
        unpublished=unpublished,
        unanswered=unanswered,
    )


def _gravest_of_entry_first(alert: Alert) -> tuple[int, int, int]:
    """Sort key: by log entry, then gravest first as they are published, so that a lesser notice doesn't precede an offer."""
    sequence, ordinal = alert.place
    return sequence, -alert.demand, ordinal


def _report_leg(change: AbsenceChange, now_ms: int, _: Board) -> Command:
    return ReportLeg(change.leg, change.returned, now_ms)


def _compare_steps(command: CompareSteps, _: Board) -> Command:
    return command


def _subjects(rows: Iterable[AssignmentRow]) -> set[str]:
    return {translate.stored_assignment(row).subject_id for row in rows}
