"""Service of one leg: handles alerts of the stream, requests of desks, and deadlines. record.py keeps the results."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeAlias, TypeVar

from sqlalchemy import Connection

from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, PermissionDenied
from services.common.retrying import retried
from services.common.rpc.history import HistoryBudget
from services.common.storage.db import retry_until_available
from services.dispatch.domain.answers import Acknowledge, Answering, Sending, SendUnit
from services.dispatch.domain.assignment import Assignment
from services.dispatch.domain.contact import Confirm, RecordCall
from services.dispatch.domain.decisions import CompareSteps, FoldAlert, ReportLeg, concerns
from services.dispatch.domain.enums import Exercise
from services.dispatch.domain.escalation import Deadlines, LoseUnit, PassDeadline, Situation
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, ShowTargets, TargetUpdate, may_change
from services.dispatch.domain.incident import Alert, Incident
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import roster, translate
from services.dispatch.leg.availability import AvailabilityView, TravelTimes
from services.dispatch.leg.change import CommittedIncident, IncidentCommand
from services.dispatch.leg.deadlines import AbsenceCheck, DeadlineWatch, Pulse
from services.dispatch.leg.feed import DeskItem, Wants, is_no_canary
from services.dispatch.leg.record import STEP_STATES, LegRecord
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import AssignmentRow, StepRow, StreamPosition
from services.dispatch.leg.translate import numbered
from services.dispatch.metrics import DispatchMetrics
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

DeskAnswer: TypeAlias = Answering | Sending | RecordCall
"""Command by which a desk answers an assignment, sends a unit or records a call."""
T = TypeVar("T")


class _Destination(NamedTuple):
    """Facts about an assignment that never change."""

    incident_id: str
    subject_id: str
    is_canary: bool


class DecisionFacts(NamedTuple):
    """An assignment and the situation around it."""

    incident: Incident
    assignment: Assignment
    situation: Situation
    """With the roster, the units' engagements and the travel times of all units."""


class LegService:
    """One leg of the response, with a store of its own."""

    def __init__(
        self,
        record: LegRecord,
        clock: MeshClock,
        deadlines: Deadlines,
        *,
        availability: AvailabilityView,
        watch: DeadlineWatch,
        metrics: DispatchMetrics,
    ) -> None:
        self.name = record.leg
        self.record = record
        self.store = record.store
        self.watch = watch
        self.metrics = metrics
        self.history = HistoryBudget(record.gate)
        self.last_known_positions = availability.last_known_positions
        self.unit_report = availability.report_of
        self.availability = availability
        self._clock, self._deadlines = clock, deadlines
        self._absence = AbsenceCheck()
        self._is_withheld: Callable[[dispatch_pb2.Assignment], bool] = lambda _: False
        metrics.watch(self.name, watch.overdue_s, record.outbox.age_s, states=STEP_STATES)

    def withhold(self, is_withheld: Callable[[dispatch_pb2.Assignment], bool]) -> None:
        """Sets which assignments the leg's gateways and receivers don't get: they would reach a person who has called in silence."""
        self._is_withheld = is_withheld

    def is_outward(self, assignment: dispatch_pb2.Assignment) -> bool:
        """Whether the leg's desk and receivers get an assignment. Those for the watch are never for them."""
        return is_no_canary(assignment) and not self._is_withheld(assignment)

    async def fold(self, alerts: Sequence[Alert], position: StreamPosition) -> None:
        """Applies alerts up to a stream position in one transaction, durable on return. A repeated alert changes nothing."""
        alerts = sorted((each for each in alerts if concerns(self.name, each)), key=_gravest_of_entry_first)
        commands = [IncidentCommand(alert.incident_id, FoldAlert(alert)) for alert in alerts]
        await self.record.handle(commands, await self._situation(_destinations(alerts)), position=position)

    async def reconcile(self, alerts: Sequence[Alert]) -> list[Alert]:
        """Applies the alerts that the record lacks, among alerts that demand this leg's response, and returns them.

        The chain records each of them as AlertWasMissing.
        """
        # The memory holds what was committed. Folding the other incidents takes long, so no offer may wait for it.
        unknown = [a for a in alerts if not self.record.memory.has_alert(a.incident_id, a.alert_id)]

        def read_missing(connection: Connection) -> list[Alert]:
            known = self.record.gather(connection, {alert.incident_id for alert in unknown}, {})
            return [alert for alert in unknown if alert.alert_id not in known[alert.incident_id].incident.alerts]

        missing = await self.store.reading_history(read_missing) if unknown else []
        if missing:
            ordered = sorted(missing, key=_gravest_of_entry_first)
            commands = [IncidentCommand(alert.incident_id, FoldAlert(alert, was_missing=True)) for alert in ordered]
            await self.record.handle(commands, await self._situation(_destinations(missing)))
        return missing

    async def compare_steps(self, steps: Sequence[dispatch_pb2.Step]) -> None:
        """Checks that the record has these steps of this leg, which INCIDENTS holds.

        If the record lacks some, the chain records StepsLost, and the next step is numbered after them. Otherwise readers that have
        seen the lost steps would ignore the next step as outdated.
        """
        known = await self.store.transaction(partial(self.store.known_steps, step_ids=[step.step_id for step in steps]))
        lost: dict[str, dispatch_pb2.Step] = {}
        for step in sorted(steps, key=lambda step: step.number):
            if step.step_id not in known:
                lost[step.assignment.assignment_id] = step
        commands = [
            IncidentCommand(step.assignment.incident_id, CompareSteps(id_, step.number)) for id_, step in lost.items()
        ]
        await self.record.handle(commands, self.now())

    async def answer(self, command: DeskAnswer, canary: bool = False) -> dispatch_pb2.Assignment:
        """Applies the desk's answer to an assignment, or the watch's answer to a canary. A repeated answer changes nothing.

        Raises NotFound or FailedPrecondition. Raises PermissionDenied if the desk answers a canary, or the watch anything else.
        """
        assignment_id = command.assignment_id
        known = self.record.memory.assignment(assignment_id)
        if known is None:
            return await self._answer(command, await self._stored_destination(assignment_id), canary)
        incident, assignment = known
        destination = _Destination(incident.incident_id, assignment.subject_id, incident.exercise is Exercise.CANARY)
        return await self._answer(command, destination, canary)

    async def _stored_destination(self, assignment_id: str) -> _Destination:
        row = await self.store.assignment(assignment_id)
        if row is None:
            raise NotFound(f"no assignment {assignment_id} in the {self.name} leg")
        stored = translate.stored_assignment(row)
        return _Destination(row.incident_id, stored.subject_id, stored.exercise == exercise_pb2.CANARY)

    async def _answer(self, command: DeskAnswer, destination: _Destination, canary: bool) -> dispatch_pb2.Assignment:
        if destination.is_canary is not canary:
            raise PermissionDenied("only the watch answers canaries, and it answers nothing else")
        unit_ids = (command.unit_id,) if isinstance(command, SendUnit) else ()
        situation = await self._situation({destination.subject_id}, unit_ids=unit_ids)
        incident_id = destination.incident_id
        committed = await self.record.handle([IncidentCommand(incident_id, command)], situation)
        return _message(committed[incident_id], command.assignment_id)

    async def acknowledge(
        self, assignment_id: str, by: str, offer_number: int = 0, *, unit_id: str = "", canary: bool = False
    ) -> dispatch_pb2.Assignment:
        """Applies the acknowledgement of the offer `offer_number`, by a unit or the desk; 0 stands for the present offer. Raises the
        errors of `answer`."""
        return await self.answer(Acknowledge(assignment_id, by, offer_number, unit_id=unit_id), canary)

    async def scene(self, assignment_id: str) -> DecisionFacts:
        """An assignment with all units that can go to its destination. Raises NotFound."""
        await self.catch_up()
        known = self.record.memory.assignment(assignment_id) or await self._stored(assignment_id)
        if known is None or known[0].exercise is Exercise.CANARY:
            raise NotFound(f"assignment_id: no assignment {assignment_id} in the {self.name} leg")
        incident, assignment = known

        def read(connection: Connection) -> Mapping[str, Mapping[str, str]]:
            self.availability.load(connection)
            return roster.read_engaged(connection)

        engaged = await self.store.transaction(read)
        situation = await self._situation({assignment.subject_id}, unit_ids=self.availability.unit_ids())
        return DecisionFacts(incident, assignment, replace(situation, board=replace(situation.board, engaged=engaged)))

    async def _stored(self, assignment_id: str) -> tuple[Incident, Assignment] | None:
        """An assignment that isn't in memory, folded from its events; None if it is unknown."""
        row = await self.store.assignment(assignment_id)
        if row is None:
            return None
        found = await self.store.reading_history(
            lambda connection: self.record.gather(connection, {row.incident_id}, {})
        )
        incident = found[row.incident_id].incident
        return incident, incident.assignments[assignment_id]

    async def confirm(self, incident_id: str, command: Confirm) -> None:
        """Records what became of a message to the wearer. A repeated or outdated confirmation changes nothing."""
        await retried(partial(self.record.handle, [IncidentCommand(incident_id, command)], self.now()))

    async def flag(self, incident_id: str, flag: Flag) -> None:
        """Records a flag of a protected person. A repeated flag changes nothing. Raises NotFound."""
        situation = await self._situation({flag.subject_id})
        await self.record.handle([IncidentCommand(incident_id, flag)], situation)

    async def pass_deadlines(self) -> None:
        """Escalates a page of assignments whose deadlines have passed. DeadlineWatch repeats the call until nothing is due."""
        now = self.now()
        if due := await self.store.due(now.now_ms):
            commands = [IncidentCommand(row.incident_id, PassDeadline(row.assignment_id)) for row in due]
            await self.record.handle(commands, await self._situation(_subjects(due), now))

    async def check_other_legs(self) -> None:
        """Notifies the desk of each other leg that showed no step in time although it must respond, and of each that returned."""
        now = self.now()

        def check(connection: Connection) -> Sequence[IncidentCommand]:
            changes = self._absence.check(connection, now.now_ms)
            return [IncidentCommand(change.incident_id, ReportLeg(change.leg, change.returned)) for change in changes]

        await self.record.handle([], now, first=check)

    async def follow_targets(self, updates: Sequence[TargetUpdate]) -> None:
        """Applies updates of targets: if a target moved far, chooses a nearer unit or notifies the responder. Updates the races."""
        situation = await self._situation({update.subject_id for update in updates})
        if commands := _needed(updates, self.record, situation):
            await self.record.handle(commands, situation)

    async def show_targets(self, incident_ids: Sequence[str], by: str) -> set[str]:
        """Records that a desk receives live positions of these incidents' targets from now on. Returns those that are open."""

        def choose(connection: Connection) -> Sequence[IncidentCommand]:
            shown = self.store.open_incidents(connection).intersection(incident_ids)
            return [IncidentCommand(incident_id, ShowTargets(by)) for incident_id in sorted(shown)]

        return set(await self.record.handle([], self.now(), first=choose))

    async def change_roster(self, work: Callable[[Connection], T], going: Sequence[str] = ()) -> T:
        """Changes the roster with `work`. In the same transaction, escalates the assignments of units that are gone.

        `going` names the units that may be gone afterwards. The positions of their destinations are looked up before the transaction.
        """
        situation = self.now()
        if going:
            to = await self.store.transaction(partial(roster.destinations, unit_ids=going))
            situation = await self._situation(to, situation)
        results: list[T] = []

        def change(connection: Connection) -> Sequence[IncidentCommand]:
            results.append(work(connection))
            gone = self.availability.gone(connection)
            return [IncidentCommand(incident_id, LoseUnit(assignment_id)) for assignment_id, incident_id in gone]

        await self.record.handle([], situation, first=change)
        return results[0]

    async def catch_up(self) -> None:
        """Applies the commits of other processes of this leg, and sends their steps to the desks of this process."""
        if await self.store.head() != self.record.head:
            await self.record.handle([], self.now())

    def now(self) -> Situation:
        """The present situation, without a board."""
        return Situation(self._clock.now_ms(), self._deadlines)

    async def _situation(
        self, subject_ids: Iterable[str], now: Situation | None = None, *, unit_ids: Collection[str] = ()
    ) -> Situation:
        """The present situation, with the travel times to destinations: of the units in reach, and of `unit_ids`."""
        now = now or self.now()
        return replace(now, board=await self.availability.ahead(subject_ids, now.now_ms, unit_ids=unit_ids))

    async def follow(
        self,
        after_sequence: int,
        others: bool = False,
        new_only: bool = False,
        *,
        wants: Wants = is_no_canary,
        desk: str,
    ) -> AsyncGenerator[DeskItem, None]:
        """Steps after a sequence, or only new steps, as Subscriptions.follow. Earlier steps are read within the budget of `desk`, a
        SPIFFE id. Raises InvalidField if the sequence doesn't exist yet."""
        if after_sequence > self.record.head.id:
            await self.catch_up()  # another process of this leg may have stored that step
        if after_sequence > self.record.head.id:
            raise InvalidField("after_sequence", f"is beyond this leg's last step, {self.record.head.id}")
        if after_sequence and new_only:
            raise InvalidField("new_only", "doesn't go with after_sequence: set one of the two")
        after_sequence = self.record.head.id if new_only else after_sequence

        def page_after(sequence: int) -> Awaitable[list[StepRow]]:
            return self.history.read_in_stream(desk, partial(self.store.steps_after, sequence))

        steps = self.record.subscriptions.follow(page_after, after_sequence, others, who=desk, wants=wants)
        async with aclosing(steps):
            async for item in steps:
                yield item


def _needed(updates: Sequence[TargetUpdate], record: LegRecord, situation: Situation) -> list[IncidentCommand]:
    """The updates that may change their incident in memory; the others need no transaction.

    If the memory is behind another process of this leg, the incident's change makes the follower check it again.
    """
    known = record.memory.known
    return [
        IncidentCommand(update.incident_id, Follow(update))
        for update in updates
        if update.incident_id not in known or may_change(known[update.incident_id].incident, update, situation)
    ]


async def watch_deadlines(leg: LegService) -> None:
    """Handles a leg's deadlines, then absent legs, until cancelled. Needs only the leg's own store."""

    async def act(pulse: Pulse, now_ms: int) -> None:
        if pulse.head != leg.record.head:
            await retried(leg.catch_up)
        elif pulse.roster_version != leg.availability.version:
            await retried(lambda: leg.record.handle([], leg.now()))  # another process of the leg changed the roster
        if pulse.due_ms <= now_ms:
            await retried(leg.pass_deadlines)
        if pulse.absent or pulse.leg_due_ms <= now_ms:
            await retried(leg.check_other_legs)

    await leg.watch.run(partial(retried, leg.watch.pulse), act)


@asynccontextmanager
async def open_leg(
    name: Leg,
    store: Store,
    clock: MeshClock,
    *,
    deadlines: Deadlines,
    metrics: DispatchMetrics,
    travel_times: TravelTimes | None = None,
) -> AsyncIterator[LegService]:
    """Opens a leg with the state in its store, once the store answers. On exit, waits for the running transaction."""
    await retry_until_available(partial(store.claim, name))
    availability = AvailabilityView(travel_times)
    watch = DeadlineWatch(name, store, clock, metrics=metrics)

    async def read() -> LegRecord:
        await store.transaction(availability.load)
        unpublished, unanswered = await store.unpublished(), await store.unanswered()
        return LegRecord(
            leg=name,
            store=store,
            availability=availability,
            watch=watch,
            head=await store.head(),
            unpublished=numbered(unpublished),
            unanswered=numbered(unanswered),
            metrics=metrics,
        )

    record = await retry_until_available(read)
    try:
        yield LegService(
            record=record,
            clock=clock,
            deadlines=deadlines,
            availability=availability,
            watch=watch,
            metrics=metrics,
        )
    finally:
        await record.finish()


def _message(committed: CommittedIncident, assignment_id: str) -> dispatch_pb2.Assignment:
    assignment = committed.incident.assignments[assignment_id]
    return translate.assignment_message(committed.incident, assignment, committed.latency_ms.get(assignment_id))


def _gravest_of_entry_first(alert: Alert) -> tuple[int, int, int]:
    """Sort key of alerts: by log entry, then the gravest first, so that no lesser notice precedes an offer."""
    sequence, ordinal = alert.place
    return sequence, -alert.demand, ordinal


def _destinations(alerts: Iterable[Alert]) -> set[str]:
    return {subject_id for alert in alerts for subject_id in alert.subject_ids}


def _subjects(rows: Iterable[AssignmentRow]) -> set[str]:
    return {translate.stored_assignment(row).subject_id for row in rows}
