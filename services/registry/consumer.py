"""The bus edge: disclosures that were made elsewhere. They wait in their stream while the registry is away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from services.common.messaging import dead_letters, flow, pull
from services.common.messaging.bus import Bus
from services.common.observability.readiness import ReaderHealth
from services.common.rpc.errors import InvalidField, Unavailable
from services.registry.chain import Disclosure
from services.registry.disclosures import Disclosures
from services.registry.translate_ledger import published_disclosure

T = TypeVar("T")


async def consume_disclosures(
    bus: Bus, disclosures: Disclosures, log_id: str, health: ReaderHealth | None = None
) -> None:
    """Takes them into the ledger, for ever; acknowledged is what is committed.

    The newest entry is kept with its effect, so that a stream that went back is seen, and read again from its first: the ledger knows
    each disclosure by its id.
    """
    durable, stream = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name
    after = await _retried(lambda: disclosures.newest(log_id))
    async for messages in pull.consume(bus, stream, durable, flow.DISCLOSURES.subjects, after=after, health=health):
        taken: list[Disclosure] = []
        for message in messages:
            try:
                taken.append(published_disclosure(message.subject, message.data))
            except InvalidField as error:
                # It happened and can't be read, or its publisher forged it: set aside, with an alarm, for a person.
                await dead_letters.keep(bus, durable, message, error)
        newest = max(messages, key=lambda message: message.sequence).cursor
        await _retried(partial(disclosures.take, taken, log_id, newest))
        for message in messages:
            await pull.ack(bus, message)


async def _retried(work: Callable[[], Awaitable[T]]) -> T:
    """The result of `work`, once the database answers."""
    while True:
        try:
            return await work()
        except Unavailable as error:
            await asyncio.sleep(error.retry_after_s)
