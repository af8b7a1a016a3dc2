"""Documents for a court: the report on an incident with the bundle that proves it, and the report on how an order was kept.

A reviewer makes them. Each is a disclosure, which the ledger records before anything is shown.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from datetime import UTC, datetime

from aiohttp import web

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.console.domain import board
from services.console.domain.people import Role
from services.console.guard import Ask, RouteGuard
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.review.mesh_commands import CommandRefused, MeshCommands, refused
from services.console.review.views import IncidentPages, id_of
from services.console.statistics.model import BadPeriod, DayPeriod
from services.console.statistics.translate import bounds

MAKERS = frozenset({Role.REVIEWER})
"""Roles that make documents for a court. A desk is a party to what they describe."""
REVIEWERS = "spiffe://tandem/reviewer/"
COPIES = ("police", "probation")
"""Whose evidence a document may rest on. Probation's has no position of the protected person."""


class DocumentPages:
    """Routes of the documents."""

    def __init__(
        self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages, *, commands: MeshCommands
    ) -> None:
        self._guard, self._mesh, self._incidents, self._commands = guard, mesh, incidents, commands

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.post("/incidents/{id}/document", MAKERS, self.of_incident),
            self._guard.post("/orders/{id}/document", MAKERS, self.of_order),
        ]

    async def of_incident(self, ask: Ask) -> web.StreamResponse:
        """Sends the report on an incident and its bundle as one ZIP file. An incident that is still open is refused."""
        incident_id = id_of(ask)
        if not board.is_over(await self._incidents.card(ask)):
            return refused(ask, CommandRefused(409, "document_open"))
        leg = ask.form.get("copy", COPIES[0])
        if leg not in COPIES:
            raise web.HTTPBadRequest(text=f"400: copy: must be one of {', '.join(COPIES)}")
        try:
            made = await self._commands.report((incident_id, f"--leg={leg}", *self._grounds(ask)))
        except CommandRefused as refusal:
            return refused(ask, refusal)
        files = {f"report-{incident_id}{ending}": content for ending, content in made.items()}
        return _attachment(_zipped(files), "application/zip", f"report-{incident_id}.zip")

    async def of_order(self, ask: Ask) -> web.StreamResponse:
        """Sends the report on how an order was kept over a period of days in Korea."""
        try:
            order_id = fields.required_id("order", ask.request.match_info["id"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        today = datetime.fromtimestamp(self._mesh.clock.now_ms() / 1000, UTC).astimezone(assets.KOREA).date()
        try:
            period = DayPeriod.of(ask.form.get("from", ""), ask.form.get("until", ""), today)
        except BadPeriod as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        moments = {name: times.to_rfc3339(times.from_timestamp(at)) for name, at in bounds(period).items()}
        options = (f"--order={order_id}", f"--from={moments['from']}", f"--until={moments['until']}")
        try:
            made = await self._commands.report((*options, *self._grounds(ask)))
        except CommandRefused as refusal:
            return refused(ask, refusal)
        return _attachment(made[".pdf"], "application/pdf", f"compliance-{order_id}-{period.first}-{period.last}.pdf")

    def _grounds(self, ask: Ask) -> tuple[str, ...]:
        """Options of the command: the legal grounds, the language, the reviewer who makes the document, and who gets it: by default the
        reviewer."""
        reviewer = self._commands.reviewer(ask.user)
        given = {
            "--legal-basis": ask.form.get("legal_basis", ""),
            "--purpose": "COURT",
            "--reviewer": reviewer,
            "--recipient": ask.form.get("recipient", "") or REVIEWERS + reviewer,
            "--language": ask.texts.language,
        }
        return tuple(f"{option}={value}" for option, value in given.items())


def _zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _attachment(content: bytes, content_type: str, name: str) -> web.Response:
    headers = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=content, headers=headers)
