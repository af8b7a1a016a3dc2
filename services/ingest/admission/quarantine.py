"""Counts of refused reports by device, sender and reason. The reports' content isn't kept, because no legal basis allows it.

Every few seconds the counts go into a stream of bounded size. So they outlive the process, and the counts of all processes add up.
"""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from services.common import times
from services.common.clock import MeshClock
from services.common.messaging import dead_letters, flow, stored
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError
from services.ingest.domain import Reason
from services.ingest.held import read_held
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2

FLUSH_INTERVAL_S = 5.0
MAX_KEYS = 10_000
"""Maximum number of keys between two flushes. Refusals with further keys are counted without their device."""
MAX_SENDER_KEYS = 500
"""Maximum number of the keys of a vendor or a phone, so that a sender of invented ids doesn't displace the counts of others."""
MESSAGE_KEYS = 1_000
MAX_LISTED = 10_000
FULL_SHARE = 0.9
"""Fill level of the stream, 0 to 1, from which missing old messages count as dropped for its size. Below it they only aged out."""

_COUNT_MAX = (1 << 63) - 1


class _Key(NamedTuple):
    """Key of a count of refused reports."""

    device_id: str
    sender: str
    code: int

    @classmethod
    def of(cls, quarantined: ingest_pb2.Quarantined) -> _Key:
        return cls(quarantined.device_id, quarantined.sender, quarantined.code)


class Quarantine:
    """Counts refused reports, and lists the counts of all processes."""

    def __init__(self, bus: Bus, clock: MeshClock, metrics: IngestMetrics) -> None:
        self._bus, self._clock, self._metrics = bus, clock, metrics
        self._subject = flow.quarantine_subject(uuid.uuid4().hex)
        self._counts: dict[_Key, ingest_pb2.Quarantined] = {}
        self._keys_of: Counter[str] = Counter()
        """Number of keys since the last flush, by the SPIFFE id of the vendor, or the device of the phone."""
        self._devices_merged = False
        """Whether a refusal was counted without its device since the last flush, because there were too many keys."""

    def refused(self, sender: str, device_id: str, reason: Reason, *, phone_id: str = "") -> None:
        """Counts a refused report. `device_id` may be any text; a text of more than 64 characters is dropped.

        `phone_id` is the device whose token the request had. Phones have no SPIFFE id, so without it they would share one bound.
        """
        self._metrics.refused.labels(reason.name).inc()
        now = times.to_timestamp(self._clock.now_ms())
        quarantined = ingest_pb2.Quarantined(
            device_id=device_id if len(device_id) <= 64 else "",
            sender=sender,
            code=ingest_pb2.RefusalCode.ValueType(reason.value),
            count=1,
            first=now,
            last=now,
        )
        self._count(quarantined, sender or phone_id)

    async def run(self) -> None:
        """Flushes the counts every FLUSH_INTERVAL_S until cancelled, and once at the end."""
        try:
            while True:
                await asyncio.sleep(FLUSH_INTERVAL_S)
                await self._flush()
        finally:
            await self._flush()

    async def listed(self, device_id: str) -> ingest_pb2.ListQuarantineResponse:
        """Returns the counts of all processes for a device or, if `device_id` is empty, for all devices. Raises Unavailable."""
        totals: dict[_Key, ingest_pb2.Quarantined] = {}
        stream = flow.QUARANTINE.name
        bounds, merged = await self._bus.bounds_of(stream), self._devices_merged
        async for messages in read_held(self._bus, stream, bounds):
            own = [message for message in messages if flow.QUARANTINE.holds(message.subject)]
            for counts in dead_letters.parse_or_pass_over(
                self._bus, "ingest-quarantine", own, parse=lambda data, _: stored.quarantine_counts(data)
            ):
                merged = merged or counts.devices_merged
                _add_all(totals, counts.quarantined, device_id)
        _add_all(totals, list(self._counts.values()), device_id)
        newest = sorted(totals.values(), key=lambda quarantined: -times.from_timestamp(quarantined.last))
        return ingest_pb2.ListQuarantineResponse(
            quarantined=newest[:MAX_LISTED],
            incomplete=len(newest) > MAX_LISTED or merged or (bounds.first > 1 and await self._is_full()),
        )

    async def _is_full(self) -> bool:
        """Whether the stream drops old counts because of its size limit. Raises Unavailable."""
        answer = await self._bus.api(f"STREAM.INFO.{flow.QUARANTINE.name}", {})
        held: int = answer["state"]["bytes"]
        return held >= FULL_SHARE * flow.QUARANTINE.max_bytes

    async def _flush(self) -> None:
        flushed, self._counts = self._counts, {}
        merged, self._devices_merged = self._devices_merged, False
        self._keys_of.clear()
        left = list(flushed.values())
        while left:
            chunk, left = left[:MESSAGE_KEYS], left[MESSAGE_KEYS:]
            data = ingest_pb2.QuarantineCounts(quarantined=chunk, devices_merged=merged).SerializeToString()
            try:
                await self._bus.publish(self._subject, data)
            except RetryableError as error:
                # The outcome may be unknown: counting twice is better than losing counts.
                logger().warning("quarantine_not_kept", reason=error.reason)
                self._devices_merged = self._devices_merged or merged
                for quarantined in (*chunk, *left):
                    self._count(quarantined, quarantined.sender)
                return

    def _count(self, quarantined: ingest_pb2.Quarantined, counted_for: str) -> None:
        if _Key.of(quarantined) not in self._counts:
            if len(self._counts) >= MAX_KEYS or self._keys_of[counted_for] >= MAX_SENDER_KEYS:
                self._devices_merged = self._devices_merged or bool(quarantined.device_id)
                quarantined.device_id = ""
            self._keys_of[counted_for] += 1
        _add(self._counts, quarantined)


def _add_all(
    totals: dict[_Key, ingest_pb2.Quarantined], counts: Iterable[ingest_pb2.Quarantined], device_id: str
) -> None:
    for count in counts:
        if not device_id or count.device_id == device_id:
            _add(totals, count)


def _add(totals: dict[_Key, ingest_pb2.Quarantined], quarantined: ingest_pb2.Quarantined) -> None:
    key = _Key.of(quarantined)
    total = totals.get(key)
    if total is None:
        totals[key] = total = ingest_pb2.Quarantined()
        total.CopyFrom(quarantined)
        return
    total.count = min(total.count + quarantined.count, _COUNT_MAX)
    if times.from_timestamp(quarantined.first) < times.from_timestamp(total.first):
        total.first.CopyFrom(quarantined.first)
    if times.from_timestamp(quarantined.last) > times.from_timestamp(total.last):
        total.last.CopyFrom(quarantined.last)
