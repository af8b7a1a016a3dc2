"""The two agencies' records systems: they put wearers, tags, persons and orders into the registry, and change orders later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID
from services.client.calls import call, may_succeed_later
from services.common.failure import CommandFailed
from services.common.rpc import server
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import registry_pb2
from tandem.registry.v1.registry_pb2_grpc import RegistryServiceStub
from tests.simulation.actors.town import HOME_RADIUS_M, Household, Town
from tests.simulation.kernel.process import current
from tests.simulation.kernel.world import SECOND_NS, START_NS
from tests.simulation.mesh.processes import SECRET, address_of

PAUSE_S = (0.0, 20.0)
"""Least and greatest time between two households' first records, seconds."""
CHANGE_PAUSE_S = (40.0, 240.0)
"""Least and greatest time between two changes of orders, seconds."""
CORRECTED_SHARE = 0.5
"""Share of changes that the agency follows up at once with another change of the same order: it corrects what it has just put."""
ENDED_SHARE = 0.08
"""Share of changes that end the order."""
VALID_FROM_S, VALID_DAYS = START_NS // SECOND_NS - 86_400, (20, 60, 89)
EXTENDED_S = 30 * 86_400
WORKPLACE_NORTH_DEG = 0.04
"""A workplace is 4.4 km north of the home: beyond the ring that demands a notice, so that what judges know of the home stays true."""


class Change(StrEnum):
    """A change of an order."""

    PROLONG = "prolong"
    ADD_PLACE = "add a place"
    REMOVE_PLACE = "remove a place"
    END = "end"


@dataclass(slots=True)
class AcceptedOrder:
    """An order as the registry has accepted it last."""

    household: Household
    version: int
    valid_until_s: int
    """End of its validity, Unix seconds."""
    extensions: int
    place_ids: list[str]
    accepted_s: float
    """When the registry answered, seconds since the world's start."""
    is_ended: bool = False


@dataclass(slots=True)
class Agencies:
    """Both records systems. What was put survives their crash, so that no version is put with another content."""

    town: Town
    on_record: Callable[[], None] = lambda: None
    """Called after each answer of the registry to a record."""
    orders: dict[str, AcceptedOrder] = field(default_factory=dict)
    """Orders that the registry has accepted, by their ids."""
    failed: list[str] = field(default_factory=list)
    """Records that the registry refused, with the reason: a defect of the simulation or of the registry."""
    _done: int = 0
    """Number of households whose records are in the registry."""
    _changing: tuple[str, Change, int] | None = None
    """Order, change and time of the change under way, Unix seconds: after a crash it is sent with the same content."""
    _followed_up: str = ""
    """Order of which the next change follows at once. Empty, the default, if the next change is drawn later."""

    async def run(self) -> None:
        """Puts all records, then changes orders."""
        stub = RegistryServiceStub(server.channel(address_of("registry")))
        world = current().world
        while self._done < len(self.town.households):
            await self._put(stub, self.town.households[self._done])
            self._done += 1
            await asyncio.sleep(world.between(*PAUSE_S))
        while True:
            if self._changing is None:
                if not self._followed_up:
                    await asyncio.sleep(world.between(*CHANGE_PAUSE_S))
                self._changing, self._followed_up = self._drawn(), ""
            if self._changing:
                order_id = self._changing[0]
                await self._change(stub, *self._changing)
                self._changing = None
                if world.random.random() < CORRECTED_SHARE and not self.orders[order_id].is_ended:
                    self._followed_up = order_id

    def _drawn(self) -> tuple[str, Change, int] | None:
        """A change to make next; None if there is no order left that could change."""
        world = current().world
        open_orders = [order for order in self.orders.values() if not order.is_ended]
        if not open_orders:
            return None
        order = self.orders.get(self._followed_up) or world.random.choice(open_orders)
        kinds = [Change.ADD_PLACE if len(order.place_ids) < 2 else Change.REMOVE_PLACE]
        kinds += [Change.PROLONG] * (order.extensions < 2)
        change = Change.END if world.random.random() < ENDED_SHARE else world.random.choice(kinds)
        now_s = START_NS // SECOND_NS + int(world.elapsed_s)
        if change is Change.END:
            order.household.order_ends_s = float(int(world.elapsed_s))
        return order.household.order_id, change, now_s

    async def _put(self, stub: RegistryServiceStub, household: Household) -> None:
        n = household.number
        moj, npa = server.bearer(MOJ_RECORDS, SECRET), server.bearer(NPA_RECORDS, SECRET)
        wearer = registry_pb2.Wearer(
            wearer_id=f"wearer-{n}",
            national_id=household.national_id,
            name=household.wearer_name,
            birth_date=household.birth_date,
            source_version=1,
        )
        tag = registry_pb2.Tag(
            device_id=household.tag.device_id, wearer_id=f"wearer-{n}", source_version=1, vendor_id=VENDOR_ID
        )
        await self._persist(stub.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
        await self._persist(stub.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)
        for person_id, name, phone in household.residents:
            person = registry_pb2.ProtectedPerson(person_id=person_id, name=name, source_version=1)
            device = registry_pb2.Device(
                device_id=phone.device_id, person_id=person_id, source_version=1, vendor_id=VENDOR_ID
            )
            request = registry_pb2.PutProtectedPersonRequest(protected_person=person)
            await self._persist(stub.PutProtectedPerson, request, npa)
            await self._persist(stub.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
        valid_until_s = VALID_FROM_S + VALID_DAYS[n % len(VALID_DAYS)] * 86_400
        order = AcceptedOrder(household, 1, valid_until_s, 0, place_ids=[f"home-{n}"], accepted_s=0.0)
        await self._put_order(stub, order)

    async def _put_order(self, stub: RegistryServiceStub, order: AcceptedOrder) -> None:
        household = order.household
        message = registry_pb2.Order(
            order_id=household.order_id,
            respondent=registry_pb2.Respondent(
                national_id=household.national_id, name=household.wearer_name, birth_date=household.birth_date
            ),
            protected_person_ids=[resident.person_id for resident in household.residents],
            places=[_place(household, place_id) for place_id in order.place_ids],
            valid_from=Timestamp(seconds=VALID_FROM_S),
            valid_until=Timestamp(seconds=order.valid_until_s),
            source_version=order.version,
            extensions=order.extensions,
        )
        npa = server.bearer(NPA_RECORDS, SECRET)
        if await self._persist(stub.PutOrder, registry_pb2.PutOrderRequest(order=message), npa):
            order.accepted_s = current().world.elapsed_s
            self.orders[household.order_id] = order

    async def _change(self, stub: RegistryServiceStub, order_id: str, change: Change, at_s: int) -> None:
        """Sends a change of an order until the registry has answered."""
        known = self.orders[order_id]
        household, version = known.household, known.version + 1
        if change is Change.END:
            request = registry_pb2.EndOrderRequest(
                order_id=order_id,
                source_version=version,
                reason=registry_pb2.END_REASON_CANCELLED_BY_COURT,
                ended_at=Timestamp(seconds=at_s),
            )
            if await self._persist(stub.EndOrder, request, server.bearer(NPA_RECORDS, SECRET)):
                now_s = current().world.elapsed_s
                self.orders[order_id] = AcceptedOrder(
                    household, version, at_s, known.extensions, known.place_ids, now_s, is_ended=True
                )
            return
        more_s = EXTENDED_S if change is Change.PROLONG else 0
        places = {
            Change.ADD_PLACE: [*known.place_ids, f"work-{household.number}"],
            Change.REMOVE_PLACE: known.place_ids[:1],
        }
        changed = AcceptedOrder(
            household,
            version,
            known.valid_until_s + more_s,
            known.extensions + bool(more_s),
            place_ids=places.get(change, known.place_ids),
            accepted_s=0.0,
        )
        await self._put_order(stub, changed)

    async def _persist(self, method: object, request: object, identity: server.Metadata) -> bool:
        """Sends a record until the registry has answered. Returns whether it was accepted."""
        while True:
            try:
                await call(method, request, identity)  # type: ignore[arg-type]
            except CommandFailed:
                continue
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    self.failed.append(f"{type(request).__name__}: {error.code().name}: {error.details()}")
                    return False
                continue
            self.on_record()
            return True


def _place(household: Household, place_id: str) -> geometry_pb2.Place:
    north_deg = WORKPLACE_NORTH_DEG if place_id.startswith("work-") else 0.0
    circle = geometry_pb2.Circle(
        lat_deg=household.lat_deg + north_deg, lon_deg=household.lon_deg, radius_m=HOME_RADIUS_M
    )
    return geometry_pb2.Place(place_id=place_id, circle=circle)
