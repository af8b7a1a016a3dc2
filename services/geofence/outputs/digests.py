"""Checks that both evaluators of a partition agree: each publishes digests of its open rings and incidents, and reads the other's."""

from __future__ import annotations

from contextlib import suppress

from prometheus_client import Counter

from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.geofence.settings import GeofenceSettings
from services.geofence.state_keys import StateKeys

_DIFFER = Counter(
    "tandem_evaluators_differ", "Times that this evaluator's state differed from another evaluator's", ("partition",)
)


def begin_counting(partition: int) -> None:
    """Creates a partition's counter of differences at 0. A series that first appears at 1 shows no increase, so no alert would fire."""
    _DIFFER.labels(str(partition))


async def compare(
    bus: Bus, keys: StateKeys, settings: GeofenceSettings, *, partition: int, entry: StreamCursor, encoded: bytes
) -> None:
    """Publishes this evaluator's keyed digest after an entry, and raises an alarm where another evaluator's digest differs.

    The subject includes the entry's stamp, because a different entry with the same sequence has a different correct state.
    """
    mine, sequence = settings.replica, entry.sequence
    try:
        with suppress(AlreadyStored):
            digest = keys.digest(partition, sequence, encoded)
            await bus.publish(_subject(partition, entry, mine), digest, expected_last=0)
        for other in range(settings.replicas):
            theirs = await bus.last_of(flow.DIGESTS.name, _subject(partition, entry, other)) if other != mine else None
            if theirs is None:
                continue
            same = keys.is_same(theirs, partition, sequence, encoded=encoded)
            if same is None:
                reason = f"the digest of evaluator {other} is malformed, or made with a key that TANDEM_STATE_KEY lacks"
                logger().error("digest_not_compared", partition=partition, sequence=sequence, reason=reason)
            elif not same:
                _DIFFER.labels(str(partition)).inc()
                logger().critical("evaluators_differ", partition=partition, sequence=sequence, other=other)
    except RetryableError as error:
        logger().warning("digest_not_compared", partition=partition, sequence=sequence, reason=error.reason)


def _subject(partition: int, entry: StreamCursor, replica: int) -> str:
    return flow.digest_subject(partition, entry.sequence, entry.stored_at_ns, replica=replica)
