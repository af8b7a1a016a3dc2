"""The route of her map. The app asks for it while a notice is open on its screen."""

from __future__ import annotations

from collections.abc import Iterable

import grpc
import grpc.aio
from aiohttp import web

from services.field.guard import PhoneCall, PhoneGuard, Refused
from services.field.her_map import reading
from services.field.mesh import FieldMesh

RETRY_S = 10.0
"""When the app may ask again after a region left for it a moment ago, seconds."""


class HerMapPages:
    """Her map for an enrolled phone: of the phone's own device, and of nobody else."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the map."""
        return (self._guard.get("/api/map", self._map),)

    async def _map(self, ask: PhoneCall) -> web.Response:
        try:
            made = await reading.read(self._mesh, ask.session.device_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused(429, "too_often", wait_s=RETRY_S) from None
            raise
        return web.json_response(reading.content(made))
