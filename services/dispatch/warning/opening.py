"""Opens due messages: writes the text in the person's language, and creates a sending for each channel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from services.common import ids
from services.common.clock import MeshClock
from services.common.messaging import flow, stored
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.common.rpc.errors import InvalidField, RetryableError
from services.dispatch.domain.enums import Demand
from services.dispatch.warning import wording
from services.dispatch.warning.channels import WarningBus
from services.dispatch.warning.consumer import TTL_MS
from services.dispatch.warning.contacts import ContactBook
from services.dispatch.warning.domain import ChannelId, ChannelKind, Notice
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import OPEN, ContactRow, DueSending, MessageRow, OpenedMessage, Sending
from services.dispatch.warning.wording import DistanceTrend, Language
from tandem.common.v1 import alert_pb2, contact_pb2

DISTANCE_TIMEOUT_S = 1.0
"""Maximum wait for the distance in a message, seconds. Distances are stored after their alerts. After the wait, the text has none."""
_LANGUAGES = {contact_pb2.LANGUAGE_ENGLISH: Language.ENGLISH}


class MessageOpener:
    """Opens the messages of one leg."""

    def __init__(
        self,
        store: WarningStore,
        clock: MeshClock,
        contacts: ContactBook,
        *,
        gateways: Sequence[str],
        mesh: WarningBus,
    ) -> None:
        self._store, self._clock, self._contacts, self._mesh = store, clock, contacts, mesh
        self._gateways = [ChannelId(ChannelKind.GATEWAY, name) for name in gateways]

    async def open(self, due: Sequence[MessageRow], contacts: Mapping[str, Sequence[ContactRow]]) -> list[DueSending]:
        """Opens messages in one transaction, and returns all sendings that are due then. `contacts` are the persons', by person id."""
        opened = [await self._opened(message, contacts[message.person_id]) for message in due]
        sendings = await retried(partial(self._store.open, opened))
        for opened_message in opened:
            message = opened_message.message
            fields = {"message_id": message.message_id, "notice": message.notice, "ways": len(opened_message.sendings)}
            logger().info("warning_opened", **fields)
        return sendings

    async def with_others(self, message: MessageRow) -> MessageRow:
        """Returns the message that a warning or notice is over, as ONE_OVER if the person is still warned in another incident.

        She can't know which of two wearers a message is about, or that an incident goes on as another one under a new tag.
        """
        is_warned = await retried(partial(self._store.is_warned_elsewhere, message))
        return replace(message, notice=Notice.ONE_OVER.value) if is_warned else message

    async def _opened(self, message: MessageRow, rows: Sequence[ContactRow]) -> OpenedMessage:
        if Notice(message.notice) is Notice.OVER:
            message = await self.with_others(message)
        distance_m, change = await self._distance_and_trend(message)
        text = partial(
            wording.text,
            Notice(message.notice),
            Demand(message.demand),
            ring_m=message.ring_m,
            of_place=message.of_place,
            distance_m=distance_m,
            change=change,
            drill=message.drill,
        )
        return self.prepared(message, rows, text)

    def prepared(
        self, message: MessageRow, rows: Sequence[ContactRow], text_in: Callable[[Language], str]
    ) -> OpenedMessage:
        """Returns a message with its text in the person's language, and a sending for each channel. `rows` are her contacts."""
        contact = self._contacts.unsealed(rows)
        language = _LANGUAGES.get(contact.language, Language.KOREAN) if contact else Language.KOREAN
        text = text_in(language)
        device_ids = dict.fromkeys(id_ for row in rows for id_ in row.device_ids)
        channels = [*self._gateways] if contact else []
        channels += [ChannelId(ChannelKind.DEVICE, id_) for id_ in device_ids]
        now_ms = self._clock.now_ms()
        sendings = [_sending(message, channel, now_ms) for channel in channels]
        return OpenedMessage(message=message, text=text, language=language.value, sendings=sendings)

    async def _distance_and_trend(self, message: MessageRow) -> tuple[float | None, DistanceTrend]:
        """Returns the wearer's distance, metres, and its trend since the previous alert. Both are unknown for notices but CHANGED."""
        if Notice(message.notice) is not Notice.CHANGED or self._mesh.bus is None:
            return None, DistanceTrend.UNKNOWN
        now_m = await self._distance_m(message.partition, message.alert_id)
        before_m = (
            await self._distance_m(message.partition, message.before_alert_id) if message.before_alert_id else None
        )
        if now_m is None or before_m is None:
            return now_m, DistanceTrend.UNKNOWN
        return now_m, DistanceTrend.NEARER if now_m < before_m else DistanceTrend.FARTHER

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


def _sending(message: MessageRow, channel: ChannelId, now_ms: int) -> Sending:
    # The id depends only on the message and the channel, so a second process can't send the command twice.
    command_id = ids.hash_id("notice", message.message_id, str(channel)) if channel.kind is ChannelKind.DEVICE else ""
    return Sending(
        message_id=message.message_id,
        channel=channel,
        command_id=command_id,
        tries=0,
        next_ms=now_ms,
        expires_ms=message.due_ms + TTL_MS,
        outcome=OPEN,
    )
