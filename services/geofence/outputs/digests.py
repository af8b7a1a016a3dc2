"""Checks that both evaluators of a partition agree: each publishes digests of its open rings and incidents, and reads the other's."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamCursor
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.geofence.metrics import GeofenceMetrics
from services.geofence.settings import GeofenceSettings
from services.geofence.state_keys import StateKeys


@dataclass(frozen=True, slots=True)
class StateDigest:
    """Encoding of all open rings and incidents after an entry. Both evaluators of a partition must produce the same bytes."""

    entry: StreamCursor
    encoded: bytes


class Digests:
    """Publishes and compares the digests of one partition."""

    def __init__(
        self, bus: Bus, keys: StateKeys, settings: GeofenceSettings, *, partition: int, metrics: GeofenceMetrics
    ) -> None:
        self._bus, self._keys, self._partition, self._metrics = bus, keys, partition, metrics
        self._replica, self._replicas = settings.replica, settings.replicas

    async def compare(self, digest: StateDigest) -> None:
        """Publishes this evaluator's keyed digest after an entry, and raises an alarm if another evaluator's digest differs.

        The subject includes the stamp of the entry. A stream that went back gives the sequence to another entry, and the states after
        two different entries must not be compared.
        """
        partition, entry = self._partition, digest.entry
        try:
            with suppress(AlreadyStored):
                keyed = self._keys.digest(partition, entry.sequence, digest.encoded)
                await self._bus.publish(self._subject(entry, self._replica), keyed, expected_last=0)
            for other in range(self._replicas):
                if other != self._replica:
                    await self._compare(digest, other)
        except RetryableError as error:
            logger().warning("digest_not_compared", partition=partition, sequence=entry.sequence, reason=error.reason)

    async def _compare(self, digest: StateDigest, other: int) -> None:
        """Compares a digest with that of another evaluator, if that evaluator has published one. Raises Unavailable if the server
        can't be asked."""
        partition, sequence = self._partition, digest.entry.sequence
        theirs = await self._bus.last_of(flow.DIGESTS.name, self._subject(digest.entry, other))
        if theirs is None:
            return
        same = self._keys.is_same(theirs, partition, sequence, encoded=digest.encoded)
        if same is None:
            reason = f"the digest of evaluator {other} is malformed, or made with a key that TANDEM_STATE_KEY lacks"
            logger().error("digest_not_compared", partition=partition, sequence=sequence, reason=reason)
        elif not same:
            self._metrics.differs(partition)
            logger().critical("evaluators_differ", partition=partition, sequence=sequence, other=other)

    def _subject(self, entry: StreamCursor, replica: int) -> str:
        return flow.digest_subject(self._partition, entry.sequence, entry.stored_at_ns, replica=replica)
