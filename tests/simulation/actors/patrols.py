"""The police's patrol cars: their desk puts an office and units on the roster, and the cars report where they are while they move."""

from __future__ import annotations

import asyncio
import math

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from services.client.actors import DESKS
from services.client.calls import call, may_succeed_later
from services.common.failure import CommandFailed
from services.common.rpc import server
from tandem.common.v1 import geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tests.simulation.actors.desk import Desk
from tests.simulation.actors.town import METRES_PER_DEGREE, Town
from tests.simulation.kernel.world import SECOND_NS, START_NS, World
from tests.simulation.mesh.processes import SECRET, address_of

CARS = 2
REPORT_INTERVAL_S = (15.0, 45.0)
SPEED_MPS = 14.0
AWAY_M = 4_000.0
"""Distance from the home in its area at which a car waits, metres."""
BREAK_SHARE = 0.05
"""Share of reports with which a car that has no task goes off duty for a while."""
State = dispatch_pb2.AssignmentState
TASKED = (State.ACKNOWLEDGED, State.DISPATCHED, State.EN_ROUTE, State.ON_SCENE)


class Patrols:
    """All cars of a world. Where they are survives a crash of their process."""

    def __init__(self, world: World, town: Town, desk: Desk, *, has_roster: bool) -> None:
        self.refusals: list[str] = []
        """Calls that the leg refused: a defect of the simulation or of the leg."""
        self._world = world
        self._town = town
        self._desk = desk
        self._has_roster = has_roster
        self._place = [self._waiting_place(car) for car in range(CARS)]

    def _home(self, car: int) -> tuple[float, float]:
        household = self._town.households[car % len(self._town.households)]
        return household.lat_deg, household.lon_deg

    def _waiting_place(self, car: int) -> tuple[float, float]:
        lat_deg, lon_deg = self._home(car)
        return lat_deg + AWAY_M / METRES_PER_DEGREE, lon_deg

    async def run(self) -> None:
        """Puts the roster, then lets all cars move. Does nothing in a world without a roster."""
        if not self._has_roster:
            await asyncio.Event().wait()
        stub = RosterServiceStub(server.channel(address_of("dispatch-police")))
        office = roster_pb2.Office(
            office_id="station", version=1, supervisor_desk="supervisor", national_desk="national"
        )
        await self._call(stub.PutOffices, roster_pb2.PutOfficesRequest(offices=[office]))
        began_s = START_NS // SECOND_NS
        units = [
            roster_pb2.Unit(
                unit_id=f"car-{car}",
                version=1,
                office_id="station",
                unit_class="patrol-car",
                shift_from=Timestamp(seconds=began_s - 3_600),
                shift_until=Timestamp(seconds=began_s + 86_400),
            )
            for car in range(CARS)
        ]
        await self._call(stub.PutUnits, roster_pb2.PutUnitsRequest(units=units))
        async with asyncio.TaskGroup() as tasks:
            for car in range(CARS):
                tasks.create_task(self._drive(stub, car))

    async def _drive(self, stub: RosterServiceStub, car: int) -> None:
        while True:
            pause_s = self._world.between(*REPORT_INTERVAL_S)
            await asyncio.sleep(pause_s)
            is_tasked = any(
                assignment.choice.unit_id == f"car-{car}" and assignment.state in TASKED
                for assignment in self._desk.assignments.values()
            )
            to = self._home(car) if is_tasked else self._waiting_place(car)
            self._place[car] = _moved(self._place[car], to, SPEED_MPS * pause_s)
            is_off = not is_tasked and self._world.random.random() < BREAK_SHARE
            lat_deg, lon_deg = self._place[car]
            at = Timestamp()
            at.FromNanoseconds(self._world.now_ns)
            report = roster_pb2.ReportUnitRequest(
                unit_id=f"car-{car}",
                status=roster_pb2.OFF if is_off else roster_pb2.AVAILABLE,
                position=geometry_pb2.Point(lat_deg=lat_deg, lon_deg=lon_deg),
                at=at,
            )
            await self._call(stub.ReportUnit, report)

    async def _call(self, method: object, request: object) -> None:
        while True:
            try:
                await call(method, request, server.bearer(DESKS["police"], SECRET))  # type: ignore[arg-type]
                return
            except CommandFailed:
                continue
            except grpc.aio.AioRpcError as error:
                if not may_succeed_later(error):
                    self.refusals.append(f"{type(request).__name__}: {error.code().name}: {error.details()}")
                    return


def _moved(place: tuple[float, float], to: tuple[float, float], way_m: float) -> tuple[float, float]:
    """The place after a way towards another place, degrees of latitude and longitude."""
    north, east = to[0] - place[0], to[1] - place[1]
    left_m = METRES_PER_DEGREE * math.hypot(north, east * math.cos(math.radians(place[0])))
    share = min(1.0, way_m / left_m) if left_m else 1.0
    return place[0] + share * north, place[1] + share * east
