"""Fixes of asked devices, and battery charges of all, that this process accepted: shared with the other ingest processes by the stream
OBSERVED.

A device may report to several processes in turn. Each of them must know all fixes, or it would see an interval that is too long.
"""

from __future__ import annotations

import asyncio
import uuid

from services.common.messaging import cursors, dead_letters, flow, pull, stored
from services.common.messaging.bus import Bus
from services.common.messaging.cursors import StreamCursor, StreamWentBack
from services.common.observability.readiness import ReaderHealth
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.ingest.batteries.charges import ReportedBatteries
from services.ingest.domain import ReportedCharge
from services.ingest.sensing.observed import ObservedReports
from tandem.ingest.v1 import battery_pb2, ingest_pb2

SHARE_INTERVAL_S = 5.0
MESSAGE_FIXES = 10_000
"""Maximum number of fixes in a message."""


class ObservedSharing:
    """Publishes this process's fixes and charges, and reads those of the others."""

    def __init__(
        self, bus: Bus, observed: ObservedReports, batteries: ReportedBatteries, *, health: ReaderHealth | None = None
    ) -> None:
        self._bus, self._observed, self._batteries, self._health = bus, observed, batteries, health
        self._subject = flow.observed_subject(uuid.uuid4().hex)
        self._cursor: StreamCursor | None = None
        """Position up to which the stream is read."""

    async def publish(self) -> None:
        """Publishes the new fixes and charges every SHARE_INTERVAL_S until cancelled. If it can't, they are dropped, because newer ones
        follow."""
        while True:
            await asyncio.sleep(SHARE_INTERVAL_S)
            fixes = self._observed.unshared()
            try:
                for first in range(0, len(fixes), MESSAGE_FIXES):
                    device_ids, fix_times_ms = zip(*fixes[first : first + MESSAGE_FIXES], strict=True)
                    message = ingest_pb2.ObservedFixes(device_ids=device_ids, fix_times_ms=fix_times_ms)
                    await self._bus.publish(self._subject, message.SerializeToString())
                await self._publish_charges()
            except RetryableError as error:
                logger().warning("fixes_not_shared", fixes=len(fixes), reason=error.reason)

    async def _publish_charges(self) -> None:
        charges = self._batteries.unshared()
        for first in range(0, len(charges), MESSAGE_FIXES):
            device_ids, charge_pcts, fix_times_ms = zip(*charges[first : first + MESSAGE_FIXES], strict=True)
            message = battery_pb2.ReportedCharges(
                device_ids=device_ids, charge_pcts=charge_pcts, fix_times_ms=fix_times_ms
            )
            await self._bus.publish(self._subject, ingest_pb2.ObservedFixes(charges=message).SerializeToString())

    async def follow(self) -> None:
        """Follows the stream until cancelled. A fix or charge that is known already changes nothing."""
        while True:
            try:
                async for messages in pull.read(self._bus, flow.OBSERVED.name, self._cursor or 1, health=self._health):
                    others = [message for message in messages if message.subject != self._subject]
                    for fixes in dead_letters.parse_or_pass_over(
                        self._bus, "ingest-observed", others, parse=lambda data, _: stored.observed_fixes(data)
                    ):
                        self._observed.accepted_elsewhere(zip(fixes.device_ids, fixes.fix_times_ms, strict=True))
                        self._batteries.accepted_elsewhere(
                            map(
                                ReportedCharge,
                                fixes.charges.device_ids,
                                fixes.charges.charge_pcts,
                                fixes.charges.fix_times_ms,
                            )
                        )
                    self._cursor = messages[-1].cursor
            except StreamWentBack as error:
                cursors.alarm(self._bus, error)
                self._cursor = None
