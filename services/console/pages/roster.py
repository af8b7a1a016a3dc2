"""Pages of the roster and of phones: a desk keeps its offices and units, and gives out links and codes for phones."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import times
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.console.domain.people import DESKS, Role
from services.console.domain.units import UnitTask
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard, see_other
from services.console.pages.refusals import PageRefusal
from services.console.settings import ConsoleSettings
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import roster_pb2, unit_duty_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.registry.v1 import enrolment_pb2

STATUSES = ("AVAILABLE", "BUSY", "OFF")


class RosterPages:
    """The roster of a desk's own leg. No other agency and no reviewer sees it."""

    def __init__(
        self, guard: RouteGuard, mesh: MeshClient, unit_tasks: Callable[[Role], Mapping[str, UnitTask]]
    ) -> None:
        self._guard = guard
        self._mesh = mesh
        self._unit_tasks = unit_tasks

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        return [
            self._guard.get("/roster", DESKS, self.show),
            self._guard.post("/roster/offices", DESKS, self.put_office),
            self._guard.post("/roster/units", DESKS, self.put_unit),
            self._guard.post("/roster/status", DESKS, self.report_status),
        ]

    async def put_office(self, ask: Ask) -> web.StreamResponse:
        """Stores an office. A page from before another change is refused."""

        async def work(known: roster_pb2.ListUnitsResponse) -> int:
            id_ = ask.form.get("office_id", "").strip()
            stored = next((office for office in known.offices if office.office_id == id_), None)
            office = OfficeForm(ask.form).message(stored)
            answer = await call_once(
                self._roster(ask).PutOffices,
                roster_pb2.PutOfficesRequest(offices=[office]),
                self._mesh.identity(ask.user),
            )
            return answer.outcomes[0]

        return await self._change(ask, work)

    async def put_unit(self, ask: Ask) -> web.StreamResponse:
        """Stores a unit. A page from before another change is refused."""

        async def work(known: roster_pb2.ListUnitsResponse) -> int:
            id_ = ask.form.get("unit_id", "").strip()
            stored = next((listed.unit for listed in known.units if listed.unit.unit_id == id_), None)
            answer = await call_once(
                self._roster(ask).PutUnits,
                roster_pb2.PutUnitsRequest(units=[unit(ask.form, stored)]),
                self._mesh.identity(ask.user),
            )
            return answer.outcomes[0]

        return await self._change(ask, work)

    async def report_status(self, ask: Ask) -> web.StreamResponse:
        """Stores the state of a unit, as the desk heard it."""
        status = ask.form.get("status", "")

        async def work(_: roster_pb2.ListUnitsResponse) -> int:
            if status not in STATUSES:
                raise InvalidField("status", f"must be one of {', '.join(STATUSES)}")
            answer = await call_once(
                self._roster(ask).ReportUnit,
                roster_pb2.ReportUnitRequest(
                    unit_id=ask.form.get("unit_id", ""),
                    status=roster_pb2.UnitStatus.Value(status),
                    at=times.to_timestamp(self._mesh.clock.now_ms()),
                ),
                self._mesh.identity(ask.user),
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
            return await self.show(
                ask, PageRefusal(400, key, error.field, example=EXAMPLES.get(error.field, ""), form=ask.form)
            )
        except grpc.aio.AioRpcError as error:
            logger().info("roster_not_changed", code=error.code().name)
            return await self.show(ask, refusals.of_service(error, "roster", ask.form, examples=EXAMPLES))
        if outcome == roster_pb2.SUPERSEDED:
            return await self.show(ask, PageRefusal(409, "roster_409", form=ask.form))
        return see_other("/roster?done=1")

    async def show(self, ask: Ask, refusal: PageRefusal | None = None) -> web.StreamResponse:
        """Shows offices and units, with a form for each."""
        known, failed = roster_pb2.ListUnitsResponse(), False
        try:
            known = await self._list(ask)
        except grpc.aio.AioRpcError as error:
            logger().info("roster_not_read", code=error.code().name)
            failed = True
        tasks = self._unit_tasks(ask.user.role)
        return assets.page(
            ask,
            "roster.html",
            status=refusal.status if refusal else 503 if failed else 200,
            path="/roster",
            offices=[office for office in known.offices if not office.removed],
            units=[_unit(listed, tasks.get(listed.unit.unit_id)) for listed in known.units if not listed.unit.removed],
            failed=failed,
            refusal=refusal,
            form=_form(refusal),
            done="done" in ask.request.query and refusal is None,
            statuses=STATUSES,
            examples=EXAMPLES,
        )

    async def _list(self, ask: Ask) -> roster_pb2.ListUnitsResponse:
        return await call_once(
            self._roster(ask).ListUnits, roster_pb2.ListUnitsRequest(), self._mesh.identity(ask.user)
        )

    def _roster(self, ask: Ask) -> RosterServiceStub:
        return self._mesh.leg_of(ask.user.role).roster


def _form(refusal: PageRefusal | None) -> Mapping[str, str]:
    return refusal.form if refusal else {}


def _unit(listed: roster_pb2.UnitReport, task: UnitTask | None) -> dict[str, object]:
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
        "task": task.state if task else "",
        "incident": task.incident_id if task else listed.incident_id,
        "distress_ms": times.from_timestamp(listed.distress_at) if listed.HasField("distress_at") else None,
    }


EXAMPLES = {
    "office_id": "seoul-1",
    "unit_id": "seoul-1-car-2",
    "unit_class": "pair-2",
    "skills": "medic-1",
    "shift_from": "2026-03-02 18:00",
    "shift_until": "2026-03-03 09:00",
    "next_office_id": "seoul-2",
    "supervisor_desk": "supervisor-1",
    "national_desk": "national-1",
    "subject_ids": "W-1024 order-7/home",
    "lat_deg": "37.5665",
    "lon_deg": "126.9780",
    "radius_m": "3000",
    "version": "1",
}
"""Example of a valid value of each field."""
KEEP = "keep"
CIRCLE = "circle"
NONE = "none"
"""What a form says about an office's area: as stored, a circle, or no area."""


@dataclass(frozen=True, slots=True)
class OfficeForm:
    """Form of an office."""

    values: Mapping[str, str]

    def message(self, stored: roster_pb2.Office | None) -> roster_pb2.Office:
        """The office as the next version of the one that the page showed. `stored` keeps its area. Raises InvalidField."""
        office = roster_pb2.Office(
            office_id=_text(self.values, "office_id"),
            version=next_version(self.values),
            subject_ids=_words(self.values, "subject_ids"),
            next_office_id=_text(self.values, "next_office_id"),
            supervisor_desk=_text(self.values, "supervisor_desk"),
            national_desk=_text(self.values, "national_desk"),
            removed="removed" in self.values,
        )
        area = self.values.get("area", NONE)
        if area == CIRCLE:
            office.circle.CopyFrom(
                geometry_pb2.Circle(
                    lat_deg=_number(self.values, "lat_deg"),
                    lon_deg=_number(self.values, "lon_deg"),
                    radius_m=_number(self.values, "radius_m"),
                )
            )
        elif area == KEEP and stored is not None:
            if stored.HasField("circle"):
                office.circle.CopyFrom(stored.circle)
            elif stored.HasField("polygon"):
                office.polygon.CopyFrom(stored.polygon)
        return office


def unit(values: Mapping[str, str], stored: roster_pb2.Unit | None) -> roster_pb2.Unit:
    """The unit of a form as the next version of the one that the page showed. Raises InvalidField."""
    made = roster_pb2.Unit(
        unit_id=_text(values, "unit_id"),
        version=next_version(values),
        office_id=_text(values, "office_id"),
        unit_class=_text(values, "unit_class"),
        skills=_words(values, "skills"),
        contact_key=stored.contact_key if stored is not None else "",
        removed="removed" in values,
    )
    made.shift_from.CopyFrom(times.to_timestamp(_moment_ms(values, "shift_from")))
    made.shift_until.CopyFrom(times.to_timestamp(_moment_ms(values, "shift_until")))
    return made


def next_version(values: Mapping[str, str]) -> int:
    """Version that follows the one that the page showed; 1 for a new record. Raises InvalidField."""
    text = values.get("version", "0")
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InvalidField("version", "is no number")
    return int(text) + 1


def _text(values: Mapping[str, str], field: str) -> str:
    return values.get(field, "").strip()


def _words(values: Mapping[str, str], field: str) -> list[str]:
    return values.get(field, "").replace(",", " ").split()


def _number(values: Mapping[str, str], field: str) -> float:
    try:
        return float(values.get(field, ""))
    except ValueError:
        raise InvalidField(field, "is no number") from None


def _moment_ms(values: Mapping[str, str], field: str) -> int:
    """A time of a form, such as 2026-03-02T18:00, as `assets.ms_of_local` reads it. Raises InvalidField."""
    try:
        return assets.ms_of_local(values.get(field, ""))
    except (ValueError, OverflowError):
        raise InvalidField(field, "is no time") from None


PHONE_EXAMPLES = {"device_id": "phone-17", "unit_id": "seoul-car-12"}


class PhonePages:
    """The forms by which a desk connects a phone."""

    def __init__(self, settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient) -> None:
        self._settings = settings
        self._guard = guard
        self._mesh = mesh

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
            issued = await call_once(
                self._mesh.enrolments.IssueEnrolmentCode,
                enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id),
                self._mesh.identity(ask.user),
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
            issued = await call_once(
                self._mesh.leg_of(ask.user.role).units.IssueUnitLink,
                unit_duty_pb2.IssueUnitLinkRequest(unit_id=unit_id),
                self._mesh.identity(ask.user),
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
            await call_once(
                self._mesh.leg_of(ask.user.role).units.EndDistress,
                unit_duty_pb2.EndDistressRequest(unit_id=ask.form.get("unit_id", "")),
                self._mesh.identity(ask.user),
            )
        except grpc.aio.AioRpcError as error:
            return self._refused(ask, error, "/roster")
        return see_other("/roster?done=1")

    def _refused(self, ask: Ask, error: grpc.aio.AioRpcError, path: str) -> web.StreamResponse:
        logger().info("phone_not_connected", code=error.code().name)
        refusal = refusals.of_service(error, "phones", ask.form, examples=PHONE_EXAMPLES)
        return assets.page(ask, "phone_link.html", status=refusal.status, path=path, refusal=refusal)
