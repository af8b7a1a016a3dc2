"""A supervisor at the police who lists the open incidents of the police's leg from time to time."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import grpc.aio

from services.client.actors import DESKS
from services.client.calls import call
from services.common.failure import CommandFailed
from services.common.rpc import server
from tandem.dispatch.v1 import dispatch_pb2
from tandem.dispatch.v1.dispatch_pb2_grpc import DispatchServiceStub
from tests.simulation.kernel.world import World
from tests.simulation.mesh.processes import SECRET, address_of

LIST_INTERVAL_S = (20.0, 60.0)
"""Least and greatest time between two lists, seconds."""
PAGE_SIZE = 2
"""Incidents of a page: so few that most lists have several pages."""


class OpenList(NamedTuple):
    """A complete list of the incidents that the leg calls open."""

    asked_s: float
    """When the supervisor asked for the first page, seconds since the world's start."""
    incident_ids: frozenset[str]


class Supervisor:
    """A supervisor. The last complete list survives a crash of the supervisor's machine."""

    def __init__(self, world: World) -> None:
        self.latest = OpenList(0.0, frozenset())
        """The last complete list. Empty, and from the world's start, before the first one."""
        self.refusals: list[str] = []
        """Lists that the leg refused."""
        self._world = world

    async def run(self) -> None:
        """Lists the open incidents until the machine crashes."""
        stub = DispatchServiceStub(server.channel(address_of("dispatch-police")))
        while True:
            await asyncio.sleep(self._world.between(*LIST_INTERVAL_S))
            try:
                self.latest = await self._list(stub)
            except CommandFailed:
                continue  # the leg was away for a minute
            except grpc.aio.AioRpcError as error:
                self.refusals.append(f"ListIncidentsRequest: {error.code().name}: {error.details()}")

    async def _list(self, stub: DispatchServiceStub) -> OpenList:
        asked_s = self._world.elapsed_s
        incident_ids = set[str]()
        token = ""
        while True:
            request = dispatch_pb2.ListIncidentsRequest(only_open=True, page_size=PAGE_SIZE, page_token=token)
            page = await call(stub.ListIncidents, request, server.bearer(DESKS["police"], SECRET))
            incident_ids.update(incident.incident_id for incident in page.incidents)
            token = page.next_page_token
            if not token:
                return OpenList(asked_s, frozenset(incident_ids))
