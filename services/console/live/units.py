"""Keeps where the units of a desk's own leg are, while somebody looks. Another agency's roster is told to nobody here."""

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
    """One desk's."""

    def __init__(self, mesh: MeshClient, role: Role) -> None:
        self._mesh, self._role = mesh, role
        self._roster = mesh.legs[ConsoleUser(role, SELF).leg].roster
        self.shown: dict[str, dict[str, Any]] = {}
        """By id, as the browser gets them."""

    async def run(
        self, is_viewed: Callable[[], bool], states: Callable[[], Mapping[str, str]], changed: Callable[[str], None]
    ) -> None:
        """Works for ever; `states` says how far each unit is, `changed` hears of each that is shown otherwise, or no more."""
        while True:
            found: dict[str, dict[str, Any]] = {}
            try:
                found = await self._read(states()) if is_viewed() else {}
            except grpc.aio.AioRpcError as error:
                logger().info("units_not_read", role=self._role.value, code=error.code().name)
                # Where they were last, and that nobody knows: an empty map would say that nobody is on duty.
                found = {id_: {**one, "unknown": True} for id_, one in self.shown.items()}
            for id_ in {*self.shown, *found}:
                if self.shown.get(id_) != found.get(id_):
                    if id_ in found:
                        self.shown[id_] = found[id_]
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
        all_ = (units.told(one, states, now_ms) for one in known if one)
        return {one["id"]: one for one in all_ if one}
