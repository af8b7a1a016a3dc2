"""Devices of a desk's own side on its live page: their number, and notices of low batteries and of phones without location."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import NamedTuple

from services.common.alert_phases import AlertPhase
from services.common.observability.telemetry import logger
from services.console.devices.domain import WatchedDevice
from services.console.devices.reading import DeviceReader
from services.console.domain.live_page import LivePage
from services.console.domain.numbered_items import Item
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.mesh import MeshClient

CHECK_INTERVAL_S = 10.0
LOW_BATTERY, LOCATION_OFF = "LOW_BATTERY", "PHONE_LOCATION_OFF"


class DeviceTrouble(NamedTuple):
    """A trouble of a device of which its desk is notified once, until it is over."""

    device_id: str
    kind: str


class DeviceNotices:
    """Counts the devices in trouble for the live page, and adds a notice for each device whose battery became low and each phone whose
    app lost its location."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage) -> None:
        self._reader, self._clock, self._role, self._page = DeviceReader(mesh), mesh.clock, role, page
        self._known: set[DeviceTrouble] = set()
        """Troubles that have a notice."""
        self.count: int | None = None
        """Number of devices in trouble; None while it isn't known."""

    async def run(self) -> None:
        """Checks the devices until cancelled. While a service is away, no trouble counts as over."""
        while True:
            away: list[str] = []
            devices = await self._reader.in_trouble(ConsoleUser(self._role, SELF), away)
            if away:
                logger().info("batteries_not_read", role=self._role.value, away=away)
            self.put(devices or [], is_complete=not away)
            self._set_count(None if away else len(devices or []))
            await asyncio.sleep(CHECK_INTERVAL_S)

    def put(self, devices: list[WatchedDevice], *, is_complete: bool) -> None:
        """Adds notices of troubles that weren't there before, and forgets those that are over."""
        found = {DeviceTrouble(device.device_id, kind): device for device in devices for kind in _kinds(device)}
        for trouble in found.keys() - self._known:
            self._page.add_alert(_notice(found[trouble], trouble.kind, self._clock.now_ms()))
        self._known = set(found) if is_complete else self._known | set(found)

    def _set_count(self, count: int | None) -> None:
        if count != self.count:
            self.count = count
            self._page.count_change()


def _kinds(device: WatchedDevice) -> Iterator[str]:
    if device.is_low:
        yield LOW_BATTERY
    if device.location_trouble:
        yield LOCATION_OFF


def _notice(device: WatchedDevice, kind: str, now_ms: int) -> Item:
    """A notice in the form of an alert of the live page. It belongs to no incident, so it makes no sound."""
    battery = device.battery if kind == LOW_BATTERY else None
    return {
        "id": f"{'battery' if kind == LOW_BATTERY else 'location'}-{device.device_id}-{now_ms}",
        "at": now_ms,
        "decided": now_ms,
        "kind": kind,
        "phase": AlertPhase.BEGUN.value,
        "demand": "NOTIFY",
        "device": device.device_id,
        "charge": battery.charge_pct if battery else None,
        "empty": battery.empty_ms if battery else None,
        "incident": "",
        "order": "",
        "wearer": device.subject_id,
        "target": "",
        "ring": 0,
        "outage": "",
        "distance": None,
        "exercise": False,
    }
