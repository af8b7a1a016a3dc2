"""Positions of the units of a desk's own leg, read while a browser views the page. Another agency's roster is never shown."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import grpc.aio

from services.common.observability.telemetry import logger
from services.console import translate
from services.console.domain import units
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import roster_pb2

CHECK_INTERVAL_S = 3.0
DEADLINE_S = 5.0


class Units:
    """Units on one desk's map."""

    def __init__(self, mesh: MeshClient, role: Role) -> None:
        self._mesh, self._role = mesh, role
        self._roster = mesh.legs[ConsoleUser(role, SELF).leg].roster
        self.shown: dict[str, dict[str, Any]] = {}
        """Units by id, as the browser gets them."""

    async def run(
        self, is_viewed: Callable[[], bool], states: Callable[[], Mapping[str, str]], changed: Callable[[str], None]
    ) -> None:
        """Reads the units until cancelled. `states` gives their assignments' states; `changed` gets the id of each changed unit."""
        while True:
            current: dict[str, dict[str, Any]] = {}
            try:
                current = await self._read(states()) if is_viewed() else {}
            except grpc.aio.AioRpcError as error:
                logger().info("units_not_read", role=self._role.value, code=error.code().name)
                # Keep the last positions, marked as unknown: an empty map would suggest that nobody is on duty.
                current = {id_: {**unit, "unknown": True} for id_, unit in self.shown.items()}
            for id_ in {*self.shown, *current}:
                if self.shown.get(id_) != current.get(id_):
                    if id_ in current:
                        self.shown[id_] = current[id_]
                    else:
                        del self.shown[id_]
                    changed(id_)
            await asyncio.sleep(CHECK_INTERVAL_S)

    async def _read(self, states: Mapping[str, str]) -> dict[str, dict[str, Any]]:
        answer = await self._roster.ListUnits(
            roster_pb2.ListUnitsRequest(), metadata=self._mesh.own(self._role), timeout=DEADLINE_S
        )
        now_ms = self._mesh.clock.now_ms()
        known = (translate.unit(unit) for unit in answer.units)
        all_ = (units.as_json(unit, states, now_ms) for unit in known if unit)
        return {unit["id"]: unit for unit in all_ if unit}
