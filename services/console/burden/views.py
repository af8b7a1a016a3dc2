"""Page of an order: its incidents, and what each leg sent because of it. No name and no position is on it."""

from __future__ import annotations

import grpc.aio
from aiohttp import web

from services.common import fields, times
from services.common.privacy.grounds import RecordKind, codes_for
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.burden import domain
from services.console.burden.domain import OrderIncidentCard, TaskCard
from services.console.domain.people import VIEWERS
from services.console.guard import Ask, RouteGuard, http_status
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.translate import moment
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, order_burden_pb2

DAY_MS = 86_400_000
PERIODS_D = (7, 30, 90)
"""Periods that the page offers, days; 0 is everything."""


class BurdenPages:
    """The page of an order's burden, for desks and reviewers."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, *, makes_documents: bool) -> None:
        self._guard, self._mesh, self._makes_documents = guard, mesh, makes_documents

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [self._guard.get("/orders/{id}", VIEWERS, self.show)]

    async def show(self, ask: Ask) -> web.StreamResponse:
        """Shows what an order's incidents sent, over a period."""
        days = ask.request.query.get("days", "0")
        if days not in {"0", *map(str, PERIODS_D)}:
            raise web.HTTPBadRequest(text=f"400: days must be 0, {', '.join(map(str, PERIODS_D))} (example: days=30)")
        try:
            order_id = fields.required_id("order", ask.request.match_info["id"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        now_ms = self._mesh.clock.now_ms()
        request = order_burden_pb2.ListOrderIncidentsRequest(order_id=order_id)
        if days != "0":
            request.opened_from.CopyFrom(times.to_timestamp(now_ms - int(days) * DAY_MS))
        incidents: list[OrderIncidentCard] = []
        failed, is_cut = 0, False
        try:
            answer = await self._mesh.leg_of(ask.user.role).order_burden.ListOrderIncidents(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
            incidents, is_cut = list(map(_incident, answer.incidents)), answer.incomplete
        except grpc.aio.AioRpcError as error:
            failed = http_status(error.code())
        lines = domain.lines(incidents)
        from_ms = min((incident.opened_ms for incident in incidents), default=now_ms)
        return assets.page(
            ask,
            "order_burden.html",
            status=failed or 200,
            order_id=order_id,
            incidents=incidents,
            is_cut=is_cut,
            failed=failed,
            lines=lines,
            per_day=domain.per_day(lines, from_ms, now_ms),
            periods=PERIODS_D,
            days=int(days),
            makes_documents=self._makes_documents,
            bases=codes_for(RecordKind.WEARER),
        )


def _incident(message: order_burden_pb2.OrderIncident) -> OrderIncidentCard:
    return OrderIncidentCard(
        incident_id=message.incident_id,
        opened_ms=times.from_timestamp(message.opened_at),
        ended_ms=moment(message, "ended_at"),
        exercise=message.exercise != exercise_pb2.EXERCISE_UNSPECIFIED,
        tasks=tuple(map(_task, message.tasks)),
    )


def _task(message: order_burden_pb2.OrderTask) -> TaskCard:
    return TaskCard(
        leg=alert_pb2.Leg.Name(message.leg).lower(),
        demand=geometry_pb2.Demand.Name(message.demand),
        kind=alert_pb2.AlertKind.Name(message.kind) if message.kind else "",
        state=dispatch_pb2.AssignmentState.Name(message.state),
        notices=message.notices,
        offers=message.offers,
        dispatches=message.dispatches if message.HasField("dispatches") else None,
        arrivals=message.arrivals if message.HasField("arrivals") else None,
        close_cause=dispatch_pb2.CloseCause.Name(message.close_cause) if message.close_cause else "",
    )
