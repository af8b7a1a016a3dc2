"""What court makes of an incident for a reviewer: reports with the bundle that proves them, and why a response wasn't decided earlier.

A report collects the evidence of all legs and signs it with the custodian's key, and *why not earlier* refolds the log. Each is a
disclosure, which the ledger records before anything is shown. Each call runs in a process of its own and needs the mesh's folder, so a
console on another machine doesn't offer these documents.
"""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import Callable, Coroutine, Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from aiohttp import web

from services.common import fields, times
from services.common.errors import InvalidField
from services.common.failure import AGED_OUT, MISUSED, CommandFailed, printable
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose
from services.console.domain import board
from services.console.domain.people import SELF, ConsoleUser, Role
from services.console.domain.statistics import BadPeriod, DayPeriod
from services.console.mesh import MeshClient
from services.console.pages import assets
from services.console.pages.guard import Ask, RouteGuard
from services.console.pages.statistics import period_bounds
from services.console.review.views import IncidentPages, id_of
from services.console.settings import ConsoleSettings
from services.court import from_mesh, worker
from services.court.evidence.collection import BundleGrounds
from services.court.evidence.leg_records import MeshRecords
from services.court.worker import WorkerEnded

MAKERS = frozenset({Role.REVIEWER})
"""Roles that make documents for a court. A desk is a party to what they describe."""
COPIES = ("police", "probation")
"""Whose evidence a document may rest on. Probation's has no position of the protected person."""


class DocumentPages:
    """Routes of the documents."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, incidents: IncidentPages, *, court: CourtCalls) -> None:
        self._guard = guard
        self._mesh = mesh
        self._incidents = incidents
        self._court = court

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
            return _refused_page(ask, DocumentRefused(409, "document_open"))
        leg = ask.form.get("copy", COPIES[0])
        if leg not in COPIES:
            raise web.HTTPBadRequest(text=f"400: copy: must be one of {', '.join(COPIES)}")
        try:
            made = await self._court.call(
                from_mesh.incident_report,
                records=self._court.records,
                incident_id=incident_id,
                leg=leg,
                grounds=self._grounds(ask),
                language=ask.texts.language,
            )
        except DocumentRefused as refusal:
            return _refused_page(ask, refusal)
        files = {f"report-{incident_id}.pdf": made.pdf, f"report-{incident_id}.tar": made.bundle}
        return _attachment(_zipped(files), "application/zip", f"report-{incident_id}.zip")

    async def of_order(self, ask: Ask) -> web.StreamResponse:
        """Sends the report on how an order was kept over a period of days in Korea."""
        try:
            order_id = fields.required_id("order", ask.request.match_info["id"])
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        today = datetime.fromtimestamp(self._mesh.clock.now_ms() / 1000, UTC).astimezone(times.KOREA).date()
        try:
            period = DayPeriod.of(ask.form.get("from", ""), ask.form.get("until", ""), today)
        except BadPeriod as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        moments_ms = {name: times.from_timestamp(at) for name, at in period_bounds(period).items()}
        try:
            made = await self._court.call(
                from_mesh.order_report,
                records=self._court.records,
                order_id=order_id,
                from_ms=moments_ms["from"],
                until_ms=moments_ms["until"],
                grounds=self._grounds(ask),
                language=ask.texts.language,
            )
        except DocumentRefused as refusal:
            return _refused_page(ask, refusal)
        return _attachment(made, "application/pdf", f"compliance-{order_id}-{period.first}-{period.last}.pdf")

    def _grounds(self, ask: Ask) -> BundleGrounds:
        """The legal grounds, the reviewer who makes the document, and who gets it: by default the reviewer."""
        reviewer = from_mesh.REVIEWER_PREFIX + self._court.reviewer(ask.user)
        return BundleGrounds(
            legal_basis=ask.form.get("legal_basis", ""),
            purpose=Purpose.COURT.value,
            who=reviewer,
            recipient=ask.form.get("recipient", "") or reviewer,
        )


def _zipped(files: Mapping[str, bytes]) -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return packed.getvalue()


def _attachment(content: bytes, content_type: str, name: str) -> web.Response:
    headers = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="{name}"'}
    return web.Response(body=content, headers=headers)


ALERT = "alert-"
"""Beginning of the ids of alerts."""


class EarlierPages:
    """The page of the reports before a decision, for reviewers."""

    def __init__(self, guard: RouteGuard, court: CourtCalls) -> None:
        self._guard, self._court = guard, court

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [self._guard.post("/incidents/{id}/earlier", {Role.REVIEWER}, self.earlier)]

    async def earlier(self, ask: Ask) -> web.StreamResponse:
        """Shows the reports before an alert. The ledger records the disclosure first."""
        incident_id, alert_id = id_of(ask), ask.form.get("alert", "")
        try:
            fields.required_id("alert", alert_id)
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error}") from None
        if not alert_id.startswith(ALERT):
            raise web.HTTPBadRequest(
                text=f"400: alert: must be the id of an alert (example: {ALERT}78681e66495df3b4cd06)"
            )
        code = ask.form.get("purpose", "")
        try:
            folder = self._court.records.folder
            if code not in {purpose.value for purpose in Purpose}:
                raise web.HTTPBadRequest(text="400: purpose: must be the code of a purpose (example: AUDIT)")
            found = await self._court.call(
                from_mesh.why_not_earlier,
                folder=folder,
                alert_id=alert_id,
                reviewer=self._court.reviewer(ask.user),
                legal_basis=ask.form.get("legal_basis", ""),
                purpose=Purpose(code),
            )
        except DocumentRefused as refusal:
            return _refused_page(ask, refusal)
        return assets.page(
            ask,
            "earlier.html",
            path=f"/incidents/{incident_id}",
            incident_id=incident_id,
            alert_id=alert_id,
            is_same=found.is_same,
            reports=found.reports,
        )


ENDS_WITHIN_S = 240.0
"""Maximum time for a call, seconds. Refolding an incident's log takes a few seconds, on a busy machine a minute."""
MAX_DETAIL = 400
"""Maximum length of an error text on the page, characters."""
_REFUSALS = {MISUSED: (400, "document_refused"), AGED_OUT: (410, "document_aged_out")}
"""HTTP status and key of the text by exit code of a failure; any other failure is one to look into."""

Result = TypeVar("Result")


class DocumentRefused(Exception):
    """There is no document. `status` is the HTTP status, `reason` the key of the text for the user."""

    def __init__(self, status: int, reason: str, detail: str = "") -> None:
        super().__init__(detail or reason)
        self.status = status
        self.reason = reason
        self.detail = detail
        """Error text of the function; empty if there is none."""


class CourtCalls:
    """Makes one call at a time."""

    def __init__(self, settings: ConsoleSettings, *, within_s: float = ENDS_WITHIN_S) -> None:
        folder = settings.mesh_folder
        self._records = MeshRecords(folder, settings.leg_databases) if folder else None
        # With certificates the ledger names a user as the services do: console/NAME.
        self._named_under = f"{SELF}/" if settings.tls else ""
        self._within_s = within_s
        self._free = asyncio.Semaphore(1)

    @property
    def is_available(self) -> bool:
        """Whether the mesh runs on this machine."""
        return self._records is not None

    @property
    def records(self) -> MeshRecords:
        """Records of the mesh. Raises DocumentRefused if it doesn't run on this machine."""
        if self._records is None:
            raise DocumentRefused(501, "document_elsewhere")
        return self._records

    def reviewer(self, user: ConsoleUser) -> str:
        """Name of a reviewer for the ledger."""
        return self._named_under + user.name

    async def call(self, function: Callable[..., Coroutine[Any, Any, Result]], **arguments: object) -> Result:
        """Calls a function of court to its end. Raises DocumentRefused if it fails or doesn't end in time, or if another call runs."""
        if self._free.locked():
            raise DocumentRefused(503, "document_busy")
        async with self._free:
            try:
                return await worker.call(function, within_s=self._within_s, **arguments)
            except TimeoutError:
                raise DocumentRefused(504, "document_slow") from None
            except (CommandFailed, WorkerEnded) as failed:
                logger().warning("court_call_failed", function=function.__name__, exit_code=failed.exit_code)
                if isinstance(failed, WorkerEnded):
                    raise DocumentRefused(502, "document_failed") from None
                status, reason = _REFUSALS.get(failed.exit_code, (502, "document_failed"))
                raise DocumentRefused(status, reason, printable(failed.message)[:MAX_DETAIL]) from None


def _refused_page(ask: Ask, refusal: DocumentRefused) -> web.Response:
    """Makes the page that says why there is no document, with the function's error text."""
    return assets.page(ask, "error.html", status=refusal.status, reason=refusal.reason, detail=refusal.detail)
