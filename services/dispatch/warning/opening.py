"""Opens due messages and repeats instructions: words the text in the person's language, and creates a sending for each channel.

`NoticeOpener` opens the notices of the Ministry: it checks that the order still protects the person, and stores the ledger's rows in
DISCLOSURES, with giver, recipient and article. The law demands a ledger of these uses (Tag Act Decree 14, 23-17(2)). Without its rows a
notice isn't sent; it waits for NATS. The police's own warning doesn't.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from services.common import ids
from services.common.clock import MeshClock
from services.common.errors import InvalidField, RetryableError
from services.common.messaging import flow, stored
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.observability.lateness import RECEIPT_WITHIN_MS
from services.common.observability.telemetry import logger
from services.common.privacy import notices
from services.common.privacy.disclosures import GivenNotice, row_of
from services.common.privacy.notices import NoticeGround
from services.common.retrying import retried
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.warning import translate, wording
from services.dispatch.warning.channels import WarningBus
from services.dispatch.warning.domain import (
    ChannelId,
    ChannelKind,
    Instruction,
    MessageKind,
    NoticeRefusal,
    ReceiptKind,
    repeat_after_ms,
)
from services.dispatch.warning.notices import log_refusal
from services.dispatch.warning.store import ContactBook, WarningStore
from services.dispatch.warning.tables import (
    IN_APP,
    NO_WAY,
    OPEN,
    SENDING,
    ContactRow,
    DueSending,
    MessageRow,
    OpenedMessage,
    Sending,
)
from services.dispatch.warning.wording import Distance, DistanceTrend, Language, Wording
from tandem.common.v1 import alert_pb2, contact_pb2, ledger_pb2

DISTANCE_TIMEOUT_S = 1.0
"""Maximum wait for the distance in a message, seconds. Distances are stored after their alerts. After the wait, the text has none."""
TTL_MS = 600_000
"""Time after which a channel that hasn't accepted a message gives up, milliseconds of mesh time: of a notice of the Ministry, and of
the message that her own device isn't reporting. An instruction is given up for its repetition."""
OVER_TTL_MS = 86_400_000
"""As TTL_MS, of an all-clear: a phone that was switched off after a warning has to get it, and no command lasts longer than a day."""
_LANGUAGES = {contact_pb2.LANGUAGE_ENGLISH: Language.ENGLISH}


class MessageOpener:
    """Opens the messages of one leg, and repeats its instructions."""

    def __init__(
        self,
        store: WarningStore,
        clock: MeshClock,
        contacts: ContactBook,
        *,
        gateways: Sequence[str],
        mesh: WarningBus,
    ) -> None:
        self._store = store
        self._clock = clock
        self._contacts = contacts
        self._mesh = mesh
        self._gateways = [ChannelId(ChannelKind.GATEWAY, name) for name in gateways]

    async def open(self, due: Sequence[MessageRow], contacts: Mapping[str, Sequence[ContactRow]]) -> list[DueSending]:
        """Opens messages in one transaction, and returns all sendings that are due then. `contacts` are the persons', by person id."""
        opened = [await self._opened(message, contacts[message.person_id]) for message in due]
        return await self.put(opened)

    async def put(self, opened: Sequence[OpenedMessage]) -> list[DueSending]:
        """Stores opened messages, and returns all sendings that are due then."""
        sendings = await retried(partial(self._store.open, opened, self._clock.now_ms()))
        for opened_message in opened:
            message = opened_message.message
            fields = {"message_id": message.message_id, "notice": message.kind, "ways": len(opened_message.sendings)}
            logger().info("warning_opened", **fields)
        return sendings

    async def repeat(self, due: Sequence[MessageRow], contacts: Mapping[str, Sequence[ContactRow]]) -> list[DueSending]:
        """Repeats instructions in one transaction, and returns all sendings that are due then."""
        callers = await retried(self._store.find_silent_callers)
        now_ms = self._clock.now_ms()
        repeated = [
            self._repeated(message, contacts[message.person_id], is_silent=message.person_id in callers, now_ms=now_ms)
            for message in due
        ]
        sendings = await retried(partial(self._store.repeat, repeated, now_ms))
        for opened_message in repeated:
            message = opened_message.message
            fields = {"message_id": message.message_id, "repetition": message.repetitions}
            logger().info("warning_repeated", ways=len(opened_message.sendings), **fields)
        return sendings

    async def _opened(self, message: MessageRow, rows: Sequence[ContactRow]) -> OpenedMessage:
        kind = message.message_kind
        if kind is MessageKind.OVER:
            return self.prepared(message, rows, partial(wording.over, kind, drill=message.drill))
        if kind is MessageKind.PHONE_SILENT:
            return self.prepared(message, rows, wording.phone_silent)
        present = translate.instruction_from_json(message.instruction)
        distance = await self._distance(present)
        order_from_ms = self.order_from_ms(present.order_id, rows)
        words = partial(wording.instruction, present, distance=distance, order_from_ms=order_from_ms)
        return self.prepared(message, rows, words)

    def order_from_ms(self, order_id: str, rows: Sequence[ContactRow]) -> int | None:
        """When an order began, mesh time, if other orders of the person are valid, too, so that she has to know which is meant."""
        now_ms = self._clock.now_ms()
        begun_ms = {
            row.order_id: row.valid_from_ms
            for row in rows
            if row.valid_until_ms is None or row.valid_until_ms > now_ms or row.order_id == order_id
        }
        return begun_ms.get(order_id) if len(begun_ms) > 1 else None

    def prepared(
        self, message: MessageRow, rows: Sequence[ContactRow], words_in: Callable[[Language], Wording]
    ) -> OpenedMessage:
        """Returns a message in words, in the person's language, and a sending for each channel. `rows` are her contacts."""
        contact = self._contacts.unsealed(rows)
        language = _LANGUAGES.get(contact.language, Language.KOREAN) if contact else Language.KOREAN
        words, now_ms = words_in(language), self._clock.now_ms()
        kind = message.message_kind
        repeat_ms = None
        if kind is MessageKind.INSTRUCTION:
            repeat_ms = _repeat_ms(translate.instruction_from_json(message.instruction), None, 0, now_ms=now_ms)
        worded = replace(
            message,
            text=words.text,
            language=language.value,
            who_text=words.who,
            where_text=words.where,
            act_text=words.act,
            issued_ms=now_ms,
            past_ms=now_ms if kind is MessageKind.PHONE_SILENT else None,
            repeat_ms=repeat_ms,
        )
        expires_ms = repeat_ms or now_ms + (OVER_TTL_MS if kind is MessageKind.OVER else TTL_MS)
        return OpenedMessage(worded, self._sendings(worded, rows, has_contact=contact is not None, until_ms=expires_ms))

    def _repeated(
        self, message: MessageRow, rows: Sequence[ContactRow], *, is_silent: bool, now_ms: int
    ) -> OpenedMessage:
        present, repetitions = translate.instruction_from_json(message.instruction), message.repetitions + 1
        repeat_ms = _repeat_ms(present, message.receipt, repetitions, now_ms=now_ms)
        # Who called in silence has seen the instruction in her app at most. Its first sending is as new as any.
        is_first = message.in_app_only and not is_silent and message.receipt is None
        repeated = replace(
            message,
            repetitions=repetitions,
            repeat_ms=repeat_ms,
            in_app_only=is_silent,
            receipt_due_ms=now_ms + RECEIPT_WITHIN_MS if is_first else message.receipt_due_ms,
        )
        if is_silent:
            return OpenedMessage(repeated, ())
        has_contact = self._contacts.unsealed(rows) is not None
        until_ms = repeat_ms or now_ms + TTL_MS
        sendings = self._sendings(repeated, rows, has_contact=has_contact, until_ms=until_ms)
        return OpenedMessage(replace(repeated, state=SENDING if sendings else NO_WAY), sendings)

    def _sendings(
        self, message: MessageRow, rows: Sequence[ContactRow], *, has_contact: bool, until_ms: int
    ) -> list[Sending]:
        """A sending for each channel. While she calls for help in silence, nothing leaves: an app that is open reads the message."""
        device_ids = dict.fromkeys(id_ for row in rows for id_ in row.device_ids)
        channels = [*self._gateways] if has_contact and not message.in_app_only else []
        channels += [ChannelId(ChannelKind.DEVICE, id_) for id_ in device_ids]
        now_ms, outcome = self._clock.now_ms(), IN_APP if message.in_app_only else OPEN
        return [
            Sending(
                message_id=message.message_id,
                channel=channel,
                repetition=message.repetitions,
                command_id=_command_id(message, channel),
                tries=0,
                next_ms=now_ms,
                expires_ms=until_ms,
                outcome=outcome,
            )
            for channel in channels
        ]

    async def _distance(self, present: Instruction) -> Distance | None:
        """Returns the wearer's newest distance within the ring, with its trend; None if none was measured since the ring was
        entered."""
        figure, trend = present.figure, DistanceTrend.UNKNOWN
        if figure is None:
            return None
        now_m = await self._distance_m(present.partition, figure.alert_id)
        before_m = await self._distance_m(present.partition, figure.before_alert_id) if figure.before_alert_id else None
        if now_m is not None and before_m is not None:
            trend = DistanceTrend.NEARER if now_m < before_m else DistanceTrend.FARTHER
        return Distance(now_m, trend, figure.at_ms)

    async def _distance_m(self, partition: int, alert_id: str) -> float | None:
        measure = await self.measure(partition, alert_id)
        return measure.distance_m if measure is not None and measure.HasField("distance_m") else None

    async def measure(self, partition: int, alert_id: str) -> alert_pb2.Measure | None:
        """Returns the figures of an alert; None if they aren't stored within DISTANCE_TIMEOUT_S, or can't be read."""
        bus, subject = self._mesh.bus, flow.measure_subject(partition, alert_id)
        try:
            async with asyncio.timeout(DISTANCE_TIMEOUT_S):
                while bus is not None:
                    data = await bus.last_of(flow.MEASURES.name, subject)
                    if data is not None:
                        return stored.measure(data)
                    await asyncio.sleep(0.1)
        except (TimeoutError, RetryableError, InvalidField):
            logger().warning("warning_without_figure", alert_id=alert_id)
        return None


def _repeat_ms(present: Instruction, receipt: ReceiptKind | None, repetitions: int, *, now_ms: int) -> int | None:
    after_ms = repeat_after_ms(present, receipt, repetitions)
    return None if after_ms is None else now_ms + after_ms


def _command_id(message: MessageRow, channel: ChannelId) -> str:
    # The id depends only on the message, its repetition and the channel, so a second process can't send the command twice.
    if channel.kind is not ChannelKind.DEVICE:
        return ""
    return ids.hash_id("notice", message.message_id, message.repetitions, str(channel))


RETRY_DELAY_S = 1.0
"""Delay before a notice whose ledger row couldn't be stored is opened once more, seconds of wall time."""


class NoticeOpener:
    """Opens the notices of the Ministry, each in a task of its own: none delays a warning."""

    def __init__(
        self, store: WarningStore, clock: MeshClock, opener: MessageOpener, *, ledger: NoticeLedger, mesh: WarningBus
    ) -> None:
        self._store = store
        self._clock = clock
        self._opener = opener
        self._ledger = ledger
        self._mesh = mesh

    async def open(self, message: MessageRow) -> None:
        """Opens a due notice, or the message that a notice has ended. A notice whose ledger row can't be stored stays due."""
        rows = (await retried(partial(self._store.contacts_of, [message.person_id])))[message.person_id]
        if message.message_kind is MessageKind.MINISTRY_OVER:
            # She must not take the end of the notice for the end of the police's instruction.
            is_instructed = await retried(partial(self._store.is_instructed, message.person_id))
            kind = MessageKind.ONE_OVER if is_instructed else MessageKind.MINISTRY_OVER
            over = replace(message, kind=kind.value)
            await self._opener.put([self._opener.prepared(over, rows, partial(wording.over, kind))])
            return
        now_ms = self._clock.now_ms()
        refusal = _refusal_to_open(message, rows, now_ms)
        if refusal is not None:
            log_refusal(refusal, message.alert_id)
            await retried(partial(self._store.refuse, message.message_id))
            return
        distance_m = await self._distance_m(message)
        disclosures = disclosures_of(message, with_location=distance_m is not None, now_ms=now_ms)
        if not await retried(partial(self._ledger.store, self._mesh.bus, disclosures)):
            logger().warning("notice_without_ledger", message_id=message.message_id)
            await asyncio.sleep(RETRY_DELAY_S)
            return
        order_from_ms = self._opener.order_from_ms(message.order_id, rows)
        words = partial(wording.ministry, distance_m=distance_m, order_from_ms=order_from_ms)
        await self._opener.put([self._opener.prepared(message, rows, words)])

    async def _distance_m(self, message: MessageRow) -> float | None:
        """The location that may go with a notice: the distance to the wearer, metres. None if the rule of urgency doesn't hold, or
        nobody knows the distance."""
        measure = await self._opener.measure(message.partition, message.alert_id)
        if measure is None or not measure.location_allowed or not measure.HasField("distance_m"):
            return None
        return measure.distance_m


def _refusal_to_open(message: MessageRow, rows: list[ContactRow], now_ms: int) -> NoticeRefusal | None:
    """Why a notice may not be given now; None if it may. `rows` are the person's contacts, one for each case that names the person."""
    if now_ms >= message.due_ms + TTL_MS:
        return NoticeRefusal.OUTDATED
    valid = (
        row
        for row in rows
        if row.case_id == message.case_id and (row.valid_until_ms is None or now_ms < row.valid_until_ms)
    )
    return None if any(valid) else NoticeRefusal.ORDER_OVER


def disclosures_of(message: MessageRow, *, with_location: bool, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """The ledger's rows of a notice: the notice itself, and the location that goes with it, each under its article."""
    ground = NoticeGround(message.ground)
    articles = [ground.value, *([notices.location_basis(ground)] if with_location else [])]
    given = GivenNotice(
        person_id=message.person_id,
        wearer_id=message.wearer_id,
        order_id=message.order_id,
        incident_id=message.incident_id,
        at_ms=now_ms,
    )
    # A retry gives the same id, so that the ledger counts each notice once.
    return [row_of(given, article, ids.hash_id("notice", message.message_id, article)) for article in articles]


class NoticeLedger:
    """Stores the rows of notices, and keeps them for a day in case the stream loses them."""

    def __init__(self, kept: LegDisclosures) -> None:
        self._kept = kept

    async def store(self, bus: Bus | None, disclosures: Sequence[ledger_pb2.Disclosure]) -> bool:
        """Stores rows in DISCLOSURES. Returns whether all are on disk. Raises Unavailable if the leg's database refuses."""
        if bus is None:
            return False
        for disclosure in disclosures:
            subject = flow.disclosure_subject(flow.leg_user(Leg.WARNING), disclosure.disclosure_id)
            try:
                data, id_ = disclosure.SerializeToString(), disclosure.disclosure_id
                await bus.publish(subject, data, msg_id=id_, expected_last=0)
            except AlreadyStored:
                continue
            except RetryableError:
                return False
        await self._kept.keep(disclosures)
        return True
