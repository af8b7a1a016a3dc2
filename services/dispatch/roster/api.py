"""gRPC service of the roster: the desk of a leg maintains the leg's offices and units."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.dispatch.domain.roster import Status
from services.dispatch.leg.api import admit
from services.dispatch.leg.service import LegService
from services.dispatch.roster import store, translate
from tandem.dispatch.v1 import roster_pb2, roster_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_OUTCOME = roster_pb2.RosterOutcome.ValueType


class RosterApi(roster_pb2_grpc.RosterServiceServicer):
    """RosterService of one leg."""

    def __init__(self, leg: LegService, clock: MeshClock) -> None:
        self._leg = leg
        self._clock = clock

    async def PutOffices(
        self, request: roster_pb2.PutOfficesRequest, context: Context
    ) -> roster_pb2.PutOfficesResponse:
        """Stores offices, all of them or none."""
        admit(self._leg.name)
        given = translate.offices(request.offices)
        outcomes = await self._leg.change_roster(lambda connection: store.put_offices(connection, given))
        return roster_pb2.PutOfficesResponse(outcomes=[_OUTCOME(outcome) for outcome in outcomes])

    async def PutUnits(self, request: roster_pb2.PutUnitsRequest, context: Context) -> roster_pb2.PutUnitsResponse:
        """Stores units, all of them or none."""
        admit(self._leg.name)
        given = translate.units(request.units)
        outcomes = await self._leg.change_roster(
            lambda connection: store.put_units(connection, given), [unit.unit_id for unit in given if unit.removed]
        )
        return roster_pb2.PutUnitsResponse(outcomes=[_OUTCOME(outcome) for outcome in outcomes])

    async def ReportUnit(
        self, request: roster_pb2.ReportUnitRequest, context: Context
    ) -> roster_pb2.ReportUnitResponse:
        """Stores the status and the position that a unit reports."""
        admit(self._leg.name)
        unit_id, report = translate.report(request, self._clock.now_ms())
        leaving = [unit_id] if report.status is Status.OFF else []
        outcome = await self._leg.change_roster(
            lambda connection: store.report_unit(connection, unit_id, report), leaving
        )
        return roster_pb2.ReportUnitResponse(outcome=_OUTCOME(outcome))

    async def ListUnits(self, request: roster_pb2.ListUnitsRequest, context: Context) -> roster_pb2.ListUnitsResponse:
        """Returns the offices and units of this leg, with the last report of each unit."""
        admit(self._leg.name)
        office_id = fields.required_id("office_id", request.office_id) if request.office_id else ""
        offices, units, engaged = await self._leg.store.transaction(
            lambda connection: (
                store.offices(connection),
                store.units(connection),
                store.engaged(connection),
            )
        )
        return roster_pb2.ListUnitsResponse(
            offices=[translate.office_message(office) for office in offices.values()],
            units=[
                translate.listed_unit(unit, report, next(iter(engaged.get(unit_id, {}).values()), ""))
                for unit_id, (unit, report) in units.items()
                if office_id in ("", unit.office_id)
            ],
        )
