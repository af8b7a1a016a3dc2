"""Findings of reviewers: on the page of an incident, and all of them with their owners and due days."""

from __future__ import annotations

import grpc.aio
from aiohttp import web

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.guard import Ask, RouteGuard, http_status
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.redirects import see_other
from services.console.review import refusals
from services.console.review.incident_findings import REVIEWERS
from services.console.review.views import IncidentPages, id_of
from tandem.registry.v1 import finding_pb2


class FindingPages:
    """Pages and forms of findings, for reviewers only."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages) -> None:
        self._guard, self._mesh, self._incidents = guard, mesh, incidents

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/findings", REVIEWERS, self.findings),
            self._guard.post("/incidents/{id}/findings", REVIEWERS, self.add),
            self._guard.post("/findings/{id}/close", REVIEWERS, self.close),
        ]

    async def findings(self, ask: Ask) -> web.StreamResponse:
        """Shows all findings: the overdue and open ones by their due day, then the closed ones."""
        return await self._all(ask)

    async def add(self, ask: Ask) -> web.StreamResponse:
        """Enters a finding about an incident."""
        incident_id = id_of(ask)
        request = finding_pb2.PutFindingRequest(
            finding_id=ask.form.get("finding", ""),
            incident_id=incident_id,
            text=ask.form.get("text", "").strip(),
            owner=ask.form.get("owner", "").strip(),
            due_on=ask.form.get("due_on", ""),
        )
        try:
            await self._mesh.findings.PutFinding(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            return await self._incidents.show(ask, wrong_finding=_wrong(ask, error), status=http_status(error.code()))
        return see_other(f"/incidents/{incident_id}#h-findings")

    async def close(self, ask: Ask) -> web.StreamResponse:
        """Closes a finding with what came of it."""
        try:
            finding_id = fields.required_id("finding", ask.request.match_info["id"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        request = finding_pb2.CloseFindingRequest(finding_id=finding_id, outcome=ask.form.get("outcome", "").strip())
        try:
            await self._mesh.findings.CloseFinding(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except grpc.aio.AioRpcError as error:
            return await self._all(ask, wrong=_wrong(ask, error), status=http_status(error.code()))
        return see_other("/findings")

    async def _all(self, ask: Ask, wrong: str = "", status: int = 200) -> web.StreamResponse:
        listed = await self._mesh.findings.ListFindings(
            finding_pb2.ListFindingsRequest(), metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
        )
        return assets.page(
            ask,
            "findings.html",
            status=status,
            path="/findings",
            findings=listed.findings,
            is_cut=listed.is_cut,
            wrong=wrong,
        )


def _wrong(ask: Ask, error: grpc.aio.AioRpcError) -> str:
    """The reason of a refusal as one line: the field, and what is wrong with it."""
    _, field = refusals.details(error)
    return ": ".join(part for part in (ask.texts("finding_not_kept"), field, error.details() or "") if part)
