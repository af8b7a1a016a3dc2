"""Service of the warnings of the warning leg: tasks that run without NATS, and readers of its streams.

The leg keeps the assignments and their chain. The warnings report to it that a person was reached, or that the police must be
notified. Such an update is stored on disk with its cause, and retried until the leg has recorded it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path

from prometheus_client import Counter

from services.common.clock import MeshClock
from services.common.messaging import dead_letters, flow, stored, trails
from services.common.messaging.bus import Bus
from services.common.messaging.streams import LogMetadata
from services.common.messaging.trails import Trail
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import FailedPrecondition, NotFound, RetryableError
from services.common.storage.db import open_database
from services.dispatch.domain.assignment import ACCEPTED, OVER, AssignmentState, assignment_id
from services.dispatch.domain.enums import WarningFlag
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.leg import Leg
from services.dispatch.exchange.links import open_key
from services.dispatch.exchange.receivers import read as read_receivers
from services.dispatch.leg import translate as leg_translate
from services.dispatch.leg.chain import ChainHead
from services.dispatch.leg.rows import AssignmentRow, StreamPosition
from services.dispatch.leg.service import LegService
from services.dispatch.retrying import retried
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning import translate
from services.dispatch.warning.http import AnswerEndpoint, AnswerLinks
from services.dispatch.warning.sender import WarningSender
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import MessageRow, PendingLegUpdate
from tandem.common.v1 import command_pb2

MIGRATIONS = Path(__file__).parent / "migrations"
CHECK_INTERVAL_S = 0.2
"""Interval at which deadlines and pending updates of the leg are checked, seconds of wall time."""
FORGET_INTERVAL_S = 600.0
"""Interval at which outdated contacts and alert ids are deleted, seconds of wall time."""
CONTACTS_WITHIN_S = 5.0
"""Maximum time that alerts wait at a start for the contacts in the log, seconds of wall time."""
GIVE_UP_MS = 600_000
"""Time after which an update of an assignment that the leg doesn't have is dropped, milliseconds of mesh time."""
RECEIPT = "receipt"
"""Kind of an update: a receipt arrived. Also the prefix of `acknowledged_by` for it."""


class Warnings:
    """Warnings of one leg."""

    def __init__(self, leg: LegService, store: WarningStore, clock: MeshClock, *, sender: WarningSender) -> None:
        self.sender = sender
        self._leg, self._store, self._clock = leg, store, clock
        self.alerts = ReaderHealth(f"{flow.ALERTS.name} for warnings")
        """Health of the reader of alerts: nobody is warned while they aren't read."""
        self._checked_head: ChainHead | None = None
        """Head of the leg's chain at the last check for late acknowledgements by gateways."""

    async def run(self) -> None:
        """Sends messages, checks receipts and updates the leg, until cancelled. Needs no NATS."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.sender.run())
            tasks.create_task(_repeat(CHECK_INTERVAL_S, self._expire_receipts))
            tasks.create_task(_repeat(CHECK_INTERVAL_S, self._update_leg))
            tasks.create_task(_repeat(FORGET_INTERVAL_S, lambda: self._store.forget(self._clock.now_ms())))

    async def _expire_receipts(self) -> None:
        now_ms, head = self._clock.now_ms(), self._leg.record.head
        late = await self._store.without_receipt(now_ms)
        acknowledged = await self._acknowledged_by_gateways(late)
        for message in late:
            await self._store.expire_receipt(message, now_ms, _assignment_id(message) in acknowledged)
        if head == self._checked_head:
            return  # an acknowledgement by a gateway would have extended the leg's chain
        unreached = await self._store.unreached(now_ms)
        acknowledged = await self._acknowledged_by_gateways(unreached)
        for message in unreached:
            if _assignment_id(message) in acknowledged:
                await self._store.expire_receipt(message, now_ms, True)
        self._checked_head = head

    async def _acknowledged_by_gateways(self, messages: Sequence[MessageRow]) -> set[str]:
        """Returns the ids of the messages' assignments that a gateway has acknowledged. Such a gateway follows the leg's steps.

        It has reached the person even if the wearer has left since and the assignment is over.
        """
        if not messages:
            return set()
        rows = await self._leg.store.assignments([_assignment_id(message) for message in messages])
        # A receipt acknowledges the assignment too, under the prefix RECEIPT. Receipts are stored with their message.
        return {
            id_
            for id_, row in rows.items()
            if AssignmentState(row.state) in ACCEPTED | OVER and _was_acknowledged_by_gateway(row)
        }

    async def _update_leg(self) -> None:
        for update, message in await self._store.pending_leg_updates():
            try:
                await self._send_update(update, message)
            except NotFound:
                # The leg reads alerts on its own, and may accept this one later.
                if self._clock.now_ms() < update.since_ms + GIVE_UP_MS:
                    continue
                logger().critical("warning_of_no_assignment", message_id=message.message_id, what=update.what)
            except FailedPrecondition as error:
                # The assignment is over already. The receipt stays stored with its message.
                logger().info("receipt_came_late", message_id=message.message_id, reason=error.reason)
            await self._store.delete_leg_update(update)

    async def _send_update(self, update: PendingLegUpdate, message: MessageRow) -> None:
        if update.what == RECEIPT:
            await self._leg.acknowledge(_assignment_id(message), f"{RECEIPT}/{message.message_id}")
            return
        flag = Flag(
            subject_id=message.person_id,
            flag=WarningFlag[update.what],
            alert_id=message.alert_id,
            place=(message.sequence, message.ordinal),
            order_id=message.order_id,
        )
        await self._leg.flag(message.incident_id, flag)

    # ── the streams ──────────────────────────────────────────────────────────────────────────────────────────────────

    async def follow(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Reads alerts, cases, advice and steps of commands, until cancelled."""
        self.sender.bus = bus
        self.sender.wake()
        try:
            async with asyncio.TaskGroup() as tasks:
                for partition in range(log_meta.partitions):
                    tasks.create_task(self._follow_cases(bus, log_meta, partition))
                await self._await_contacts(bus, log_meta)
                tasks.create_task(self._follow_alerts(bus, log_meta.log_id))
                tasks.create_task(self._follow_commands(bus, log_meta.log_id))
                tasks.create_task(self._follow_advice(bus, log_meta.log_id))
        finally:
            self.sender.bus = None

    async def _await_contacts(self, bus: Bus, log_meta: LogMetadata) -> None:
        """Waits, at most CONTACTS_WITHIN_S, until all current cases of the log are read.

        Otherwise an empty database would make everybody unreachable.
        """
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
        trail, after = await self._cursor(stream.name, log_id)
        async for messages in trails.follow(bus, stream.name, trail, after=after, health=self.alerts):
            own = [message for message in messages if stream.holds(message.subject)]
            # The leg reads alerts too, and keeps the dead letters.
            alerts = dead_letters.parse_or_pass_over(bus, flow.warning_reader(stream.name), own, parse=translate.alert)
            position = StreamPosition(
                stream=stream.name, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail)
            )
            await retried(partial(self._store.accept, alerts, self._clock.now_ms(), position))
            self.sender.wake()

    async def _follow_advice(self, bus: Bus, log_id: str) -> None:
        stream = flow.ADVICE
        trail, after = await self._cursor(stream.name, log_id)
        async for messages in trails.follow(bus, stream.name, trail, after=after):
            own = [message for message in messages if stream.holds(message.subject)]
            advice = await dead_letters.parse_or_keep(
                bus, flow.warning_reader(stream.name), own, parse=translate.advice
            )
            position = StreamPosition(
                stream=stream.name, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail)
            )
            await retried(partial(self._store.accept_advice, advice, self._clock.now_ms(), position))
            self.sender.wake()

    async def _follow_cases(self, bus: Bus, log_meta: LogMetadata, partition: int) -> None:
        stream, log_id = flow.log_stream(partition), log_meta.log_id
        subjects = (flow.log_subject(partition, "case"),)
        trail, after = await self._cursor(stream, log_id)
        async for messages in trails.follow(bus, stream, trail, subjects=subjects, after=after):
            # The evaluators keep the dead letters.
            cases = dead_letters.parse_or_pass_over(bus, flow.warning_reader(stream), messages, parse=translate.case)
            position = StreamPosition(stream=stream, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail))
            await retried(partial(self._store.put_contacts, cases, position))

    async def _follow_commands(self, bus: Bus, log_id: str) -> None:
        stream = flow.COMMANDS.name
        subjects = (flow.command_step_subject("*", "RECEIVED"), flow.command_step_subject("*", "REFUSED"))
        trail, after = await self._cursor(stream, log_id)
        async for messages in trails.follow(bus, stream, trail, subjects=subjects, after=after):
            steps = await dead_letters.parse_or_keep(
                bus, flow.warning_reader(stream), messages, parse=stored.command_step
            )
            for step in steps:
                await self._accept_step(step)
            await retried(
                partial(
                    self._store.put_position,
                    StreamPosition(stream=stream, log_id=log_id, sequence=messages[-1].sequence, trail=str(trail)),
                )
            )

    async def _accept_step(self, step: command_pb2.CommandStep) -> None:
        message_id = await retried(partial(self._store.message_of_command, step.command_id))
        message = await retried(partial(self._store.message, message_id)) if message_id else None
        if message is None:
            return  # a command of another service
        if step.state == command_pb2.COMMAND_STATE_RECEIVED:
            await retried(partial(self._store.receipt, message, "delivered", self._clock.now_ms()))
        else:
            logger().warning("warning_refused_by_device", message_id=message.message_id)

    async def _cursor(self, stream: str, log_id: str) -> tuple[Trail, int]:
        """Returns the trail of accepted entries of a stream, and the sequence of the last."""
        position = await retried(partial(self._store.cursor, stream, log_id))
        return Trail.parse(position.trail), position.sequence


@asynccontextmanager
async def open_warnings(settings: DispatchSettings, leg: LegService, http_closed: Counter) -> AsyncIterator[Warnings]:
    """Opens the warnings of a leg with their database, and the answer endpoint if one is configured."""
    keys = sealing.open_private_keys(settings.warning_key_file)
    gateways = read_receivers(settings.warning_gateways) if settings.warning_gateways else ()
    async with AsyncExitStack() as stack:
        database = await stack.enter_async_context(open_database(settings.warning_database, MIGRATIONS))
        store, clock, links = WarningStore(database), settings.clock, None
        if settings.link_port is not None:
            links = AnswerLinks(open_key(settings.link_key), settings.link_url)
        sender = WarningSender(store=store, clock=clock, keys=keys, gateways=gateways, links=links)
        if links and settings.link_port is not None:
            endpoint = AnswerEndpoint(
                store=store, clock=clock, links=links, keys=keys, gateways=gateways, wake=sender.wake
            )
            tls = settings.tls_files()[:2] if settings.tls else None
            await stack.enter_async_context(endpoint.served(settings.host, settings.link_port, tls, closed=http_closed))
        yield Warnings(leg=leg, store=store, clock=clock, sender=sender)


def _was_acknowledged_by_gateway(row: AssignmentRow) -> bool:
    acknowledged_by = leg_translate.stored_assignment(row).acknowledged_by
    return bool(acknowledged_by) and not acknowledged_by.startswith(f"{RECEIPT}/")


async def _last_of(bus: Bus, stream: str, subject: str) -> int:
    """Returns the sequence of the last message on a subject; 0 if there is none or the server doesn't answer."""
    try:
        return await bus.last_sequence_of(stream, subject)
    except RetryableError as error:
        logger().warning("work_retried", reason=error.reason)
        return 0


async def _repeat(wait_s: float, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await retried(work)
        await asyncio.sleep(wait_s)


def _assignment_id(message: MessageRow) -> str:
    return assignment_id(message.incident_id, Leg.WARNING, message.person_id)
