"""Codes for protected persons' phones and links for units' pages. Each is shown once, on the page that answers the form."""

from __future__ import annotations

import grpc.aio
from aiohttp import web

from services.common import times
from services.common.observability.telemetry import logger
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console.domain.people import DESKS, Role
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.redirects import see_other
from services.console.settings import ConsoleSettings
from tandem.dispatch.v1 import unit_duty_pb2
from tandem.registry.v1 import enrolment_pb2

EXAMPLES = {"device_id": "phone-17", "unit_id": "seoul-car-12"}


class PhonePages:
    """The forms by which a desk connects a phone."""

    def __init__(self, settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient) -> None:
        self._settings, self._guard, self._mesh = settings, guard, mesh

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.post("/people/phone-code", frozenset({Role.POLICE}), self.issue_code),
            self._guard.post("/roster/unit-link", DESKS, self.issue_link),
            self._guard.post("/roster/distress-end", DESKS, self.end_distress),
        ]

    async def issue_code(self, ask: Ask) -> web.StreamResponse:
        """Issues a code for a protective device, and shows it."""
        device_id = ask.form.get("device_id", "").strip()
        try:
            issued = await self._mesh.desk.enrolments.IssueEnrolmentCode(
                enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            return self._refused(ask, error, "/people")
        return assets.page(
            ask,
            "phone_link.html",
            path="/people",
            kind="phone_code",
            whose=device_id,
            secret=issued.code,
            address=self._settings.field_url,
            until_ms=times.from_timestamp(issued.expires_at),
            refusal=None,
        )

    async def issue_link(self, ask: Ask) -> web.StreamResponse:
        """Issues a link for a unit of the desk's own leg, and shows it."""
        unit_id, url = ask.form.get("unit_id", ""), self._settings.field_url.rstrip("/")
        try:
            issued = await self._mesh.leg_of(ask.user.role).units.IssueUnitLink(
                unit_duty_pb2.IssueUnitLinkRequest(unit_id=unit_id),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            return self._refused(ask, error, "/roster")
        return assets.page(
            ask,
            "phone_link.html",
            path="/roster",
            kind="unit_link",
            whose=unit_id,
            secret=f"{url}/unit/#{issued.code}" if url else issued.code,
            address=url,
            until_ms=times.from_timestamp(issued.expires_at),
            refusal=None,
        )

    async def end_distress(self, ask: Ask) -> web.StreamResponse:
        """Ends the call for help of a unit."""
        try:
            await self._mesh.leg_of(ask.user.role).units.EndDistress(
                unit_duty_pb2.EndDistressRequest(unit_id=ask.form.get("unit_id", "")),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            return self._refused(ask, error, "/roster")
        return see_other("/roster?done=1")

    def _refused(self, ask: Ask, error: grpc.aio.AioRpcError, path: str) -> web.StreamResponse:
        logger().info("phone_not_connected", code=error.code().name)
        refusal = refusals.of_service(error, "phones", ask.form, examples=EXAMPLES)
        return assets.page(ask, "phone_link.html", status=refusal.status, path=path, refusal=refusal)
