"""Which partitions need a device's reports: the registry's KV bucket, followed as it changes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.common import flow, pull
from services.common.bus import Bus
from tandem.common.v1 import log_pb2

_STREAM = f"KV_{flow.DEVICES_BUCKET}"
_PREFIX = f"$KV.{flow.DEVICES_BUCKET}."
MISS_FORGOTTEN_S = 1.0


class Routes:
    """Partitions by device. A device that isn't here is looked up once a second at most, then it is unknown."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._partitions: dict[str, tuple[int, ...]] = {}
        self._missed_at_s: dict[str, float] = {}

    def get(self, device_id: str) -> tuple[int, ...] | None:
        """Partitions of a device, as far as the bucket's changes have arrived."""
        return self._partitions.get(device_id)

    async def look_up(self, device_id: str) -> tuple[int, ...] | None:
        """Asks the bucket itself; None where the device is unknown. Raises Unavailable."""
        now_s = asyncio.get_running_loop().time()
        if now_s - self._missed_at_s.get(device_id, -MISS_FORGOTTEN_S) < MISS_FORGOTTEN_S:
            return None
        data = await self._bus.last_of(_STREAM, _PREFIX + device_id)
        if data is None:
            if len(self._missed_at_s) > 10_000:
                self._missed_at_s.clear()
            self._missed_at_s[device_id] = now_s
            return None
        return self._learn(device_id, data)

    async def follow(self, on_change: Callable[[str, tuple[int, ...]], None]) -> None:
        """Follows the bucket for ever; `on_change` gets each device with its partitions."""
        async for messages in pull.read(self._bus, _STREAM, 1):
            for message in messages:
                device_id = message.subject.removeprefix(_PREFIX)
                on_change(device_id, self._learn(device_id, message.data))

    def _learn(self, device_id: str, data: bytes) -> tuple[int, ...]:
        partitions = tuple(log_pb2.DeviceRoute.FromString(data).partitions)
        self._partitions[device_id] = partitions
        self._missed_at_s.pop(device_id, None)
        return partitions
