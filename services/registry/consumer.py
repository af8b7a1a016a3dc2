"""The bus edge: disclosures that were made elsewhere. They wait in their stream while the registry is away."""

from __future__ import annotations

import asyncio

from services.common import flow, pull
from services.common.bus import Bus
from services.common.errors import InvalidField, Unavailable
from services.common.readiness import ReaderHealth
from services.registry.chain import Disclosure
from services.registry.disclosures import Disclosures
from services.registry.translate_ledger import parse_disclosure


async def consume_disclosures(bus: Bus, disclosures: Disclosures, health: ReaderHealth | None = None) -> None:
    """Takes them into the ledger, for ever; acknowledged is what is committed."""
    durable, stream = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name
    async for messages in pull.consume(bus, stream, durable, flow.DISCLOSURES.subjects, health=health):
        taken: list[Disclosure] = []
        for message in messages:
            try:
                taken.append(parse_disclosure(message.data))
            except InvalidField as error:
                # It happened, and can't be told as it was sent: set aside, with an alarm, for a person.
                subject = flow.parked_subject(durable, stream, message.sequence)
                await bus.park(subject, stream, message.sequence, durable, str(error))
        while taken:
            try:
                await disclosures.take(taken)
                break
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s)
        for message in messages:
            await pull.ack(bus, message)
