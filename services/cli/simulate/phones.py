"""The demo by phones: her app and the units' pages in a browser, on the records of the demo. Nobody sits at a desk.

A person opens the pages and presses their buttons. The demo prepares the roster, the links and her code, moves the wearer, and waits.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import NamedTuple

from services.cli.calls import call
from services.cli.failure import MISUSED, CommandFailed
from services.cli.simulate.actors import DESKS, NPA_RECORDS, State
from services.cli.simulate.demo import DemoStage
from services.cli.stack import mesh as meshes
from services.cli.stack.mesh import MeshConnection
from services.common import times
from services.common.messaging import flow
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, unit_duty_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.registry.v1 import enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

SHIFT_MS = 8 * 3_600_000
OPENED_WITHIN_S = 600.0
"""Time for a person to open the pages, seconds."""
ANSWERED_WITHIN_S = 900.0
"""Time for the units to close their assignments, seconds."""
FAR_M = 3_000.0
"""Distance of the wearer from her home while nobody has opened the pages, metres."""
SCATTER_M, GOLDEN = 4.0, 0.618034
"""Scatter of a receiver at rest, metres, and the share of it by which each position differs from the one before: positions that repeat
others to the digit are no receiver's, and clear nothing."""
UNIT_CLASS = {"probation": "officer-pair", "police": "patrol-car"}
ENDED = (State.CLOSED, State.STOOD_DOWN)


class PhoneAddress(NamedTuple):
    """A page to open, and what a person needs for it."""

    whose: str
    url: str
    code: str = ""
    """Code to type; empty for a link that has it."""


class DemoPhones:
    """Her phone and one unit of each agency."""

    def __init__(
        self, running: MeshConnection, stage: DemoStage, legs: dict[str, tuple[RosterServiceStub, UnitDutyServiceStub]]
    ) -> None:
        self._running, self._stage, self._legs = running, stage, legs
        self._moments = itertools.count(1)

    def unit_id(self, leg: str) -> str:
        """Id of a leg's unit."""
        return self._stage.plan.id(f"{leg}-unit")

    async def addresses(self) -> list[PhoneAddress]:
        """Puts her device and the units, and returns the pages of the phones. The order's protected person must be on record."""
        stage, url = self._stage, self._running.field_url
        device_id = stage.plan.id("phone")
        device = registry_pb2.Device(device_id=device_id, person_id=stage.person_id, source_version=1)
        npa = stage.clients.identity(NPA_RECORDS)
        await call(stage.clients.registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
        async with meshes.channel(self._running, "registry") as registry:
            method = EnrolmentServiceStub(registry).IssueEnrolmentCode
            request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id)
            code = (await call(method, request, stage.clients.identity(DESKS["police"]))).code
        found = [PhoneAddress("the protected person's app", f"{url}/", code)]
        for leg in flow.AGENCY_LEGS:
            await self._put_unit(leg, version=1)
            link = await call(
                self._legs[leg][1].IssueUnitLink,
                unit_duty_pb2.IssueUnitLinkRequest(unit_id=self.unit_id(leg)),
                self._desk(leg),
            )
            found.append(PhoneAddress(f"the page of the {leg} unit", f"{url}/unit/#{link.code}"))
        return found

    async def until_opened(self) -> None:
        """Waits until a person has opened a unit's page of each agency. Raises CommandFailed."""

        async def opened() -> bool:
            return all([(await self._report(leg)).HasField("reported_at") for leg in flow.AGENCY_LEGS])

        await self._until(opened, OPENED_WITHIN_S, "nobody opened the pages of both units", distance_m=FAR_M)

    async def until_answered(self, show: Callable[[str], None]) -> str:
        """Waits until the units have closed all assignments, and shows each step. Returns a line for the reader."""
        shown: dict[str, int] = {}

        async def closed() -> bool:
            own = [each for leg in flow.AGENCY_LEGS for each in await self._assignments(leg)]
            for each in own:
                if shown.get(each.assignment_id) != each.state:
                    shown[each.assignment_id] = each.state
                    leg = alert_pb2.Leg.Name(each.leg).lower()
                    show(f"{leg}: {State.Name(each.state).lower().replace('_', ' ')}")
            if desks := [each for each in own if each.state == State.ESCALATED and not each.choice.unit_id]:
                leg = alert_pb2.Leg.Name(desks[0].leg).lower()
                raise CommandFailed(
                    f"the {leg} unit didn't accept in time, so the supervisor's desk was asked, where nobody sits here"
                )
            offered = [each for each in own if each.HasField("offered_at")]
            return bool(offered) and all(each.state in ENDED for each in offered)

        door_m = self._stage.plan.to_100_m[-1]
        await self._until(closed, ANSWERED_WITHIN_S, "the units didn't close their assignments", distance_m=door_m)
        return "both units have closed their assignments, and nobody was at a desk"

    async def remove_units(self) -> None:
        """Takes units and offices off the roster, so that offers go to the desks again."""
        for leg in flow.AGENCY_LEGS:
            await self._put_unit(leg, version=2, removed=True)

    async def _put_unit(self, leg: str, version: int, *, removed: bool = False) -> None:
        roster, office_id = self._legs[leg][0], self._stage.plan.id(f"{leg}-office")
        office = roster_pb2.Office(
            office_id=office_id,
            version=version,
            supervisor_desk="supervisor",
            national_desk="national",
            removed=removed,
        )
        now_ms = self._stage.clients.clock.now_ms()
        unit = roster_pb2.Unit(
            unit_id=self.unit_id(leg),
            version=version,
            office_id=office_id,
            unit_class=UNIT_CLASS[leg],
            shift_from=times.to_timestamp(now_ms - 60_000),
            shift_until=times.to_timestamp(now_ms + SHIFT_MS),
            removed=removed,
        )
        await call(roster.PutOffices, roster_pb2.PutOfficesRequest(offices=[office]), self._desk(leg))
        await call(roster.PutUnits, roster_pb2.PutUnitsRequest(units=[unit]), self._desk(leg))

    async def _report(self, leg: str) -> roster_pb2.UnitReport:
        listed = await call(self._legs[leg][0].ListUnits, roster_pb2.ListUnitsRequest(), self._desk(leg))
        return next(each for each in listed.units if each.unit.unit_id == self.unit_id(leg))

    async def _assignments(self, leg: str) -> Sequence[dispatch_pb2.Assignment]:
        method = self._stage.clients.dispatch[leg].ListIncidents
        listed = await call(method, dispatch_pb2.ListIncidentsRequest(), self._desk(leg))
        number = alert_pb2.Leg.Value(leg.upper())
        return [
            each
            for incident in listed.incidents
            if self._stage.order_id in incident.order_ids
            for each in incident.assignments
            if each.leg == number and not each.HasField("contact")
        ]

    async def _until(
        self, check: Callable[[], Awaitable[bool]], within_s: float, failure: str, *, distance_m: float
    ) -> None:
        """Waits until a check holds. Meanwhile tag and app report, as silence would be another alert."""
        give_up_s = asyncio.get_running_loop().time() + within_s
        while not await check():
            if asyncio.get_running_loop().time() > give_up_s:
                raise CommandFailed(f"{failure} within {within_s:.0f} s")
            await self._stage.walk((distance_m + SCATTER_M * (next(self._moments) * GOLDEN % 1),))

    def _desk(self, leg: str) -> meshes.Metadata:
        return self._stage.clients.identity(DESKS[leg])


@asynccontextmanager
async def phones(running: MeshConnection, stage: DemoStage) -> AsyncIterator[DemoPhones]:
    """The demo's phones. At the end the roster is as it was. Raises CommandFailed if the mesh has no app."""
    if not running.field_url:
        raise CommandFailed("--phones: this mesh has no app for phones: start it with `tandem up`", MISUSED)
    async with AsyncExitStack() as stack:
        legs = {}
        for leg in flow.AGENCY_LEGS:
            channel = await stack.enter_async_context(meshes.channel(running, f"dispatch-{leg}"))
            legs[leg] = RosterServiceStub(channel), UnitDutyServiceStub(channel)
        made = DemoPhones(running, stage, legs)
        try:
            yield made
        finally:
            await made.remove_units()
