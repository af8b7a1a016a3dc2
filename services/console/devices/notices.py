"""Notices of low batteries on a desk's live page: each agency's desk hears of the devices of its own side, once for each fall."""

from __future__ import annotations

import asyncio

from services.common.observability.telemetry import logger
from services.console.devices.domain import WatchedDevice
from services.console.devices.reading import DeviceReader
from services.console.domain.live_page import LivePage
from services.console.domain.numbered_items import Item
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.mesh import MeshClient

CHECK_INTERVAL_S = 10.0


class BatteryNotices:
    """Adds a notice to the live page for each device whose battery became low."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage) -> None:
        self._reader, self._clock, self._role, self._page = DeviceReader(mesh), mesh.clock, role, page
        self._low: set[str] = set()
        """Devices whose low battery has a notice."""

    async def run(self) -> None:
        """Checks the batteries until cancelled. While a service is away, no device counts as charged."""
        while True:
            away: list[str] = []
            devices = await self._reader.in_trouble(ConsoleUser(self._role, SELF), away)
            if away:
                logger().info("batteries_not_read", role=self._role.value, away=away)
            self.put(devices or [], is_complete=not away)
            await asyncio.sleep(CHECK_INTERVAL_S)

    def put(self, devices: list[WatchedDevice], *, is_complete: bool) -> None:
        """Adds notices of devices that weren't low before, and forgets those that were charged."""
        low = {device.device_id: device for device in devices if device.is_low}
        for device_id in low.keys() - self._low:
            self._page.add_alert(_notice(low[device_id], self._clock.now_ms()))
        self._low = set(low) if is_complete else self._low | set(low)


def _notice(device: WatchedDevice, now_ms: int) -> Item:
    """A notice in the form of an alert of the live page. It belongs to no incident."""
    return {
        "id": f"battery-{device.device_id}-{now_ms}",
        "at": now_ms,
        "decided": now_ms,
        "kind": "LOW_BATTERY",
        "demand": "NOTIFY",
        "device": device.device_id,
        "charge": device.battery.charge_pct if device.battery else None,
        "empty": device.battery.empty_ms if device.battery else None,
        "incident": "",
        "order": "",
        "wearer": device.subject_id,
        "target": "",
        "ring": 0,
        "outage": "",
        "distance": None,
        "exercise": False,
    }
