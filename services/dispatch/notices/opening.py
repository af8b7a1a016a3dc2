"""Opens due notices of the Ministry: checks that the order still protects the person, stores the ledger's rows, and words the text."""

from __future__ import annotations

import asyncio
from functools import partial

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.retrying import retried
from services.dispatch.domain.enums import Demand
from services.dispatch.notices.domain import NoticeRefusal
from services.dispatch.notices.ledger import NoticeLedger, disclosures_of
from services.dispatch.notices.store import log_refusal
from services.dispatch.warning import wording
from services.dispatch.warning.channels import WarningBus
from services.dispatch.warning.consumer import TTL_MS
from services.dispatch.warning.domain import Notice
from services.dispatch.warning.opening import MessageOpener
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import ContactRow, MessageRow

RETRY_DELAY_S = 1.0
"""Delay before a notice whose ledger row couldn't be stored is opened once more, seconds of wall time."""


class NoticeOpener:
    """Opens the notices of the Ministry, each in a task of its own: none delays a warning."""

    def __init__(
        self, store: WarningStore, clock: MeshClock, opener: MessageOpener, *, ledger: NoticeLedger, mesh: WarningBus
    ) -> None:
        self._store, self._clock, self._opener, self._ledger, self._mesh = store, clock, opener, ledger, mesh

    async def open(self, message: MessageRow) -> None:
        """Opens a due notice, or the message that a notice has ended. A notice whose ledger row can't be stored stays due."""
        rows = (await retried(partial(self._store.contacts_of, [message.person_id])))[message.person_id]
        if Notice(message.notice) is Notice.MINISTRY_OVER:
            await self._send(await self._opener.with_others(message), rows, None)
            return
        now_ms = self._clock.now_ms()
        refusal = _refusal(message, rows, now_ms)
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
        await self._send(message, rows, distance_m)

    async def _distance_m(self, message: MessageRow) -> float | None:
        """The location that may go with a notice: the distance to the wearer, metres. None if the rule of urgency doesn't hold, or
        nobody knows the distance."""
        measure = await self._opener.measure(message.partition, message.alert_id)
        if measure is None or not measure.location_allowed or not measure.HasField("distance_m"):
            return None
        return measure.distance_m

    async def _send(self, message: MessageRow, rows: list[ContactRow], distance_m: float | None) -> None:
        text = partial(wording.text, Notice(message.notice), Demand(message.demand), distance_m=distance_m)
        opened = self._opener.prepared(message, rows, text)
        await retried(partial(self._store.open, [opened]))
        fields = {"message_id": message.message_id, "notice": message.notice, "ways": len(opened.sendings)}
        logger().info("warning_opened", **fields)


def _refusal(message: MessageRow, rows: list[ContactRow], now_ms: int) -> NoticeRefusal | None:
    """Why a notice may not be given now; None if it may. `rows` are the person's contacts, one for each case that names the person."""
    if now_ms >= message.due_ms + TTL_MS:
        return NoticeRefusal.OUTDATED
    valid = (
        row
        for row in rows
        if row.case_id == message.case_id and (row.valid_until_ms is None or now_ms < row.valid_until_ms)
    )
    return None if any(valid) else NoticeRefusal.ORDER_OVER
