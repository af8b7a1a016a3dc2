"""The number of devices in trouble on the live page: that of devices, not of notices, and unknown while a service is away."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from services.common.clock import MeshClock
from services.console.domain.devices import EquipmentCard, WatchedDevice
from services.console.domain.live_page import LivePage
from services.console.domain.people import ConsoleUser, Role
from services.console.live import sources
from services.console.live.sources import DeviceNotices


class Readings:
    """Stands in for the services of devices: each reading gives the next devices, and the services that are away."""

    def __init__(self, *readings: tuple[list[WatchedDevice] | None, list[str]]) -> None:
        self._left = list(readings)
        self.is_over = asyncio.Event()

    async def in_trouble(self, user: ConsoleUser, away: list[str]) -> list[WatchedDevice] | None:
        if not self._left:
            self.is_over.set()
            await asyncio.Event().wait()
        devices, absent = self._left.pop(0)
        away += absent
        return devices


class Mesh:
    clock = MeshClock()


def device(device_id: str, *events: str, is_silent: bool = False) -> WatchedDevice:
    return WatchedDevice(device_id, EquipmentCard(device_id, "w", events, is_silent=is_silent))


async def test_the_number_is_that_of_devices_and_unknown_while_a_service_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "DEVICES_INTERVAL_S", 0.0)
    # One device with three troubles, and one that is silent without a notice.
    troubled = [device("tag-1", "STRAP_OPEN", "BATTERY_LOW", is_silent=True), device("tag-2", is_silent=True)]
    counts: list[int | None] = []
    page = LivePage(notify=lambda: counts.append(counted.count))
    counted = DeviceNotices(cast(Any, Mesh()), Role.POLICE, page)
    readings = Readings((troubled, []), (troubled, ["geofence"]), (None, ["geofence", "ingest"]), ([], []))
    counted._reader = cast(Any, readings)
    assert counted.count is None
    work = asyncio.create_task(counted.run())
    async with asyncio.timeout(60):
        await readings.is_over.wait()
    work.cancel()
    assert [count for i, count in enumerate(counts) if i == 0 or count != counts[i - 1]][-3:] == [2, None, 0]
