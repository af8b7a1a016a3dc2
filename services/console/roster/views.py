"""Pages of the roster: a desk keeps its offices with their jurisdictions, its units with their shifts, and the units' states."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

import grpc.aio
from aiohttp import web

from services.common import times
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import DESKS
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.refusals import FormRefusal
from services.console.redirects import see_other
from services.console.roster import forms
from services.console.roster.forms import EXAMPLES, OfficeForm
from tandem.dispatch.v1 import roster_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub

STATUSES = ("AVAILABLE", "BUSY", "OFF")


class RosterPages:
    """The roster of a desk's own leg. No other agency and no reviewer sees it."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/roster", DESKS, self.show),
            self._guard.post("/roster/offices", DESKS, self.put_office),
            self._guard.post("/roster/units", DESKS, self.put_unit),
            self._guard.post("/roster/status", DESKS, self.report_status),
        ]

    async def show(self, ask: Ask) -> web.StreamResponse:
        """Shows offices and units, with a form for each."""
        return await self._show(ask)

    async def put_office(self, ask: Ask) -> web.StreamResponse:
        """Stores an office. A page from before another change is refused."""

        async def work(known: roster_pb2.ListUnitsResponse) -> int:
            id_ = ask.form.get("office_id", "").strip()
            stored = next((office for office in known.offices if office.office_id == id_), None)
            office = OfficeForm(ask.form).message(stored)
            answer = await self._roster(ask).PutOffices(
                roster_pb2.PutOfficesRequest(offices=[office]),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            return answer.outcomes[0]

        return await self._change(ask, work)

    async def put_unit(self, ask: Ask) -> web.StreamResponse:
        """Stores a unit. A page from before another change is refused."""

        async def work(known: roster_pb2.ListUnitsResponse) -> int:
            id_ = ask.form.get("unit_id", "").strip()
            stored = next((listed.unit for listed in known.units if listed.unit.unit_id == id_), None)
            answer = await self._roster(ask).PutUnits(
                roster_pb2.PutUnitsRequest(units=[forms.unit(ask.form, stored)]),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            return answer.outcomes[0]

        return await self._change(ask, work)

    async def report_status(self, ask: Ask) -> web.StreamResponse:
        """Stores the state of a unit, as the desk heard it."""
        status = ask.form.get("status", "")

        async def work(_: roster_pb2.ListUnitsResponse) -> int:
            if status not in STATUSES:
                raise InvalidField("status", f"must be one of {', '.join(STATUSES)}")
            answer = await self._roster(ask).ReportUnit(
                roster_pb2.ReportUnitRequest(
                    unit_id=ask.form.get("unit_id", ""),
                    status=roster_pb2.UnitStatus.Value(status),
                    at=times.to_timestamp(self._mesh.clock.now_ms()),
                ),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
            return answer.outcome

        return await self._change(ask, work)

    async def _change(
        self, ask: Ask, work: Callable[[roster_pb2.ListUnitsResponse], Awaitable[int]]
    ) -> web.StreamResponse:
        try:
            outcome = await work(await self._list(ask))
        except InvalidField as error:
            key = f"roster_wrong_{error.field}"
            return await self._show(
                ask, FormRefusal(400, key, error.field, example=EXAMPLES.get(error.field, ""), form=ask.form)
            )
        except grpc.aio.AioRpcError as error:
            logger().info("roster_not_changed", code=error.code().name)
            return await self._show(ask, refusals.of_service(error, "roster", ask.form, examples=EXAMPLES))
        if outcome == roster_pb2.SUPERSEDED:
            return await self._show(ask, FormRefusal(409, "roster_409", form=ask.form))
        return see_other("/roster?done=1")

    async def _show(self, ask: Ask, refusal: FormRefusal | None = None) -> web.StreamResponse:
        known, failed = roster_pb2.ListUnitsResponse(), False
        try:
            known = await self._list(ask)
        except grpc.aio.AioRpcError as error:
            logger().info("roster_not_read", code=error.code().name)
            failed = True
        return assets.page(
            ask,
            "roster.html",
            status=refusal.status if refusal else 503 if failed else 200,
            path="/roster",
            offices=[office for office in known.offices if not office.removed],
            units=[_unit(listed) for listed in known.units if not listed.unit.removed],
            failed=failed,
            refusal=refusal,
            form=_form(refusal),
            done="done" in ask.request.query and refusal is None,
            statuses=STATUSES,
            examples=EXAMPLES,
        )

    async def _list(self, ask: Ask) -> roster_pb2.ListUnitsResponse:
        return await self._roster(ask).ListUnits(
            roster_pb2.ListUnitsRequest(), metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )

    def _roster(self, ask: Ask) -> RosterServiceStub:
        return self._mesh.leg_of(ask.user.role).roster


def _form(refusal: FormRefusal | None) -> Mapping[str, str]:
    return refusal.form if refusal else {}


def _unit(listed: roster_pb2.UnitReport) -> dict[str, object]:
    unit = listed.unit
    status = roster_pb2.UnitStatus.Name(listed.status)
    return {
        "id": unit.unit_id,
        "version": unit.version,
        "office": unit.office_id,
        "unit_class": unit.unit_class,
        "skills": " ".join(unit.skills),
        "from_ms": times.from_timestamp(unit.shift_from),
        "until_ms": times.from_timestamp(unit.shift_until),
        "status": status if status in STATUSES else "AVAILABLE",
        "incident": listed.incident_id,
        "distress_ms": times.from_timestamp(listed.distress_at) if listed.HasField("distress_at") else None,
    }
