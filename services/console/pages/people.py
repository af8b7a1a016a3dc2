"""Search for people and orders, by a disclosure of the registry, and the page of an order with all that it sent.

A search is a form that names the article, never a link. The page of an order has no name and no position.
"""

from __future__ import annotations

from collections.abc import Mapping

import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import fields, times
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.console.domain import statistics
from services.console.domain.people import VIEWERS, Role
from services.console.domain.statistics import OrderIncidentCard, TaskCard
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard, http_status
from services.console.pages.refusals import PageRefusal
from services.console.translate import moment
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, order_burden_pb2
from tandem.registry.v1 import disclosure_pb2, record_search_pb2

PURPOSES = ("ENFORCEMENT", "VICTIM_CONTACT", "AUDIT", "COURT", "SUBJECT_REQUEST")
_EXAMPLES = {"name": "홍길동", "phone": "010-1234-5678", "birth_date": "1980-02-29", "record_id": "W-1024"}
_KINDS = {
    record_search_pb2.FOUND_KIND_WEARER: "wearer",
    record_search_pb2.FOUND_KIND_PROTECTED_PERSON: "protected_person",
    record_search_pb2.FOUND_KIND_ORDER: "order",
}
"""Key of the text of each kind."""


class PeoplePages:
    """The search for people and orders, for desks and reviewers."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/people", VIEWERS, self.form),
            self._guard.post("/people", VIEWERS, self.search),
        ]

    async def form(self, ask: Ask) -> web.StreamResponse:
        """Shows the empty form; an address may name a record's id, which is searched only by the form."""
        return self._page(ask, {"record_id": ask.request.query.get("record_id", "")[:64]})

    async def search(self, ask: Ask) -> web.StreamResponse:
        """Shows the records that match. The registry checks the article, and writes the ledger before it answers."""
        form = ask.form
        purpose = f"PURPOSE_{form.get('purpose', '')}"
        known = disclosure_pb2.Purpose.keys()
        request = record_search_pb2.SearchRecordsRequest(
            **{field: form.get(field, "").strip() for field in _EXAMPLES},
            grounds=disclosure_pb2.Grounds(
                legal_basis=form.get("legal_basis", ""),
                purpose=disclosure_pb2.Purpose.Value(purpose if purpose in known else "PURPOSE_UNSPECIFIED"),
            ),
        )
        try:
            answer = await call_once(self._mesh.record_search.SearchRecords, request, self._mesh.identity(ask.user))
        except grpc.aio.AioRpcError as error:
            logger().info("people_not_searched", code=error.code().name)
            refusal = refusals.of_service(error, "people", form, examples=_EXAMPLES)
            return self._page(ask, form, refusal=refusal)
        return self._page(ask, form, answer=answer)

    def _page(
        self,
        ask: Ask,
        form: Mapping[str, str],
        *,
        answer: record_search_pb2.SearchRecordsResponse | None = None,
        refusal: PageRefusal | None = None,
    ) -> web.StreamResponse:
        found = None
        if answer is not None:
            found = [{"kind": _KINDS.get(row.kind, ""), "row": row} for row in answer.records]
        return assets.page(
            ask,
            "people.html",
            status=refusal.status if refusal else 200,
            form=form,
            found=found,
            searched=[_KINDS[kind] for kind in answer.searched if kind in _KINDS] if answer else [],
            refusal=refusal,
            bases=codes_for(RecordKind.WEARER),
            purposes=PURPOSES,
            is_reviewer=ask.user.role is Role.REVIEWER,
            role_is_police=ask.user.role is Role.POLICE,
        )


DAY_MS = 86_400_000
PERIODS_D = (7, 30, 90)
"""Periods that the page offers, days; 0 is everything."""


class BurdenPages:
    """The page of an order's burden, for desks and reviewers."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, *, makes_documents: bool) -> None:
        self._guard = guard
        self._mesh = mesh
        self._makes_documents = makes_documents

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
            answer = await call_once(
                self._mesh.leg_of(ask.user.role).order_burden.ListOrderIncidents, request, self._mesh.identity(ask.user)
            )
            incidents, is_cut = list(map(_order_incident, answer.incidents)), answer.incomplete
        except grpc.aio.AioRpcError as error:
            failed = http_status(error.code())
        lines = statistics.burden_lines(incidents)
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
            per_day=statistics.dispatches_per_day(lines, from_ms, now_ms),
            periods=PERIODS_D,
            days=int(days),
            makes_documents=self._makes_documents,
            bases=codes_for(RecordKind.WEARER),
        )


def _order_incident(message: order_burden_pb2.OrderIncident) -> OrderIncidentCard:
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
        by_radio=message.by_radio if message.HasField("by_radio") else None,
        arrivals=message.arrivals if message.HasField("arrivals") else None,
        close_cause=dispatch_pb2.CloseCause.Name(message.close_cause) if message.close_cause else "",
    )
