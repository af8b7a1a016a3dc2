"""Defects of ingest and registry: reports, commands, records and the ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from services.common.errors import RetryableError
from services.common.messaging.bus import PubAck
from services.ingest.commands.service import CommandDelivery
from services.ingest.log import LogWriter, _Line
from services.registry import ledger
from services.registry.disclosure.service import Disclosures
from services.registry.relay import Relay
from services.registry.unit_of_work import OutboxRepository
from tests.simulation.mutants.replacing import replace

ROW_DELAY_S = 5.0


def the_last_report_of_a_batch_is_lost() -> None:
    """Off by one in a batch of reports."""
    plain = LogWriter.positions

    def positions(self: LogWriter, origin: Any, given: Any, **options: Any) -> None:
        columns = {field.name: getattr(given, field.name)[: max(1, len(given) - 1)] for field in fields(given)}
        plain(self, origin, type(given)(**columns), **options)

    replace(LogWriter, "positions", positions)


def live_reports_wait_behind_kept_ones() -> None:
    """Live reports wait in the line of reports that devices had kept."""
    plain = LogWriter.positions

    def positions(self: LogWriter, origin: Any, given: Any, **options: Any) -> None:
        plain(self, origin, given, **{**options, "backfill": True})

    replace(LogWriter, "positions", positions)


def a_message_in_twenty_is_forgotten() -> None:
    """A message in twenty of the log is neither stored nor answered."""
    count = 0
    plain_next = _Line._next_items

    def next_items(self: Any) -> list[Any]:
        nonlocal count
        items = plain_next(self)
        count += bool(items)
        return [] if count % 20 == 0 else items

    replace(_Line, "_next_items", next_items)


def commands_do_not_reach_devices() -> None:
    """Commands are stored and never sent."""
    replace(CommandDelivery, "send", lambda _self, _device_id: None)
    replace(CommandDelivery, "_send_all", lambda _self, _device_id, _session: None)


def the_outbox_is_marked_before_it_is_published() -> None:
    """A crash or an error in between loses messages to the log."""

    async def publish_some(self: Relay, _still_alone: object) -> bool:
        async with self._transactions.open() as work:
            rows = await work.outbox.unsent(self._batch)
            await work.outbox.mark_sent([row.id for row in rows], self._clock.now_ms())
        if rows:
            await asyncio.sleep(0.05)
            await self._publish(rows)
        return bool(rows)

    replace(Relay, "_publish_some", publish_some)


def the_relay_does_not_retry() -> None:
    """A publication of the outbox that fails counts as sent."""

    async def publish(self: Relay, flight: Sequence[Any]) -> list[PubAck]:
        acks = []
        for row in flight:
            try:
                acks.append(await self._bus.publish(row.subject, row.payload, msg_id=row.msg_id))
            except RetryableError:
                acks.append(PubAck("", 1))
        return acks

    replace(Relay, "_publish", publish)


def the_outbox_is_read_out_of_order() -> None:
    """The newest message of the outbox is published first."""
    plain = OutboxRepository.unsent

    async def unsent(self: OutboxRepository, limit: int) -> Any:
        return (await plain(self, limit))[::-1]

    replace(OutboxRepository, "unsent", unsent)


def reads_are_answered_before_their_row() -> None:
    """A record is disclosed, and a crash in the next seconds loses its row of the ledger."""
    later: set[asyncio.Task[None]] = set()

    async def disclose(self: Disclosures, reading: Any, who: Any, grounds: Any) -> Any:
        async def write() -> None:
            await asyncio.sleep(ROW_DELAY_S)
            await self._transactions.database.visit(partial(ledger.append_disclosures, disclosures=rows))

        result, disclosed = await self._transactions.database.visit(reading)
        rows = [self._read_row(record, who, grounds) for record in disclosed]
        later.add(asyncio.create_task(write()))
        return result, [row.disclosure_id for row in rows]

    replace(Disclosures, "disclose", disclose)
