"""Records of the phones: a device and a code for each protected person, and units of the police with their links."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from bench.mesh.population import Party
from services.client import mesh
from services.client.actors import DESKS, NPA_RECORDS
from services.client.calls import call
from services.client.mesh import Clients
from services.common import times
from tandem.dispatch.v1 import roster_pb2, unit_duty_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.registry.v1 import enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

OFFICE, SHIFT_MS = "office", 4 * 3_600_000


class PhoneRecords:
    """Puts the records that phones need, as the police's records system and its desk do."""

    def __init__(
        self,
        clients: Clients,
        enrolments: EnrolmentServiceStub,
        roster: RosterServiceStub,
        *,
        duty: UnitDutyServiceStub,
    ) -> None:
        self._clients = clients
        self._enrolments = enrolments
        self._roster = roster
        self._duty = duty
        self._desk = clients.identity(DESKS["police"])

    async def code(self, case: Party) -> str:
        """Puts a phone for a case's protected person, beside the device that she has, and returns the code that connects it."""
        device = registry_pb2.Device(device_id=phone_id(case), person_id=f"person-{case.number}", source_version=1)
        npa = self._clients.identity(NPA_RECORDS)
        await call(self._clients.registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
        request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device.device_id, valid_for_s=3_600)
        return str((await call(self._enrolments.IssueEnrolmentCode, request, self._desk)).code)

    async def links(self, unit_ids: Sequence[str]) -> list[str]:
        """Puts units on the roster, and returns the code of each unit's link."""
        now_ms = self._clients.clock.now_ms()
        office = roster_pb2.Office(office_id=OFFICE, version=1, supervisor_desk="supervisor", national_desk="national")
        await call(self._roster.PutOffices, roster_pb2.PutOfficesRequest(offices=[office]), self._desk)
        units = [
            roster_pb2.Unit(
                unit_id=id_,
                version=1,
                office_id=OFFICE,
                unit_class="patrol-car",
                shift_from=times.to_timestamp(now_ms - 60_000),
                shift_until=times.to_timestamp(now_ms + SHIFT_MS),
            )
            for id_ in unit_ids
        ]
        await call(self._roster.PutUnits, roster_pb2.PutUnitsRequest(units=units), self._desk)
        requests = [unit_duty_pb2.IssueUnitLinkRequest(unit_id=id_) for id_ in unit_ids]
        return [(await call(self._duty.IssueUnitLink, request, self._desk)).code for request in requests]


def phone_id(case: Party) -> str:
    """Device id of the phone of a case's protected person."""
    return f"phone-{case.number}"


@asynccontextmanager
async def records(clients: Clients) -> AsyncIterator[PhoneRecords]:
    """The records of a running mesh."""
    async with AsyncExitStack() as stack:
        registry = await stack.enter_async_context(mesh.channel(clients.mesh, "registry"))
        police = await stack.enter_async_context(mesh.channel(clients.mesh, "dispatch-police"))
        yield PhoneRecords(
            clients,
            EnrolmentServiceStub(registry),
            RosterServiceStub(police),
            duty=UnitDutyServiceStub(police),
        )
