"""The warnings of the warning leg, put together: what runs without NATS, and what reads its streams.

Beside the leg, which keeps the assignments and their chain: what it is owed (somebody was reached, or the police must know) is on disk
with what it rests on, and told until it is taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from services.common.clock import MeshClock
from services.common.messaging import dead_letters, flow, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.pull import Delivered
from services.common.messaging.streams import LogMetadata
from services.common.messaging.trails import Trail
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import FailedPrecondition, InvalidField, NotFound, RetryableError
from services.common.storage.db import open_database
from services.dispatch.domain.events import WarningFlag
from services.dispatch.domain.incident import OVER, TAKEN, AssignmentState, assignment_id
from services.dispatch.exchange.links import open_key
from services.dispatch.exchange.receivers import read as read_receivers
from services.dispatch.leg import translate as leg_translate
from services.dispatch.leg.chain import ChainHead
from services.dispatch.leg.service import LegService
from services.dispatch.leg.store import AssignmentRow, StreamPosition
from services.dispatch.retrying import retried
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import translate
from services.dispatch.warning.http import AnswerDoor, AnswerLinks
from services.dispatch.warning.sender import WarningSender
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import MessageRow, Owed
from tandem.common.v1 import command_pb2

MIGRATIONS = Path(__file__).parent / "migrations"
CHECK_INTERVAL_S = 0.2
"""How often deadlines, and what the leg is owed, are looked at. Wall time."""
FORGET_INTERVAL_S = 600.0
CONTACTS_WITHIN_S = 5.0
"""So long alerts wait at a start for the contacts that the log has."""
GIVE_UP_MS = 600_000
"""So long it is tried to tell the leg of an assignment that it doesn't have, mesh time."""
RECEIPT = "receipt"
T = TypeVar("T")


class Warnings:
    """The warnings of one leg."""

    def __init__(self, leg: LegService, store: WarningStore, clock: MeshClock, sender: WarningSender) -> None:
        self.sender = sender
        self._leg, self._store, self._clock = leg, store, clock
        self.alerts = ReaderHealth(f"{flow.ALERTS.name} for warnings")
        """Nobody is warned while they aren't read."""
        self._looked_at: ChainHead | None = None
        """The end of the leg's chain when it was last looked whom a gateway has reached after all."""

    async def run(self) -> None:
        """Sends, watches for receipts and tells the leg, for ever. Needs no NATS."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sender.run())
            tasks.create_task(_every(CHECK_INTERVAL_S, self._pass_receipts))
            tasks.create_task(_every(CHECK_INTERVAL_S, self._tell_leg))
            tasks.create_task(_every(FORGET_INTERVAL_S, lambda: self._store.forget(self._clock.now_ms())))

    async def _pass_receipts(self) -> None:
        now_ms, head = self._clock.now_ms(), self._leg.record.head
        late = await self._store.without_receipt(now_ms)
        taken = await self._taken_by_gateways(late)
        for message in late:
            await self._store.pass_receipt(message, now_ms, _assignment_id(message) in taken)
        if head == self._looked_at:
            return  # whatever a gateway takes is a link of the leg's chain
        unreached = await self._store.unreached(now_ms)
        taken = await self._taken_by_gateways(unreached)
        for message in unreached:
            if _assignment_id(message) in taken:
                await self._store.pass_receipt(message, now_ms, True)
        self._looked_at = head

    async def _taken_by_gateways(self, messages: Sequence[MessageRow]) -> set[str]:
        """The assignments that a gateway which follows the leg's steps has taken, and with each the person's warning.

        A gateway that took an assignment has reached the person, also where the wearer has gone since and the assignment is over.
        """
        if not messages:
            return set()
        rows = await self._leg.store.assignments([_assignment_id(message) for message in messages])
        # Receipts take it too, in another name; they are counted by themselves.
        return {
            id_
            for id_, row in rows.items()
            if AssignmentState(row.state) in TAKEN | OVER and _was_taken_by_gateway(row)
        }

    async def _tell_leg(self) -> None:
        for owed, message in await self._store.owed():
            try:
                await self._tell(owed, message)
            except NotFound:
                # The leg takes the alert in by itself, and may do so later.
                if self._clock.now_ms() < owed.since_ms + GIVE_UP_MS:
                    continue
                logger().critical("warning_of_no_assignment", message_id=message.message_id, what=owed.what)
            except FailedPrecondition as error:
                # A receipt for what is over already: it is kept with the message.
                logger().info("receipt_came_late", message_id=message.message_id, reason=error.reason)
            await self._store.settled(owed)

    async def _tell(self, owed: Owed, message: MessageRow) -> None:
        if owed.what == RECEIPT:
            await self._leg.acknowledge(_assignment_id(message), f"{RECEIPT}/{message.message_id}")
            return
        place = (message.sequence, message.ordinal)
        flag = WarningFlag[owed.what]
        await self._leg.flag(message.incident_id, message.person_id, flag, message.alert_id, place, message.order_id, 0)

    # ── the streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Reads alerts, cases, advice and what became of commands, for ever."""
        self.sender.bus = bus
        self.sender.wake()
        try:
            async with asyncio.TaskGroup() as tasks:
                for partition in range(log_meta.partitions):
                    tasks.create_task(self._follow_cases(bus, log_meta, partition))
                await self._know_contacts(bus, log_meta)
                tasks.create_task(self._follow_alerts(bus, log_meta.log_id))
                tasks.create_task(self._follow_commands(bus, log_meta.log_id))
                tasks.create_task(self._follow_advice(bus, log_meta.log_id))
        finally:
            self.sender.bus = None

    async def _know_contacts(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Waits until all cases are read that the log has now, so that an empty database makes nobody unreachable; but not for long."""
        try:
            async with asyncio.timeout(CONTACTS_WITHIN_S):
                for partition in range(log_meta.partitions):
                    stream = flow.log_stream(partition)
                    last = await _last_of(bus, stream, flow.log_subject(partition, "case"))
                    while await retried(partial(self._store.position, stream, log_meta.log_id)) < last:  # noqa: ASYNC110
                        await asyncio.sleep(0.02)
        except TimeoutError:
            logger().critical("contacts_behind")

    async def _follow_alerts(self, bus: Bus, log_id: str) -> None:
        stream = flow.ALERTS
        trail, after = await self._reading(stream.name, log_id)
        async for messages in trails.follow(bus, stream.name, trail, after=after, health=self.alerts):
            own = [message for message in messages if stream.holds(message.subject)]
            seen, unreadable = _parsed(own, translate.alert)
            _pass_over(unreadable)  # the leg reads it too, and keeps it as a dead letter
            position = StreamPosition(stream.name, log_id, messages[-1].sequence, str(trail))
            await retried(partial(self._store.take, seen, self._clock.now_ms(), position))
            self.sender.wake()

    async def _follow_advice(self, bus: Bus, log_id: str) -> None:
        stream = flow.ADVICE
        trail, after = await self._reading(stream.name, log_id)
        async for messages in trails.follow(bus, stream.name, trail, after=after):
            own = [message for message in messages if stream.holds(message.subject)]
            seen, unreadable = _parsed(own, translate.advice)
            await _keep(bus, unreadable)
            position = StreamPosition(stream.name, log_id, messages[-1].sequence, str(trail))
            await retried(partial(self._store.take_advice, seen, self._clock.now_ms(), position))
            self.sender.wake()

    async def _follow_cases(self, bus: Bus, log_meta: LogMetadata, partition: int) -> None:
        stream, log_id = flow.log_stream(partition), log_meta.log_id
        subjects = (flow.log_subject(partition, "case"),)
        trail, after = await self._reading(stream, log_id)
        async for messages in trails.follow(bus, stream, trail, subjects, after=after):
            cases, unreadable = _parsed(messages, translate.case)
            _pass_over(unreadable)  # a dead letter of the evaluators
            position = StreamPosition(stream, log_id, messages[-1].sequence, str(trail))
            await retried(partial(self._store.put_contacts, cases, position))

    async def _follow_commands(self, bus: Bus, log_id: str) -> None:
        stream = flow.COMMANDS.name
        subjects = (flow.command_step_subject("*", "RECEIVED"), flow.command_step_subject("*", "REFUSED"))
        trail, after = await self._reading(stream, log_id)
        async for messages in trails.follow(bus, stream, trail, subjects, after=after):
            steps, unreadable = _parsed(messages, stored.command_step)
            await _keep(bus, unreadable)
            for step in steps:
                await self._take_step(step)
            await retried(
                partial(self._store.put_position, StreamPosition(stream, log_id, messages[-1].sequence, str(trail)))
            )

    async def _take_step(self, step: command_pb2.CommandStep) -> None:
        message_id = await retried(partial(self._store.message_of_command, step.command_id))
        message = await retried(partial(self._store.message, message_id)) if message_id else None
        if message is None:
            return  # another's command
        if step.state == command_pb2.COMMAND_STATE_RECEIVED:
            await retried(partial(self._store.receipt, message, "delivered", self._clock.now_ms()))
        else:
            logger().warning("warning_refused_by_device", message_id=message.message_id)

    async def _reading(self, stream: str, log_id: str) -> tuple[Trail, int]:
        """What the database says of a stream: the entries that are in it, and the last one's sequence."""
        known = await retried(partial(self._store.reading, stream, log_id))
        return Trail.parse(known.trail), known.sequence


@asynccontextmanager
async def open_warnings(settings: DispatchSettings, leg: LegService) -> AsyncIterator[Warnings]:
    """The warnings of a leg as its store left them, with the door for answers where one is configured."""
    keys = sealing.open_private_keys(settings.warning_key_file)
    gateways = read_receivers(settings.warning_gateways) if settings.warning_gateways else ()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.warning_database, MIGRATIONS))
        store, clock, links = WarningStore(database), settings.clock, None
        if settings.link_port is not None:
            links = AnswerLinks(open_key(settings.link_key), settings.link_url)
        sender = WarningSender(store, clock, keys, gateways, links)
        if links and settings.link_port is not None:
            endpoint = AnswerDoor(store, clock, links, keys, gateways, sender.wake)
            tls = settings.tls_files()[:2] if settings.tls else None
            await stack.enter_async_context(endpoint.served(settings.host, settings.link_port, tls))
        yield Warnings(leg, store, clock, sender)


def _was_taken_by_gateway(row: AssignmentRow) -> bool:
    taken_by = leg_translate.stored_assignment(row).acknowledged_by
    return bool(taken_by) and not taken_by.startswith(f"{RECEIPT}/")


async def _last_of(bus: Bus, stream: str, subject: str) -> int:
    """Sequence of the last message on a subject; 0 where there is none, or the server doesn't answer now."""
    try:
        answer = await bus.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
    except NotFound:
        return 0
    except RetryableError as error:
        logger().warning("work_retried", reason=error.reason)
        return 0
    return int(answer["message"]["seq"])


def _parsed(
    messages: Sequence[Delivered], parse: Callable[[bytes, str], T | None]
) -> tuple[list[T], list[tuple[Delivered, InvalidField]]]:
    """What messages say, and those that say nothing usable."""
    found: list[T] = []
    unreadable: list[tuple[Delivered, InvalidField]] = []
    for message in messages:
        try:
            parsed = parse(message.data, message.subject)
        except InvalidField as error:
            unreadable.append((message, error))
        else:
            if parsed is not None:
                found.append(parsed)
    return found, unreadable


def _pass_over(unreadable: Sequence[tuple[Delivered, InvalidField]]) -> None:
    """Counts messages that another reader keeps as dead letters."""
    for message, error in unreadable:
        dead_letters.pass_over(flow.warning_reader(message.stream), message.stream, message.sequence, error)


async def _keep(bus: Bus, unreadable: Sequence[tuple[Delivered, InvalidField]]) -> None:
    """Keeps messages that no other reader keeps as dead letters."""
    for message, error in unreadable:
        await dead_letters.keep(bus, flow.warning_reader(message.stream), message, error)


async def _every(wait_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await retried(work)
        await asyncio.sleep(wait_s)


def _assignment_id(message: MessageRow) -> str:
    return assignment_id(message.incident_id, "warning", message.person_id)
