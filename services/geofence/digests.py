"""Whether both evaluators of a partition say the same: each publishes digests of what is open, and reads the other's."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Counter

from services.common import flow
from services.common.bus import AlreadyThere, Bus
from services.common.cursors import StreamCursor
from services.common.errors import RetryableError
from services.common.telemetry import logger
from services.geofence.settings import Settings

_DIFFER = Counter(
    "tandem_evaluators_differ", "Times that this evaluator's state wasn't that of the other", ("partition",)
)


async def compare(bus: Bus, settings: Settings, partition: int, entry: StreamCursor, digest: str) -> None:
    """Publishes the digest of what is open after an entry; that of every other evaluator must be the same, once it is there.

    The subject names the entry by its stamp, too: behind another entry that had its sequence another state was right.
    """
    mine = settings.replica
    try:
        with suppress(AlreadyThere):
            await bus.publish(_subject(partition, entry, mine), digest.encode(), expected_last=0)
        for other in range(settings.replicas):
            theirs = None
            if other != mine:
                theirs = await bus.last_of(flow.DIGESTS.name, _subject(partition, entry, other))
            if theirs is not None and theirs.decode() != digest:
                _DIFFER.labels(partition).inc()
                logger().critical("evaluators_differ", partition=partition, sequence=entry.sequence, other=other)
    except RetryableError as error:
        logger().warning("digest_not_compared", partition=partition, sequence=entry.sequence, reason=error.reason)


def _subject(partition: int, entry: StreamCursor, replica: int) -> str:
    return flow.digest_subject(partition, entry.sequence, entry.stored_at_ns, replica)
