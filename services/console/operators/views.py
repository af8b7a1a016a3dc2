"""Pages for operators: devices that don't obey, report seldom, or state an accuracy that can't be true. They show no position."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from aiohttp import web

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain import reporting
from services.console.domain.people import Role
from services.console.domain.reporting import AskedDevice, MeasuredTag, Problem
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.operators import translate
from services.console.pages import assets
from services.console.services_away import unless_away
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2

OPERATORS = frozenset({Role.OPERATOR})
MAX_DEVICES = 200
"""Maximum number of devices on the page."""
MAX_HISTORY = 30
"""Maximum number of commands on the page of a device."""
PAGE_SIZE = 1_000
EXAMINED_BATCH = 5_000


class ReportingPages:
    """The list of devices that need attention, and the page of one device."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes, for operators only."""
        return [
            self._guard.get("/reporting", OPERATORS, self.reporting),
            self._guard.get("/reporting/{device}", OPERATORS, self.device),
        ]

    async def reporting(self, ask: Ask) -> web.StreamResponse:
        """Shows the devices with a problem, the worst first."""
        query = ask.request.query
        problem, text = query.get("problem", ""), query.get("text", "").strip()
        if problem and problem not in list(Problem):
            raise web.HTTPBadRequest(text=f"400: problem must be one of {', '.join(Problem)}")
        away: list[str] = []
        asked, measured = await asyncio.gather(
            unless_away("ingest", self._asked(ask), away), unless_away("geofence", self._measured(ask), away)
        )
        if asked is None and measured is None:
            raise web.HTTPServiceUnavailable(text="503: neither ingest nor an evaluator answers: load the page again")
        tags, is_partial = measured or ([], False)
        cards = reporting.joined(asked or [], tags)
        found = reporting.conspicuous(cards, problem, text)
        return assets.page(
            ask,
            "reporting.html",
            cards=found[:MAX_DEVICES],
            count=len(found),
            is_cut=len(found) > MAX_DEVICES,
            counts=reporting.counts(cards),
            asked_count=sum(bool(card.asked.asks) for card in cards),
            problems=list(Problem),
            problem=problem,
            text=text,
            away=away,
            is_partial=is_partial,
        )

    async def device(self, ask: Ask) -> web.StreamResponse:
        """Shows what a device was asked, what was delivered, and what it did."""
        try:
            device_id = fields.required_id("device", ask.request.match_info["device"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        identity = self._mesh.identity(ask.user)
        listed = await self._mesh.commands.ListReporting(
            ingest_pb2.ListReportingRequest(device_id=device_id), metadata=identity, timeout=UNARY_DEADLINE_S
        )
        commands = await self._mesh.commands.ListCommands(
            ingest_pb2.ListCommandsRequest(device_id=device_id), metadata=identity, timeout=UNARY_DEADLINE_S
        )
        away: list[str] = []
        tag = await unless_away("geofence", self._tag(ask, device_id), away)
        (card,) = reporting.joined(map(translate.asked, listed.devices), [tag] if tag else [])
        lines = [translate.history(status) for status in commands.commands]
        return assets.page(
            ask,
            "reporting_device.html",
            card=card,
            lines=reporting.newest_first(lines, MAX_HISTORY),
            is_cut=len(lines) > MAX_HISTORY,
            away=away,
        )

    async def _asked(self, ask: Ask) -> list[AskedDevice]:
        """Returns all devices of which something is asked."""
        request = ingest_pb2.ListReportingRequest(page_size=PAGE_SIZE)
        devices: list[AskedDevice] = []
        while True:
            answer = await self._mesh.commands.ListReporting(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
            devices += map(translate.asked, answer.devices)
            if not answer.next_page_token:
                return devices
            request.page_token = answer.next_page_token

    async def _measured(self, ask: Ask) -> tuple[list[MeasuredTag], bool]:
        """Returns the slow tags and those whose accuracy can't be true, and whether some partitions are missing."""
        request = geofence_pb2.ListDevicesRequest(only_conspicuous=True, page_size=EXAMINED_BATCH)
        tags: list[MeasuredTag] = []
        while True:
            answer = await self._mesh.geofence.ListDevices(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
            tags += map(translate.measured, answer.devices)
            if not answer.next_page_token:
                return tags, bool(answer.missing_partitions)
            request.page_token = answer.next_page_token

    async def _tag(self, ask: Ask, device_id: str) -> MeasuredTag | None:
        """Returns an evaluator's measures of a device; None for a protective device, and for a tag without a position."""
        try:
            answer = await self._mesh.geofence.ListDevices(
                geofence_pb2.ListDevicesRequest(device_id=device_id),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return None
            raise
        return translate.measured(answer.devices[0])
