"""Bus consumer for disclosures of other services. While the registry is down, disclosures wait in the stream DISCLOSURES."""

from __future__ import annotations

import asyncio
from functools import partial

from services.common.messaging import dead_letters, flow, pull
from services.common.messaging.bus import Bus
from services.common.observability.readiness import ReaderHealth
from services.common.priority import PriorityGate
from services.common.retrying import retried
from services.common.rpc.errors import Unavailable
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import published_disclosure
from services.registry.metrics import PutOff

LINGER_S = 0.25
"""Time for which messages are collected after the first one, seconds. A share begins soon after an offer, whose way to the desks goes
first."""
COALESCE_S = 1.0
"""Pause after a batch while no more messages wait, seconds. The shares of that time then come in one batch and one transaction. It is
well below `pull.ACK_WAIT_S`."""


async def consume_disclosures(
    bus: Bus,
    disclosures: Disclosures,
    log_id: str,
    *,
    gate: PriorityGate,
    put_off: PutOff,
    health: ReaderHealth | None = None,
) -> None:
    """Append published disclosures to the ledger until cancelled. Messages are acknowledged after the commit.

    Each disclosure is on disk in DISCLOSURES before its first position leaves, so the ledger may follow in idle time.

    The cursor of the newest entry is committed with the disclosures. With this cursor, `pull.consume` notices a stream that went
    back, and reads the stream again from its first entry. The ledger ignores a disclosure whose id it already has.
    """
    durable, stream = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name
    after = await retried(lambda: disclosures.newest(log_id), on=Unavailable)
    async for messages in pull.consume(
        bus, stream, durable, subjects=flow.DISCLOSURES.subjects, after=after, health=health, linger_s=LINGER_S
    ):
        newest = max(messages, key=lambda message: message.sequence)
        put_off.note(len(messages) + newest.pending, messages[0].stamp_ms)
        async with gate.record():
            # A disclosure may be forged, so a person has to look at an unreadable one: the dead letter raises an alarm.
            accepted = await dead_letters.parse_or_keep(
                bus, durable, messages, parse=lambda data, subject: published_disclosure(subject, data)
            )
            await retried(partial(disclosures.accept, accepted, log_id, newest.cursor), on=Unavailable)
            for message in messages:
                await pull.ack(bus, message)
        put_off.note(newest.pending, newest.stamp_ms)
        if not newest.pending:
            await asyncio.sleep(COALESCE_S)
