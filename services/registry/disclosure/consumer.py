"""Bus consumer for disclosures of other services. While the registry is down, disclosures wait in the stream DISCLOSURES."""

from __future__ import annotations

from functools import partial

from services.common.messaging import dead_letters, flow, pull
from services.common.messaging.bus import Bus
from services.common.observability.readiness import ReaderHealth
from services.common.retrying import retried
from services.common.rpc.errors import Unavailable
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import published_disclosure


async def consume_disclosures(
    bus: Bus, disclosures: Disclosures, log_id: str, *, health: ReaderHealth | None = None
) -> None:
    """Append published disclosures to the ledger until cancelled. Messages are acknowledged after the commit.

    The cursor of the newest entry is committed with the disclosures. With this cursor, `pull.consume` notices a stream that went
    back, and reads the stream again from its first entry. The ledger ignores a disclosure whose id it already has.
    """
    durable, stream = flow.DISCLOSURES_DURABLE, flow.DISCLOSURES.name
    after = await retried(lambda: disclosures.newest(log_id), on=Unavailable)
    async for messages in pull.consume(
        bus, stream, durable, subjects=flow.DISCLOSURES.subjects, after=after, health=health
    ):
        # A disclosure may be forged, so a person has to look at an unreadable one: the dead letter raises an alarm.
        accepted = await dead_letters.parse_or_keep(
            bus, durable, messages, parse=lambda data, subject: published_disclosure(subject, data)
        )
        newest = max(messages, key=lambda message: message.sequence).cursor
        await retried(partial(disclosures.accept, accepted, log_id, newest), on=Unavailable)
        for message in messages:
            await pull.ack(bus, message)
