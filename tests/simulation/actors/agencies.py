"""The two agencies' records systems: they put wearers, tags, orders and protected persons into the registry."""

from __future__ import annotations

import asyncio

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.cli.calls import call, may_succeed_later
from services.cli.failure import CommandFailed
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID
from services.common.rpc import server
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import registry_pb2
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tests.simulation.actors.town import HOME_RADIUS_M, Household, Town
from tests.simulation.kernel.process import current
from tests.simulation.mesh.processes import SECRET, address_of

PAUSE_S = (0.0, 20.0)
"""Least and greatest time between two records, seconds."""
VALID_FROM_S, VALID_UNTIL_S = 1_750_000_000, 1_900_000_000


class Agencies:
    """Both records systems. What was put survives their crash, so that no version is put with another content."""

    def __init__(self, town: Town) -> None:
        self._town = town
        self._done = 0
        """Number of households whose records are in the registry."""
        self.failed: list[str] = []
        """Records that the registry refused, with the reason: a defect of the simulation or of the registry."""

    @property
    def accepted_orders(self) -> list[str]:
        """Ids of the orders that the registry has accepted."""
        return [household.order_id for household in self._town.households[: self._done]]

    async def run(self) -> None:
        """Puts all records, then waits."""
        stub = RegistryServiceStub(server.channel(address_of("registry")))
        world = current().world
        while self._done < len(self._town.households):
            await self._put(stub, self._town.households[self._done])
            self._done += 1
            await asyncio.sleep(world.between(*PAUSE_S))
        await asyncio.Event().wait()

    async def _put(self, stub: RegistryServiceStub, household: Household) -> None:
        n = household.number
        moj, npa = server.bearer(MOJ_RECORDS, SECRET), server.bearer(NPA_RECORDS, SECRET)
        wearer = registry_pb2.Wearer(
            wearer_id=f"wearer-{n}",
            national_id=household.national_id,
            name=household.names[0],
            birth_date=household.birth_date,
            source_version=1,
        )
        tag = registry_pb2.Tag(
            device_id=household.tag.device_id, wearer_id=f"wearer-{n}", source_version=1, vendor_id=VENDOR_ID
        )
        person = registry_pb2.ProtectedPerson(person_id=f"person-{n}", name=household.names[1], source_version=1)
        device = registry_pb2.Device(
            device_id=household.phone.device_id, person_id=f"person-{n}", source_version=1, vendor_id=VENDOR_ID
        )
        home = geometry_pb2.Circle(lat_deg=household.lat_deg, lon_deg=household.lon_deg, radius_m=HOME_RADIUS_M)
        order = registry_pb2.Order(
            order_id=household.order_id,
            respondent=registry_pb2.Respondent(
                national_id=household.national_id, name=household.names[0], birth_date=household.birth_date
            ),
            protected_person_ids=[f"person-{n}"],
            places=[geometry_pb2.Place(place_id=f"home-{n}", circle=home)],
            valid_from=Timestamp(seconds=VALID_FROM_S),
            valid_until=Timestamp(seconds=VALID_UNTIL_S),
            source_version=1,
        )
        for method, request, identity in (
            (stub.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj),
            (stub.PutTag, registry_pb2.PutTagRequest(tag=tag), moj),
            (stub.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa),
            (stub.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa),
            (stub.PutOrder, registry_pb2.PutOrderRequest(order=order), npa),
        ):
            await self._persist(method, request, identity)

    async def _persist(self, method: object, request: object, identity: server.Metadata) -> None:
        while True:
            try:
                await call(method, request, identity)  # type: ignore[arg-type]
                return
            except CommandFailed:
                continue
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    self.failed.append(f"{type(request).__name__}: {error.code().name}: {error.details()}")
                    return
