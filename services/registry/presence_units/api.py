"""gRPC servicer of the PresenceUnitService: puts and ends home units and beacons."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common.rpc import server
from services.common.rpc.errors import InvalidField
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.presence_units import translate
from services.registry.presence_units.service import PresenceUnits
from services.registry.reconciliation.domain import Agency
from services.registry.records.area import ServiceArea
from services.registry.records.translate import outcome_to_proto
from tandem.registry.v1 import presence_unit_pb2, presence_unit_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class PresenceUnitServicer(presence_unit_pb2_grpc.PresenceUnitServiceServicer):
    """Parses requests of the PresenceUnitService, runs the commands and builds the responses."""

    def __init__(self, units: PresenceUnits, area: ServiceArea) -> None:
        self._units = units
        self._area = area

    async def PutPresenceUnit(
        self, request: presence_unit_pb2.PutPresenceUnitRequest, context: _Context
    ) -> presence_unit_pb2.PutPresenceUnitResponse:
        if not request.HasField("presence_unit"):
            raise InvalidField("presence_unit", "is missing")
        try:
            unit = translate.parse_unit(request.presence_unit)
            translate.check_area(unit, self._area)
        except InvalidField as error:
            raise error.under("presence_unit") from None
        outcome = await completed(self._units.put(_agency(), unit))
        return presence_unit_pb2.PutPresenceUnitResponse(outcome=outcome_to_proto(outcome))

    async def EndPresenceUnit(
        self, request: presence_unit_pb2.EndPresenceUnitRequest, context: _Context
    ) -> presence_unit_pb2.EndPresenceUnitResponse:
        unit_id, removed_at_ms, source_version = translate.parse_unit_end(request)
        ending = self._units.end(_agency(), unit_id, removed_at_ms, source_version=source_version)
        return presence_unit_pb2.EndPresenceUnitResponse(outcome=outcome_to_proto(await completed(ending)))


def _agency() -> Agency:
    return Agency.MOJ if server.caller().role == Role.ROLE_MOJ_RECORDS else Agency.NPA
