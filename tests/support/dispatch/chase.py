"""A scripted chase on a whole mesh: a wearer comes to a protected person's home, turns, and drives to her second place.

Fixes are dated back, so that a chase of five minutes takes a few seconds. The last fix of each part is current.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio

from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Alerts, Desk, HeadEnd, Matches
from services.client.calls import call
from services.client.mesh import Clients, connect
from services.common import times
from services.common.rpc import server
from tandem.common.v1 import geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2_grpc, roster_pb2, roster_pb2_grpc
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.mesh import RunningMesh

Place = tuple[float, float]
"""Latitude and longitude, degrees."""
HOME: Place = (37.4321987, 127.3456789)
SECOND: Place = (37.4476543, 127.3643219)
"""2.4 km from HOME."""
REACH_M = 20
METRES_PER_DEGREE = 111_195.0
PATIENCE_S = 180.0


def north_of(place: Place, metres: float) -> Place:
    """Returns the point `metres` to the north."""
    return place[0] + metres / METRES_PER_DEGREE, place[1]


def near(place: Place, n: int = 1) -> Place:
    """Returns a point n times 64 m away, with a different latitude and longitude."""
    return place[0] + n * 60 / METRES_PER_DEGREE, place[1] + n * 0.00025


def between(a: Place, b: Place, steps: int) -> list[Place]:
    """Returns points on the line from `a` to `b`, without `a`."""
    return [tuple(x + (y - x) * n / steps for x, y in zip(a, b, strict=True)) for n in range(1, steps + 1)]  # type: ignore[misc]


UNITS: dict[str, dict[str, Place]] = {
    leg: {
        "beside-home": north_of(near(HOME, n), 4_500),
        "near-home": north_of(near(HOME, n), 4_000),
        "near-second": north_of(near(SECOND, n), 1_500),
    }
    for leg, n in (("probation", 2), ("police", 0))
}
"""Units of each leg with their positions. No two positions share a coordinate."""


class Chase:
    """A wearer, a protected person with two places, and two desks with three units each."""

    def __init__(
        self,
        clients: Clients,
        run_id: str,
        head_end: HeadEnd,
        desks: dict[str, Desk],
        alerts: Alerts,
        stack: AsyncExitStack,
    ) -> None:
        self.clients = clients
        self.run_id = run_id
        self.desks = desks
        self.alerts = alerts
        self.order_id, self.wearer_id, self.person_id = (f"{what}-{run_id}" for what in ("order", "wearer", "person"))
        self.destinations = (self.person_id, f"{self.order_id}/home", f"{self.order_id}/second")
        self.commanded: list[ingest_pb2.DeviceCommand] = []
        self._head_end = head_end
        self._stack = stack
        self._reports = 0

    def identity(self, leg: str) -> server.Metadata:
        """Returns the identity of a leg's desk."""
        return self.clients.identity(DESKS[leg])

    async def channel(self, name: str) -> grpc.aio.Channel:
        """Opens a channel to a process of the mesh."""
        return await self._stack.enter_async_context(server.channel(self.clients.mesh.addresses[name]))

    async def following(self, leg: str) -> following_pb2_grpc.FollowingServiceStub:
        """Opens a stub of a leg's FollowingService."""
        return following_pb2_grpc.FollowingServiceStub(await self.channel(f"dispatch-{leg}"))

    async def put(self, basis: registry_pb2.TagBasis.ValueType, order_type: registry_pb2.OrderType.ValueType) -> None:
        """Stores the records of wearer, person and order, and waits for their match."""
        registry = self.clients.registry
        npa = self.clients.identity(NPA_RECORDS)
        moj = self.clients.identity(MOJ_RECORDS)
        number = f"{time.time_ns() // 1000 % 10**13:013d}"
        wearer = registry_pb2.Wearer(
            wearer_id=self.wearer_id, national_id=number, name="Made Up", birth_date="1990-01-01", source_version=1
        )
        tag = registry_pb2.Tag(
            device_id=f"tag-{self.run_id}",
            wearer_id=self.wearer_id,
            source_version=1,
            vendor_id=VENDOR_ID,
            basis=basis,
        )
        person = registry_pb2.ProtectedPerson(person_id=self.person_id, name="Made Up Too", source_version=1)
        device = registry_pb2.Device(
            device_id=f"app-{self.run_id}", person_id=self.person_id, source_version=1, vendor_id=VENDOR_ID
        )
        now_ms = self.clients.clock.now_ms()
        ring = geometry_pb2.Ring
        order = registry_pb2.Order(
            order_id=self.order_id,
            respondent=registry_pb2.Respondent(national_id=number, name="Made Up", birth_date="1990-01-01"),
            protected_person_ids=[self.person_id],
            places=[
                geometry_pb2.Place(
                    place_id=name, circle=geometry_pb2.Circle(lat_deg=at[0], lon_deg=at[1], radius_m=REACH_M)
                )
                for name, at in (("home", HOME), ("second", SECOND))
            ],
            rings=[
                ring(radius_m=2000, action=geometry_pb2.WARN),
                ring(radius_m=1000, action=geometry_pb2.NOTIFY),
                ring(radius_m=100, action=geometry_pb2.RESPOND),
            ],
            valid_from=times.to_timestamp(now_ms // 1000 * 1000 - 3_600_000),
            valid_until=times.to_timestamp(now_ms // 1000 * 1000 + 86_400_000),
            source_version=1,
            type=order_type,
        )
        await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
        await call(registry.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)
        await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
        await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
        async with Matches(self.clients, NPA_RECORDS) as matches:
            await call(registry.PutOrder, registry_pb2.PutOrderRequest(order=order), npa)
            await matches.until("the match", lambda: matches.seen_wall_us.get(self.order_id), PATIENCE_S)

    async def put_roster(self, leg: str) -> None:
        """Stores an office with the units of UNITS in a leg's roster."""
        roster = roster_pb2_grpc.RosterServiceStub(await self.channel(f"dispatch-{leg}"))
        me, now_ms = self.identity(leg), self.clients.clock.now_ms()
        office = roster_pb2.Office(office_id="a", version=1, supervisor_desk="supervisor-a", national_desk="national")
        await call(roster.PutOffices, roster_pb2.PutOfficesRequest(offices=[office]), me)
        since, until = times.to_timestamp(now_ms - 3_600_000), times.to_timestamp(now_ms + 36_000_000)
        units = [
            roster_pb2.Unit(
                unit_id=name,
                version=now_ms,
                office_id="a",
                unit_class="patrol-car",
                contact_key=name,
                shift_from=since,
                shift_until=until,
            )
            for name in UNITS[leg]
        ]
        await call(roster.PutUnits, roster_pb2.PutUnitsRequest(units=units), me)
        for name, at in UNITS[leg].items():
            report = roster_pb2.ReportUnitRequest(
                unit_id=name, status=roster_pb2.AVAILABLE, at=times.to_timestamp(now_ms)
            )
            report.position.lat_deg, report.position.lon_deg = at
            await call(roster.ReportUnit, report, me)

    async def drive(self, points: Sequence[Place], *, until_ago_s: float, every_s: float) -> None:
        """Sends fixes of the wearer, the last one `until_ago_s` old. The protected person stays at home."""
        now_ms = self.clients.clock.now_ms()
        fixes: list[ingest_pb2.Position] = []
        for n, point in enumerate(points, 1):
            at_ms = now_ms - round(1000 * (until_ago_s + (len(points) - n) * every_s))
            for device, (lat_deg, lon_deg) in ((f"app-{self.run_id}", HOME), (f"tag-{self.run_id}", point)):
                self._reports += 1
                fixes.append(
                    ingest_pb2.Position(
                        device_id=device,
                        report_id=f"{self.run_id}-{self._reports}",
                        fix_time=times.to_timestamp(at_ms),
                        lat_deg=lat_deg,
                        lon_deg=lon_deg,
                        accuracy_m=5,
                    )
                )
        refusals = await self._head_end.carry(fixes)
        assert not refusals, refusals

    async def cut_strap(self) -> None:
        """Has the tag report that its strap was opened now."""
        event = ingest_pb2.EquipmentEvent(
            device_id=f"tag-{self.run_id}",
            report_id=f"cut-{self.run_id}",
            event_time=times.to_timestamp(self.clients.clock.now_ms()),
            event=log_pb2.STRAP_OPEN,
        )
        assert not await self._head_end.carry([event])

    async def come_home(self) -> None:
        """Drives from 2.5 km away to 64 m from her home, with the arrival 120 s ago."""
        await self.drive(between(north_of(near(HOME), 2_400), near(HOME), 12), until_ago_s=120, every_s=15)

    async def turn_to_second(self) -> None:
        """Drives from her home to 64 m from her second place, with the arrival now."""
        await self.drive(between(near(HOME), near(SECOND), 7), until_ago_s=0, every_s=15)

    async def until(
        self, leg: str, what: str, good: Callable[[dispatch_pb2.Assignment], Any]
    ) -> dispatch_pb2.Assignment:
        """Waits for an assignment of a leg that fulfils `good`, and returns the first."""
        desk = self.desks[leg]
        return await desk.until(
            what,
            lambda: next((assignment for assignment in desk.assignments.values() if good(assignment)), None),
            PATIENCE_S,
        )

    async def acknowledged(self, leg: str, subject_id: str) -> dispatch_pb2.Assignment:
        """Waits until a desk has acknowledged the assignment of a destination, and returns it."""
        return await self.until(
            leg,
            subject_id,
            lambda assignment: assignment.subject_id == subject_id and assignment.HasField("acknowledged_at"),
        )

    async def end_order(self) -> None:
        """Cancels the order by the court, so that the incident ends."""
        request = registry_pb2.EndOrderRequest(
            order_id=self.order_id,
            reason=registry_pb2.END_REASON_CANCELLED_BY_COURT,
            source_version=2,
            ended_at=times.to_timestamp(self.clients.clock.now_ms() // 1000 * 1000),
        )
        await call(self.clients.registry.EndOrder, request, self.clients.identity(NPA_RECORDS))


@asynccontextmanager
async def chase(
    mesh: RunningMesh,
    *,
    basis: registry_pb2.TagBasis.ValueType = registry_pb2.TAG_BASIS_UNSPECIFIED,
    order_type: registry_pb2.OrderType.ValueType = registry_pb2.ORDER_TYPE_UNSPECIFIED,
) -> AsyncIterator[Chase]:
    """Prepares a chase whose desks accept each offer. The wearer hasn't moved yet. `basis` is why the wearer wears the tag."""
    run_id = f"{time.time_ns() // 1000:x}"
    commanded: list[ingest_pb2.DeviceCommand] = []
    async with connect(mesh.now) as clients, AsyncExitStack() as stack:
        order_ids = (f"order-{run_id}",)
        desks = {
            leg: await stack.enter_async_context(Desk(clients, leg, order_ids, answers=True))
            for leg in ("probation", "police", "warning")
        }
        alerts = await stack.enter_async_context(Alerts(clients, order_ids))
        head_end = await stack.enter_async_context(HeadEnd(clients, commanded.append))
        chased = Chase(clients, run_id, head_end, desks, alerts, stack)
        chased.commanded = commanded
        await chased.put(basis, order_type)
        yield chased
