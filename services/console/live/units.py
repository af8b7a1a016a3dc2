"""Positions of the units of a desk's own leg, read while a browser views the page. Another agency's roster is never shown."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc.aio

from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import units
from services.console.domain.live_page import LivePage
from services.console.domain.numbered_items import Item
from services.console.domain.people import Role
from services.console.live.viewers import Viewers
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import roster_pb2

CHECK_INTERVAL_S = 3.0
DEADLINE_S = 5.0


class UnitReader:
    """Keeps the units of a desk's page current."""

    def __init__(self, mesh: MeshClient, role: Role, page: LivePage, *, viewers: Viewers) -> None:
        self._mesh, self._role, self._page, self._viewers = mesh, role, page, viewers

    async def run(self) -> None:
        """Reads the units until cancelled."""
        while True:
            try:
                self._page.replace_units(await self._read() if self._viewers else {})
            except grpc.aio.AioRpcError as error:
                logger().info("units_not_read", role=self._role.value, code=error.code().name)
                # Keep the last positions, marked as unknown: an empty map would suggest that nobody is on duty.
                self._page.replace_units({id_: unit | {"unknown": True} for id_, unit in self._page.units().items()})
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _read(self) -> Mapping[str, Item]:
        state_of = units.states(self._page.assignments_of(self._role.leg))
        answer = await self._mesh.leg_of(self._role).roster.ListUnits(
            roster_pb2.ListUnitsRequest(), metadata=self._mesh.own_identity(self._role), timeout=DEADLINE_S
        )
        now_ms = self._mesh.clock.now_ms()
        known = (translate.unit(unit) for unit in answer.units)
        all_ = (units.as_json(unit, state_of, now_ms) for unit in known if unit)
        return {unit["id"]: unit for unit in all_ if unit}
