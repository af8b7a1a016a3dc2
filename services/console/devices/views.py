"""Pages of devices for desks: those of the own side that need somebody, and one device with its commands and receipts."""

from __future__ import annotations

import asyncio

import grpc.aio
from aiohttp import web

from services.common import fields
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.devices import domain
from services.console.devices.domain import WatchedDevice
from services.console.devices.reading import DeviceReader
from services.console.domain import reporting
from services.console.domain.people import DESKS
from services.console.domain.reporting import AskedDevice, HistoryLine
from services.console.guard import Ask, RouteGuard, http_status
from services.console.mesh import MeshClient
from services.console.operators import translate as operators
from services.console.pages import assets
from services.console.services_away import unless_away
from tandem.ingest.v1 import ingest_pb2

MAX_HISTORY = 30
MAX_LISTED = 200


class DevicePages:
    """Pages of the devices of a desk's own side."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, reader: DeviceReader) -> None:
        self._guard, self._mesh, self._reader = guard, mesh, reader

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes, for desks only. Operators have pages of their own."""
        return [
            self._guard.get("/watched-devices", DESKS, self.in_trouble),
            self._guard.get("/watched-devices/{device}", DESKS, self.device),
        ]

    async def in_trouble(self, ask: Ask) -> web.StreamResponse:
        """Shows the devices in trouble, the one that dies first at the top."""
        away: list[str] = []
        devices = await self._reader.in_trouble(ask.user, away)
        return assets.page(
            ask,
            "watched_devices.html",
            devices=(devices or [])[:MAX_LISTED],
            count=len(devices or []),
            is_cut=len(devices or []) > MAX_LISTED,
            away=away,
            now_ms=self._mesh.clock.now_ms(),
            hours_left=domain.hours_left,
        )

    async def device(self, ask: Ask) -> web.StreamResponse:
        """Shows a device, or says why this desk doesn't see it. The other agency's device looks like one that isn't registered."""
        device_id = ask.request.match_info["device"]
        try:
            fields.required_id("device", device_id)
            return await self._show(ask, device_id)
        except InvalidField:
            return self._refused(ask, 400)
        except grpc.aio.AioRpcError as error:
            logger().info("device_not_shown", code=error.code().name)
            return self._refused(ask, http_status(error.code()))

    async def _show(self, ask: Ask, device_id: str) -> web.StreamResponse:
        away: list[str] = []
        device, asked, lines = await asyncio.gather(
            self._reader.of_device(ask.user, device_id, away),
            unless_away("ingest", self._asked(ask, device_id), away),
            unless_away("ingest", self._history(ask, device_id), away),
        )
        return self._page(
            ask, device, asked if asked is not None else AskedDevice(device_id), lines=lines or [], away=away
        )

    def _page(
        self, ask: Ask, device: WatchedDevice, asked: AskedDevice, *, lines: list[HistoryLine], away: list[str]
    ) -> web.StreamResponse:
        return assets.page(
            ask,
            "watched_device.html",
            device=device,
            asked=asked,
            ask_in_effect=next((each for each in asked.asks if not each.refused), None),
            lines=reporting.newest_first(lines, MAX_HISTORY),
            is_cut=len(lines) > MAX_HISTORY,
            away=sorted(set(away)),
            now_ms=self._mesh.clock.now_ms(),
            hours_left=domain.hours_left,
        )

    def _refused(self, ask: Ask, status: int) -> web.StreamResponse:
        return assets.page(ask, "device_refused.html", status=status, path="/watched-devices", key=f"device_{status}")

    async def _asked(self, ask: Ask, device_id: str) -> AskedDevice:
        answer = await self._mesh.commands.ListReporting(
            ingest_pb2.ListReportingRequest(device_id=device_id),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
        return operators.asked(answer.devices[0])

    async def _history(self, ask: Ask, device_id: str) -> list[HistoryLine]:
        answer = await self._mesh.commands.ListCommands(
            ingest_pb2.ListCommandsRequest(device_id=device_id),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
        return [operators.history(status) for status in answer.commands]
