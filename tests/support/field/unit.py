"""A unit of the police on a running mesh: its office and shift, links from its desk, and its page on a phone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc.aio

from services.client import mesh
from services.client.actors import DESKS
from services.common import times
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, unit_duty_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tests.support.common.mesh import PATIENCE_S
from tests.support.field.phone import Answered, PhoneClient, phone
from tests.support.field.scene import Scene, until

SHIFT_MS = 8 * 3_600_000
UNHURRIED = {
    f"TANDEM_{name}_WITHIN_S": "3600"
    for name in ("ACKNOWLEDGE", "RECEIVE", "ANSWER", "OFFER", "DISPATCH", "DEPART", "WORD")
}
"""Settings with which no offer climbs while a slow machine plays a story."""


class Station:
    """One leg's desk with its roster of one office."""

    def __init__(self, scene: Scene, leg: str, channel: grpc.aio.Channel) -> None:
        self.scene, self.leg = scene, leg
        self.desk = scene.clients.identity(DESKS[leg])
        self.duty, self.roster = UnitDutyServiceStub(channel), RosterServiceStub(channel)
        self._version = 0

    async def put(self, *unit_ids: str, shift_ms: int = SHIFT_MS) -> None:
        """Puts the office, and units with a shift that ends after a time; a negative one has ended already."""
        self._version += 1
        now_ms = self.scene.clients.clock.now_ms()
        office = roster_pb2.Office(
            office_id="office", version=1, supervisor_desk="supervisor", national_desk="national"
        )
        await self.roster.PutOffices(roster_pb2.PutOfficesRequest(offices=[office]), metadata=self.desk)
        units = [
            roster_pb2.Unit(
                unit_id=id_,
                version=self._version,
                office_id="office",
                unit_class="patrol-car",
                shift_from=times.to_timestamp(now_ms - 60_000),
                shift_until=times.to_timestamp(now_ms + shift_ms),
            )
            for id_ in unit_ids
        ]
        await self.roster.PutUnits(roster_pb2.PutUnitsRequest(units=units), metadata=self.desk)

    async def reports(self, unit_id: str) -> roster_pb2.UnitReport:
        """The last report of a unit."""
        answer = await self.roster.ListUnits(roster_pb2.ListUnitsRequest(), metadata=self.desk)
        return next(listed for listed in answer.units if listed.unit.unit_id == unit_id)

    async def at(self, unit_id: str, lat_deg: float, lon_deg: float) -> None:
        """Reports the position of a unit, as its desk heard it."""
        request = roster_pb2.ReportUnitRequest(
            unit_id=unit_id,
            status=roster_pb2.AVAILABLE,
            position=geometry_pb2.Point(lat_deg=lat_deg, lon_deg=lon_deg),
            at=times.to_timestamp(self.scene.clients.clock.now_ms()),
        )
        await self.roster.ReportUnit(request, metadata=self.desk)

    async def link(self, unit_id: str) -> str:
        """The code of a new link."""
        request = unit_duty_pb2.IssueUnitLinkRequest(unit_id=unit_id)
        return str((await self.duty.IssueUnitLink(request, metadata=self.desk)).code)

    async def own(self) -> list[dispatch_pb2.Assignment]:
        """The leg's own assignments, newest incident first."""
        answer = await self.scene.clients.legs[self.leg].dispatch.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(), metadata=self.desk
        )
        number = alert_pb2.Leg.Value(self.leg.upper())
        return [each for incident in answer.incidents for each in incident.assignments if each.leg == number]

    async def send(self, seen: dispatch_pb2.Assignment, unit_id: str) -> dispatch_pb2.Assignment:
        """Asks a unit, as the desk that has seen an assignment."""
        newest = max([seen.offer_number, *(offer.offer_number for offer in seen.unit_offers)])
        request = dispatch_pb2.SendUnitRequest(assignment_id=seen.assignment_id, unit_id=unit_id, offer_number=newest)
        answer = await self.scene.clients.legs[self.leg].dispatch.SendUnit(request, metadata=self.desk)
        return answer.assignment

    async def refuse_offers(self) -> None:
        """Refuses what the desk or another unit was offered, so that the next unit is asked."""
        for offer in await self.own():
            if offer.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED):
                request = dispatch_pb2.RejectRequest(
                    assignment_id=offer.assignment_id, offer_number=offer.offer_number, reason="no car"
                )
                try:
                    await self.scene.clients.legs[self.leg].dispatch.Reject(request, metadata=self.desk)
                except grpc.aio.AioRpcError as error:
                    if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                        raise


class UnitPhone:
    """The page of a unit on a phone."""

    def __init__(self, client: PhoneClient) -> None:
        self.client = client

    async def sign_in(self, code: str) -> Answered:
        return await self.client.ask("POST", "/api/unit/sign-in", {"code": code, "key": self.client.public})

    async def duty(self, *shown: str) -> Answered:
        return await self.client.ask("GET", f"/api/unit/duty?known=&shown={','.join(shown)}")

    async def report(self, **content: Any) -> Answered:
        return await self.client.ask("POST", "/api/unit/report", content)

    async def answer(self, task: dict[str, Any], answer: str, **more: Any) -> Answered:
        content = {"assignment": task["assignment"], "offer": task["offer"], "answer": answer, **more}
        return await self.client.ask("POST", "/api/unit/answer", content)

    async def task(self, *states: str, **like: Any) -> dict[str, Any]:
        """The first task in one of these states and with these values, once the page has it."""

        async def found() -> Any:
            tasks = (await self.duty()).content["tasks"]
            return next((task for task in tasks if task["state"] in states and like.items() <= task.items()), None)

        return dict(await until(found))

    async def first_targets(self, incident_id: str, subject_id: str) -> list[dict[str, Any]]:
        """The events of the stream of an incident's targets, up to the first one about a subject."""
        async with (
            asyncio.timeout(PATIENCE_S),
            self.client.streamed("GET", f"/api/unit/targets?incident={incident_id}") as answer,
        ):
            assert answer.status == 200, answer.status
            lines: list[dict[str, Any]] = []
            async for line in answer.content:
                lines.append(json.loads(line))
                if lines[-1].get("subject") == subject_id:
                    break
            return lines


@asynccontextmanager
async def station(scene: Scene, leg: str = "police") -> AsyncIterator[Station]:
    """A leg's desk with a roster."""
    async with mesh.channel(scene.mesh.now, f"dispatch-{leg}") as channel:
        yield Station(scene, leg, channel)


@asynccontextmanager
async def unit_phone(scene: Scene, code: str = "") -> AsyncIterator[UnitPhone]:
    """A phone for a unit's page; with a code it is signed in."""
    async with phone(scene.url) as client:
        page = UnitPhone(client)
        if code:
            answer = await page.sign_in(code)
            assert answer.status == 200, answer
        yield page
