"""Service of the warnings: tasks that run without NATS, and readers of the streams that warnings depend on.

The leg keeps the assignments and their chain. The warnings report to the leg that a person was reached, or that the police must be
notified. Each update of the leg is stored on disk with its cause, and retried until the leg has recorded it.

`LateWarnings` opens the warnings beside the leg's offers, since their database may be damaged, or its disk full, while the leg's own
database works. Until they are open the leg isn't ready. It offers and escalates as ever, and flags each person whom it can't warn, so
that the police know.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import Counter

from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, NotFound
from services.common.messaging import dead_letters, flow, trails
from services.common.messaging.bus import Bus
from services.common.messaging.delivered import Delivered
from services.common.messaging.positions import DeferredPosition
from services.common.messaging.streams import LogMetadata
from services.common.messaging.trails import Trail
from services.common.observability.health import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.privacy import secret_keys
from services.common.retrying import retried
from services.common.storage.db import awaited_database
from services.common.web.receivers import open_session
from services.common.web.receivers import read as read_receivers
from services.dispatch.domain.assignment import ACCEPTED, OVER, AssignmentState
from services.dispatch.domain.enums import Exercise, WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.incident import Incident
from services.dispatch.exchange.links import open_key
from services.dispatch.leg.feed import ChangedIncidents
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.service import LegService
from services.dispatch.leg.tables import StreamPosition
from services.dispatch.metrics import WarningMetrics
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import translate
from services.dispatch.warning.channels import AnswerEndpoint, AnswerLinks, DeviceChannel, GatewayChannel, WarningBus
from services.dispatch.warning.opening import MessageOpener, NoticeLedger, NoticeOpener
from services.dispatch.warning.phones import EndedIncidents, OpenNotices, PhoneAccess
from services.dispatch.warning.receipts import (
    EndedWait,
    InformedOf,
    ReceiptStore,
    ReceiptWork,
    acknowledgement_of,
    flag_of,
    was_acknowledged_by_gateway,
)
from services.dispatch.warning.sender import WarningSender
from services.dispatch.warning.store import ContactBook, WarningStore
from services.dispatch.warning.tables import DueWork, PendingLegUpdate
from services.dispatch.warning.translate import ClosedAssignment, GivenAdvice, WarnableAlert
from tandem.common.v1 import command_pb2

MIGRATIONS = Path(__file__).parent / "migrations"
MAX_SLEEP_S = 1.0
"""Maximum time between two checks of receipts, seconds of wall time: a step of the system clock mustn't delay a deadline for long."""
CHECK_INTERVAL_S = 0.5
"""Least time between two checks whether a gateway has reached the persons who weren't reached in time, seconds of wall time."""
RETRY_INTERVAL_S = 0.2
"""Interval at which pending updates of the leg are retried, seconds of wall time."""
FORGET_INTERVAL_S = 600.0
"""Interval at which outdated contacts and alert ids are deleted, seconds of wall time."""
CONTACTS_WITHIN_S = 5.0
"""Maximum time after a start in which the contacts in the log are read before the alerts, seconds of wall time."""
GIVE_UP_MS = 600_000
"""Time after which an update is dropped if the leg still lacks its assignment, milliseconds of mesh time."""
_POLICE_STEPS = flow.incident_subject("police", ">")
"""Subject of the steps of the police leg. The police are responsible for her, so they may end what threatens her, and nobody else."""
_RECEIPT_SUBJECTS = (flow.command_step_subject("*", "RECEIVED"), flow.command_step_subject("*", "REFUSED"))
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Warnings:
    """The running parts of the warnings: sender, devices, stream readers and updates of the leg."""

    sender: WarningSender
    devices: DeviceChannel
    streams: WarningStreams
    updates: LegUpdates
    phones: PhoneAccess
    store: WarningStore

    async def run(self) -> None:
        """Sends messages, checks receipts and updates the leg, until cancelled. Needs no NATS."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sender.run())
            tasks.create_task(self.updates.run())
            tasks.create_task(_repeat(FORGET_INTERVAL_S, self.streams.forget))


class LegUpdates:
    """Reports to the leg that a person was reached, or that the police must be notified."""

    def __init__(self, leg: LegService, receipts: ReceiptStore, clock: MeshClock) -> None:
        self._leg = leg
        self._receipts = receipts
        self._clock = clock
        self._changed: dict[str, None] | None = None
        """Incidents that changed since the last check for late acknowledgements by gateways; None before the first check, of all."""
        self._next_check_s = 0.0
        """When the next such check may begin, by the event loop's clock, seconds."""
        self._recorded: list[PendingLegUpdate] = []
        """Updates that the leg has recorded and the store still has. A process that dies before the next check repeats them."""
        self.flagged_before: set[str] = set()
        """Assignments that had the flag NO_CONTACT before the warnings were opened, of which the store may not know."""

    async def run(self) -> None:
        """Updates the leg until cancelled: after each receipt, and when a receipt is overdue. Needs no NATS."""
        async with self._leg.record.changes() as changes, asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_record(changes))
            tasks.create_task(self._work())

    async def _follow_record(self, changes: ChangedIncidents) -> None:
        while True:
            incident_ids = dict.fromkeys((await changes.next()).incidents)
            if self._changed is not None:
                self._changed |= incident_ids

    async def _work(self) -> None:
        while True:
            self._receipts.changed.clear()
            work = await retried(self._update)
            left_s = MAX_SLEEP_S
            if work.leg_updates:
                left_s = RETRY_INTERVAL_S
            elif work.due_ms is not None:
                left_s = min(left_s, max(0.0, self._clock.wall_s(work.due_ms - self._clock.now_ms())))
            with suppress(TimeoutError):
                async with asyncio.timeout(left_s):
                    await self._receipts.changed.wait()

    async def _update(self) -> ReceiptWork:
        """Does the work that receipts cause now, and returns the work that is left. Raises Unavailable."""
        now_ms, now_s = self._clock.now_ms(), asyncio.get_running_loop().time()
        work = await self._receipts.work(now_ms, self._recorded)
        self._recorded = []
        is_overdue = work.due_ms is not None and work.due_ms <= now_ms
        if not work.may_be_reached:
            self._changed = {}  # a later flag knows of the acknowledgements before it
        # An acknowledgement by a gateway is a change of its incident.
        may_be_reached = work.may_be_reached and self._changed != {} and now_s >= self._next_check_s
        if is_overdue:
            await self._expire_overdue(now_ms)
        if may_be_reached:
            await self._note_reached(now_ms)
            self._next_check_s = now_s + CHECK_INTERVAL_S
        if is_overdue or may_be_reached:
            work = await self._receipts.work(now_ms)
        return replace(work, leg_updates=await self._send_all(work.leg_updates))

    async def _expire_overdue(self, now_ms: int) -> None:
        """Ends the wait for overdue receipts."""
        overdue = await self._receipts.overdue(now_ms)
        acknowledged = await self._acknowledged_by_gateways(overdue)
        await self._receipts.expire([EndedWait(each, each.assignment_id in acknowledged) for each in overdue], now_ms)

    async def _note_reached(self, now_ms: int) -> None:
        """Notes the persons whom a gateway has reached after a flag, among those of the changed incidents."""
        changed, self._changed = self._changed, {}
        try:
            unreached = await self._receipts.unreached(now_ms, changed)
            acknowledged = await self._acknowledged_by_gateways(unreached)
            reached = [EndedWait(each, True) for each in unreached if each.assignment_id in acknowledged]
            await self._receipts.expire(reached, now_ms)
        except BaseException:
            self._changed = None  # the next check is of all
            raise

    async def _send_all(self, pending: Sequence[PendingLegUpdate]) -> list[PendingLegUpdate]:
        """Sends pending updates to the leg, and returns those that the leg can't record yet. Raises Unavailable."""
        early = []
        for update in pending:
            try:
                await self._send(update)
            except NotFound:
                # The leg reads alerts with a reader of its own, and may apply this message's alert later.
                if self._clock.now_ms() < update.since_ms + GIVE_UP_MS:
                    early.append(update)
                    continue
                logger().critical("warning_of_no_assignment", message_id=update.message_id, what=update.what)
            except FailedPrecondition as error:  # the assignment is over; the receipt stays stored with its message
                logger().info("receipt_came_late", message_id=update.message_id, reason=error.reason)
            self._recorded.append(update)
        return early

    async def _acknowledged_by_gateways(self, messages: Sequence[InformedOf]) -> set[str]:
        """Returns the ids of those assignments of the messages' alerts that a gateway has acknowledged.

        Such a gateway follows the leg's steps. Its acknowledgement means that the person was reached, even after the assignment.
        """
        if not messages:
            return set()
        rows = await self._leg.store.assignments(list(dict.fromkeys(each.assignment_id for each in messages)))
        return {
            id_
            for id_, row in rows.items()
            if AssignmentState(row.state) in ACCEPTED | OVER and was_acknowledged_by_gateway(row)
        }

    async def _send(self, update: PendingLegUpdate) -> None:
        if update.flag is None:
            acknowledgement = acknowledgement_of(update)
            await self._leg.answer(acknowledgement)
            is_flagged = acknowledgement.assignment_id in self.flagged_before
            if is_flagged and await self._receipts.is_newest(update.message_id, self._clock.now_ms()):
                await self._leg.flag(update.alert.incident_id, flag_of(update))
        else:
            await self._leg.flag(update.alert.incident_id, flag_of(update, update.flag))


@dataclass(frozen=True, slots=True)
class _Source(Generic[T]):
    """A stream that the warnings read, with its parser and the function that stores the messages."""

    stream: str
    parse: Callable[[bytes, str], T | None]
    accept: Callable[[Sequence[T], StreamPosition], Awaitable[None]]
    """Stores the effects of messages, and the stream position after the last one. A repetition changes nothing."""
    subjects: tuple[str, ...] = ()
    """Subjects to read; all if empty."""
    holds: Callable[[str], bool] | None = None
    """Says whether a subject belongs to the stream; other messages are ignored. None if `subjects` already excludes them."""
    keeps_dead_letters: bool = False
    """Whether unreadable messages become dead letters. If not, they are only counted: another reader of the stream keeps them."""
    health: ReaderHealth | None = None
    defer_s: float | None = None
    """Time after which the position behind messages without an effect is stored, seconds; None for the usual one."""


class WarningStreams:
    """Reads the streams that warnings depend on: cases, alerts, advice, steps of commands, and steps that close an assignment."""

    def __init__(
        self,
        store: WarningStore,
        receipts: ReceiptStore,
        clock: MeshClock,
        *,
        mesh: WarningBus,
        wake: Callable[[DueWork | None], None],
    ) -> None:
        self._store = store
        self._receipts = receipts
        self._clock = clock
        self._mesh = mesh
        self._wake = wake
        self.alerts = ReaderHealth(f"{flow.ALERTS.name} for warnings")
        """Health of the reader of alerts. While it doesn't read, nobody is warned."""

    async def follow(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Reads the streams until cancelled."""
        # The leg reads alerts too, and keeps their dead letters. The evaluators keep the dead letters of cases.
        alerts = _Source(
            flow.ALERTS.name, translate.alert, self._accept_alerts, holds=flow.ALERTS.holds, health=self.alerts
        )
        advice = _Source(
            flow.ADVICE.name, translate.advice, self._accept_advice, holds=flow.ADVICE.holds, keeps_dead_letters=True
        )
        # The leg reads the other legs' steps, too, and keeps their dead letters.
        closings = _Source(
            flow.INCIDENTS.name,
            translate.closing,
            self._accept_closings,
            subjects=(_POLICE_STEPS,),
            holds=_is_police_step,
        )
        parse, accept = translate.notice_step, self._accept_steps
        steps = _Source(flow.COMMANDS.name, parse, accept, subjects=_RECEIPT_SUBJECTS, keeps_dead_letters=True)
        self._mesh.bus = bus
        self._wake(None)
        try:
            async with asyncio.TaskGroup() as tasks:
                for partition in range(log_meta.partitions):
                    stream, subjects = flow.log_stream(partition), (flow.log_subject(partition, "case"),)
                    # The start waits for this position, also behind an unreadable case.
                    cases = _Source(stream, translate.case, self._accept_cases, subjects=subjects, defer_s=0.0)
                    tasks.create_task(self._read(bus, log_meta.log_id, cases))
                await self._await_contacts(bus, log_meta)
                tasks.create_task(self._read(bus, log_meta.log_id, alerts))
                tasks.create_task(self._read(bus, log_meta.log_id, steps))
                tasks.create_task(self._read(bus, log_meta.log_id, advice))
                tasks.create_task(self._read(bus, log_meta.log_id, closings))
        finally:
            self._mesh.bus = None

    async def forget(self) -> None:
        """Deletes outdated contacts and alert ids. Raises Unavailable."""
        await self._store.forget(self._clock.now_ms())

    async def _read(self, bus: Bus, log_id: str, source: _Source[T]) -> None:
        """Reads a stream until cancelled. The position in the stream is stored together with the effects of the messages."""
        stored_position = await retried(partial(self._store.position, source.stream, log_id))
        trail = Trail.parse(stored_position.trail)
        deferred: DeferredPosition[T, StreamPosition] = DeferredPosition(source.accept, source.defer_s)
        following = trails.follow(
            bus,
            source.stream,
            trail,
            subjects=source.subjects,
            after=stored_position.sequence,
            on_went_back=deferred.forget,
            health=source.health,
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(deferred.keep())
            async for messages in following:
                own = [message for message in messages if source.holds is None or source.holds(message.subject)]
                position = StreamPosition(source.stream, log_id, messages[-1].sequence, trail=str(trail))
                await deferred.put(await _parsed(bus, own, source), position)

    async def _await_contacts(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Waits, at most CONTACTS_WITHIN_S, until all current cases of the log are read.

        If alerts came first, an empty database would make everybody unreachable.
        """
        try:
            async with asyncio.timeout(CONTACTS_WITHIN_S):
                for partition in range(log_meta.partitions):
                    stream = flow.log_stream(partition)
                    last = await retried(partial(bus.last_sequence_of, stream, flow.log_subject(partition, "case")))
                    read = partial(self._store.position, stream, log_meta.log_id)
                    while (await retried(read)).sequence < last:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        except TimeoutError:
            logger().critical("contacts_behind")

    async def _accept_cases(self, cases: Sequence[translate.CaseContacts], position: StreamPosition) -> None:
        await self._store.put_contacts(cases, self._clock.now_ms(), position)

    async def _accept_alerts(self, alerts: Sequence[WarnableAlert], position: StreamPosition) -> None:
        self._wake(await self._store.accept(alerts, self._clock.now_ms(), position))

    async def _accept_advice(self, advice: Sequence[GivenAdvice], position: StreamPosition) -> None:
        self._wake(await self._store.accept_advice(advice, self._clock.now_ms(), position))

    async def _accept_closings(self, closings: Sequence[ClosedAssignment], position: StreamPosition) -> None:
        self._wake(await self._store.accept_closings(closings, self._clock.now_ms(), position))

    async def _accept_steps(self, steps: Sequence[command_pb2.CommandStep], position: StreamPosition) -> None:
        received = [step.command_id for step in steps if step.state == command_pb2.COMMAND_STATE_RECEIVED]
        await self._receipts.put_delivered(received, self._clock.now_ms(), position)
        for step in steps:
            if step.command_id not in received and (message := await self._store.message_of_command(step.command_id)):
                logger().warning("warning_refused_by_device", message_id=message.message_id)


@asynccontextmanager
async def open_warnings(
    settings: DispatchSettings, leg: LegService, metrics: WarningMetrics, *, http_closed: Counter
) -> AsyncIterator[Warnings]:
    """Opens the warnings of a leg with their database, and the answer endpoint if one is configured."""
    keys = secret_keys.open_private_keys(settings.warning_key_file)
    gateways = read_receivers(settings.warning_gateways) if settings.warning_gateways else ()
    clock, mesh = settings.clock, WarningBus()
    links = AnswerLinks(open_key(settings.link_key), settings.link_url) if settings.link_port is not None else None
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(awaited_database(settings.warning_database, MIGRATIONS))
        open_notices = OpenNotices(database, clock)
        store, receipts = WarningStore(database, open_notices.opened), ReceiptStore(database)
        contacts = ContactBook(store, keys)
        channels = {}
        for gateway in gateways:
            session = await stack.enter_async_context(open_session())
            channels[gateway.name] = GatewayChannel(gateway, session, contacts, links=links)
        opener = MessageOpener(store, clock, contacts, gateways=tuple(channels), mesh=mesh)
        ledger = NoticeLedger(LegDisclosures(leg.name, leg.store))
        devices = DeviceChannel(mesh, clock, store, links=links)
        sender = WarningSender(
            store,
            clock,
            opener,
            notices=NoticeOpener(store, clock, opener, ledger=ledger, mesh=mesh),
            gateways=channels,
            devices=devices,
            metrics=metrics,
        )
        if links and settings.link_port is not None:
            endpoint = AnswerEndpoint(
                store, receipts, clock, links=links, contacts=contacts, gateways=gateways, wake=sender.wake
            )
            tls = settings.tls_files()[:2] if settings.tls else None
            await stack.enter_async_context(endpoint.served(settings.host, settings.link_port, tls, closed=http_closed))
        streams = WarningStreams(store, receipts, clock, mesh=mesh, wake=sender.wake)
        phones = PhoneAccess(
            store=store,
            notices=open_notices,
            ended=EndedIncidents(database, clock),
            receipts=receipts,
            contacts=contacts,
            clock=clock,
            wake=sender.wake,
        )
        await retried(store.find_silent_callers)
        yield Warnings(sender, devices, streams, updates=LegUpdates(leg, receipts, clock), phones=phones, store=store)


async def _parsed(bus: Bus, messages: Sequence[Delivered], source: _Source[T]) -> list[T]:
    """Parses messages. An unreadable message becomes a dead letter or is only counted, see `keeps_dead_letters`."""
    reader = flow.warning_reader(source.stream)
    if source.keeps_dead_letters:
        return await dead_letters.parse_or_keep(bus, reader, messages, parse=source.parse)
    return dead_letters.parse_or_pass_over(bus, reader, messages, parse=source.parse)


def _is_police_step(subject: str) -> bool:
    return subject.startswith(_POLICE_STEPS.removesuffix(">"))


async def _repeat(wait_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await retried(work)
        await asyncio.sleep(wait_s)


class LateWarnings:
    """The warnings of a leg, which may be opened long after the leg."""

    def __init__(self, leg: LegService, database: Path) -> None:
        self._leg, self._database = leg, database
        self._opened: asyncio.Future[Warnings] = asyncio.get_running_loop().create_future()

    def unable(self) -> str:
        """Reason why nobody is warned; empty if the warnings work."""
        if not self._opened.done():
            return f"nobody is warned: {self._database} isn't open"
        return self._opened.result().streams.alerts.unable()

    async def run(self, opening: AbstractAsyncContextManager[Warnings], connected: Callable[[Warnings], None]) -> None:
        """Opens the warnings and runs them until cancelled. Calls `connected` once they are open."""
        async with asyncio.TaskGroup() as tasks:
            flagging = tasks.create_task(self._flag_unwarned())
            async with opening as warnings:
                flagging.cancel()
                # A receipt of hers must take back the flags of this process, and of one that ended before the database was mended.
                warnings.updates.flagged_before.update(flagged(await retried(self._leg.record.open_incidents)))
                self._leg.withhold(lambda assignment: assignment.subject_id in warnings.store.silent_callers)
                connected(warnings)
                self._opened.set_result(warnings)
                await warnings.run()

    async def follow(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Reads the streams of the warnings until cancelled, once they are open."""
        warnings = await asyncio.shield(self._opened)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(warnings.streams.follow(bus, log_meta))
            tasks.create_task(warnings.devices.keep_restored(bus))

    async def _flag_unwarned(self) -> None:
        """Flags the persons whose warning nobody has acknowledged in time, until cancelled. The police's desk is notified of them."""
        async with self._leg.record.changes() as changes:
            while True:
                for incident in (await changes.next()).incidents.values():
                    for flag in unwarned(incident):
                        await retried(partial(self._leg.flag, incident.incident_id, flag))


def flagged(incidents: Iterable[Incident]) -> Iterator[str]:
    """Assignments of incidents whose person has the flag that nobody could warn her."""
    for incident in incidents:
        for assignment in incident.assignments.values():
            if assignment.flag and assignment.flag.flag is WarningFlag.NO_CONTACT:
                yield assignment.assignment_id


def unwarned(incident: Incident) -> Iterator[Flag]:
    """A flag for each person of an incident whose warning was escalated and who has no flag yet. The watch follows its own canaries."""
    if incident.exercise is Exercise.CANARY:
        return
    for assignment in incident.assignments.values():
        demanding = incident.asked.get(assignment.assignment_id)
        if demanding and assignment.state is AssignmentState.ESCALATED and assignment.flag is None:
            alert = demanding.last
            yield Flag(
                subject_id=assignment.subject_id,
                flag=WarningFlag.NO_CONTACT,
                alert_id=alert.alert_id,
                place=alert.place,
                order_id=alert.order_id,
            )
