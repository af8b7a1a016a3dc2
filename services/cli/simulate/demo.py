"""The demo: the Namyangju case as it would go once the agencies' records are linked. All its people are made up.

The demo uses the public interfaces only, through the clients of actors.py. `play` yields as each step begins and ends, so that a
person can follow it, and a test can kill a process in between.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import TypeAlias

from services.cli.calls import call
from services.cli.failure import CommandFailed
from services.cli.simulate import outcome
from services.cli.simulate.actors import MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Desk, HeadEnd, Matches, State
from services.cli.stack.mesh import OPERATOR, Clients
from services.common import times
from services.common.clock import MeshClock, wall_us
from services.common.messaging import flow
from tandem.common.v1 import geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2

HOME = geometry_pb2.Circle(lat_deg=37.6360, lon_deg=127.2165, radius_m=20)
METRES_PER_DEGREE = 111_195.0
"""Length of a degree of latitude on the sphere of mean radius, metres. The demo needs no better precision."""
BIRTH_DATE = "1990-01-01"
LATENCIES_WITHIN_S = 5.0
"""Maximum time that `settled` waits for the offer latencies of all legs, seconds. It then returns without the missing ones."""
LAST_NOTICE_WITHIN_S = 30.0
"""Maximum time that the demo waits for the last notice on her phone, seconds of mesh time. She gets 20 s to read the one before it."""
STOOD_DOWN_WITHIN_S = 180.0
"""Maximum time until all legs stand down after the wearer has gone, seconds of wall time. Four positions of each of her devices must
agree that he has left, and a phone reports each 15 s."""
OVERHEAD_S = 4.0
"""Time that the steps of the demo take besides its walks, seconds of wall time, rounded up."""
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Plan:
    """Parameters of one run of the demo."""

    run_id: str
    """Suffix of all its ids, unique per run."""
    national_id: str
    """Fictitious national number that the wearer and the respondent share."""
    pace_s: float = 1.0
    """Time between two positions, seconds of mesh time."""
    clear_after_s: int = 3
    """A ring is cleared this long after the wearer left it, seconds of mesh time."""
    to_2_km: tuple[float, ...] = (3000, 2400, 1900)
    """The wearer's distances from the protected person's home, metres, until the 2 km ring is entered."""
    to_1_km: tuple[float, ...] = (1400, 950)
    to_100_m: tuple[float, ...] = (500, 200, 130, 60)
    """The wearer's further distances, metres, until the 100 m ring is entered.

    No step is a position jump: after a jump, a second position would have to agree before anybody is sent.
    """
    away: tuple[float, ...] = tuple(60 + 2 * min(s, 12) ** 2 + 50 * max(s - 12, 0) for s in range(2, 54))
    """The wearer's distances, metres, on the way out by car: from standstill to 180 km/h in 12 s.

    A movement that no vehicle can make would clear no ring.
    """

    def lasts_s(self, clock: MeshClock) -> float:
        """Expected duration of the demo, seconds of wall time."""
        walks = (self.to_2_km, self.to_1_km, self.to_100_m, self.away)
        return clock.wall_s(round(sum(map(len, walks)) * self.pace_s * 1000)) + OVERHEAD_S

    def id(self, what: str) -> str:
        """An id of this run, such as `order-18c2f`."""
        return f"{what}-{self.run_id}"


def new_plan() -> Plan:
    """A plan with new ids, derived from the wall clock."""
    run_ms = time.time_ns() // 1_000_000
    return Plan(run_id=f"{run_ms:x}", national_id=f"{run_ms:013d}")


@dataclass(frozen=True, slots=True)
class Begun:
    """Event of `play`: a step begins."""

    name: str
    title: str


@dataclass(frozen=True, slots=True)
class Done:
    """Event of `play`: a step has succeeded."""

    name: str
    title: str
    detail: str
    took_ms: float
    """Duration, milliseconds of wall time."""


class Phone:
    """Her phone and his tag, behind one vendor's head-end, which confirms each command. Notes when a notice was shown to her."""

    def __init__(self, clients: Clients, device_id: str) -> None:
        self._clock, self._device_id = clients.clock, device_id
        self.head_end = HeadEnd(clients, self._note)
        self.notices_ms: list[int] = []
        """When each notice was shown, mesh time, milliseconds since 1970 UTC."""

    async def until_notified_after(self, ms: int) -> bool:
        """Waits until a notice is shown at a time or later: after the end of the incident only one comes, that it is over.

        Returns False if none is shown in time.
        """
        give_up_at = asyncio.get_running_loop().time() + self._clock.wall_s(round(LAST_NOTICE_WITHIN_S * 1000)) + 1.0
        while not any(shown_ms >= ms for shown_ms in self.notices_ms):
            if asyncio.get_running_loop().time() > give_up_at:
                return False
            await asyncio.sleep(POLL_S)
        return True

    def _note(self, command: ingest_pb2.DeviceCommand) -> None:
        if command.device_id == self._device_id and command.instruction.HasField("show_notice"):
            self.notices_ms.append(self._clock.now_ms())


class DemoStage:
    """One run of the demo: the mesh and all actors. Each step is a method that returns a line for the reader."""

    def __init__(
        self, clients: Clients, plan: Plan, matches: Sequence[Matches], *, desks: dict[str, Desk], phone: Phone
    ) -> None:
        self.clients = clients
        self.plan = plan
        self.order_id = plan.id("order")
        self.wearer_id = plan.id("wearer")
        self.person_id = plan.id("person")
        self.home_id = plan.id("home")
        self.home_destination = f"{self.order_id}/{self.home_id}"
        self.began_ms = clients.clock.now_ms()
        """Start of the run, mesh time, milliseconds since 1970 UTC."""
        self.match_ms: float | None = None
        """Time from sending the order until both agencies had seen the match, milliseconds of wall time."""
        self._matches = matches
        self._desks = desks
        self._phone = phone
        self.names = {
            self.wearer_id: "the wearer",
            self.person_id: "the protected person",
            self.home_destination: "her home",
        }
        """Names of the destinations for a reader, by their ids."""
        self._destinations = {"probation": (self.wearer_id,), "police": (self.person_id, self.home_destination)}
        self._order_put_wall_us = 0
        self._reports = 0

    # ── steps ──

    async def set_rules(self) -> str:
        await self._put(log_pb2.Rules(rules_id="demo", clear_after_s=self.plan.clear_after_s))
        return f"a ring is cleared {self.plan.clear_after_s} s after it was left"

    async def put_tag(self) -> str:
        moj, registry = self.clients.identity(MOJ_RECORDS), self.clients.registry
        wearer = registry_pb2.Wearer(
            wearer_id=self.wearer_id,
            national_id=self.plan.national_id,
            name="Demo wearer",
            birth_date=BIRTH_DATE,
            source_version=1,
        )
        await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
        tag = registry_pb2.Tag(
            device_id=self.plan.id("tag"), wearer_id=self.wearer_id, source_version=1, vendor_id=VENDOR_ID
        )
        await call(registry.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)
        return "the wearer was fitted with it after an earlier offence"

    async def put_order(self) -> str:
        npa, registry = self.clients.identity(NPA_RECORDS), self.clients.registry
        person = registry_pb2.ProtectedPerson(person_id=self.person_id, name="Demo protected person", source_version=1)
        await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
        device = registry_pb2.Device(
            device_id=self.plan.id("app"), person_id=self.person_id, source_version=1, vendor_id=VENDOR_ID
        )
        await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)
        from_ms = self.clients.clock.now_ms() // 1000 * 1000 - 60_000
        order = registry_pb2.Order(
            order_id=self.order_id,
            respondent=registry_pb2.Respondent(
                national_id=self.plan.national_id, name="Demo respondent", birth_date=BIRTH_DATE
            ),
            protected_person_ids=[self.person_id],
            places=[geometry_pb2.Place(place_id=self.home_id, circle=HOME)],
            rings=[
                geometry_pb2.Ring(radius_m=2000, action=geometry_pb2.Demand.WARN),
                geometry_pb2.Ring(radius_m=1000, action=geometry_pb2.Demand.NOTIFY),
                geometry_pb2.Ring(radius_m=100, action=geometry_pb2.Demand.RESPOND),
            ],
            valid_from=times.to_timestamp(from_ms),
            valid_until=times.to_timestamp(from_ms + 30 * 86_400_000),
            source_version=1,
        )
        self._order_put_wall_us = wall_us()
        await call(registry.PutOrder, registry_pb2.PutOrderRequest(order=order), npa)
        return "it protects a person and her home: 2 km warn, 1 km notify, 100 m respond"

    async def see_match(self) -> str:
        seen = [
            await match.until("the match", lambda match=match: match.seen_wall_us.get(self.order_id))  # type: ignore[misc]
            for match in self._matches
        ]
        self.match_ms = (max(seen) - self._order_put_wall_us) / 1000
        return f"both agencies know that wearer and respondent are one person, {self.match_ms:.0f} ms after the order"

    async def warn(self) -> str:
        await self.walk(self.plan.to_2_km)
        warning = await self._first("warning", "the warning", lambda assignment: assignment.HasField("acknowledged_at"))
        return f"the protected person is warned on her phone{_latency(warning)}"

    async def notify(self) -> str:
        await self.walk(self.plan.to_1_km)
        for leg in flow.AGENCY_LEGS:
            await self._first(leg, f"the {leg} desk to be notified", lambda _: True)
        return "both desks are notified; nobody has to go yet"

    async def respond(self) -> str:
        await self.walk(self.plan.to_100_m)
        offers = []
        for leg in flow.AGENCY_LEGS:
            offer = await self._first(leg, f"the {leg} leg", lambda assignment: assignment.HasField("offered_at"))
            offers.append(f"{leg} to {self.names[offer.subject_id]}")
        return f"sent at the same time: {' and '.join(offers)}"

    async def acknowledge(self) -> str:
        acknowledgements = []
        for leg in flow.AGENCY_LEGS:
            await self._desks[leg].answer()
            for destination in self._destinations[leg]:
                acknowledged = await self._first(
                    leg,
                    f"the {leg} desk to acknowledge {destination}",
                    lambda assignment, to=destination: (  # type: ignore[misc]
                        assignment.subject_id == to and assignment.HasField("acknowledged_at")
                    ),
                )
                at = times.to_rfc3339(times.from_timestamp(acknowledged.acknowledged_at))
                acknowledgements.append(f"{self.names[destination]} at {at[11:]}{_latency(acknowledged)}")
        return ", ".join(acknowledgements)

    async def stand_down(self) -> str:
        await self.walk(self.plan.away)
        far_m = self.plan.away[-1]
        deadline = asyncio.get_running_loop().time() + STOOD_DOWN_WITHIN_S
        while not all(self._stood_down(desk) for desk in self._desks.values()):
            if asyncio.get_running_loop().time() > deadline:
                raise CommandFailed(f"waited {STOOD_DOWN_WITHIN_S:.0f} s for all legs to stand down")
            await self.walk((far_m := far_m + 7.3,))  # positions that repeat others to the digit clear nothing
        await self._put(log_pb2.Rules(rules_id="default"))
        return "the rings are cleared, and both agencies and the warning stood down"

    async def wait_for_her_phone(self) -> str:
        """Waits until her phone has shown the notice that it is over, and confirmed all notices."""
        incidents = await outcome.read(self.clients, {self.order_id}, self.began_ms)
        # A leg that is slower than the warning may note the end after the notice of it was shown.
        ended_ms = max((incident.first_ended_ms or 0 for incident in incidents), default=0)
        if not await self._phone.until_notified_after(ended_ms):
            return "her phone hasn't shown yet that it is over"
        await self._phone.head_end.settle()
        return f"her phone has confirmed all {len(self._phone.notices_ms)} notices"

    async def end_order(self) -> str:
        """Ends the order, because its devices report no longer: the silence would be another incident in 3 minutes."""
        request = registry_pb2.EndOrderRequest(
            order_id=self.order_id,
            source_version=2,
            reason=registry_pb2.END_REASON_CANCELLED_BY_POLICE,
            ended_at=times.to_timestamp(self.clients.clock.now_ms() // 1000 * 1000),
        )
        await call(self.clients.registry.EndOrder, request, self.clients.identity(NPA_RECORDS))
        return "nothing is enforced any more; what happened stays on record"

    # ── helpers of the steps ──

    @staticmethod
    def _stood_down(desk: Desk) -> bool:
        states = [assignment.state for assignment in desk.assignments.values()]
        return bool(states) and all(state in (State.STOOD_DOWN, State.CLOSED) for state in states)

    async def _first(
        self, leg: str, what: str, matches: Callable[[dispatch_pb2.Assignment], bool]
    ) -> dispatch_pb2.Assignment:
        desk = self._desks[leg]
        return await desk.until(
            what, lambda: next((assignment for assignment in desk.assignments.values() if matches(assignment)), None)
        )

    async def _put(self, rules: log_pb2.Rules) -> None:
        request = geofence_pb2.PutRulesRequest(rules=rules)
        await call(self.clients.geofence.PutRules, request, self.clients.identity(OPERATOR))

    async def walk(self, distances_m: Sequence[float]) -> None:
        """Reports both sides at the plan's pace: the protected person at home, the wearer at these distances north of it."""
        for distance_m in distances_m:
            self._reports += 1
            fix_time = times.to_timestamp(self.clients.clock.now_ms())
            north = geometry_pb2.Point(lat_deg=HOME.lat_deg + distance_m / METRES_PER_DEGREE, lon_deg=HOME.lon_deg)
            home = geometry_pb2.Point(lat_deg=HOME.lat_deg, lon_deg=HOME.lon_deg)
            refusals = await self._phone.head_end.carry(
                [
                    ingest_pb2.Position(
                        device_id=self.plan.id(device),
                        report_id=str(self._reports),
                        fix_time=fix_time,
                        lat_deg=point.lat_deg,
                        lon_deg=point.lon_deg,
                        accuracy_m=5,
                    )
                    for device, point in (("app", home), ("tag", north))
                ]
            )
            if refusals:
                raise CommandFailed(f"a report was refused: {refusals[0].field}: {refusals[0].reason}")
            await asyncio.sleep(self.clients.clock.wall_s(math.ceil(self.plan.pace_s * 1000)))


def _latency(assignment: dispatch_pb2.Assignment) -> str:
    if not assignment.HasField("report_to_published_ms"):
        return ""
    return f" (offered {assignment.report_to_published_ms:.0f} ms after the report)"


Act: TypeAlias = Callable[[DemoStage], Awaitable[str]]

STEPS: tuple[tuple[str, str, Act], ...] = (
    ("rules", "The operator sets the rules of the demo", DemoStage.set_rules),
    ("tag", "The Ministry records a wearer and a tag", DemoStage.put_tag),
    ("order", "The police record a restraining order", DemoStage.put_order),
    ("match", "The registry joins the two", DemoStage.see_match),
    ("warn", "The wearer comes within 2 km", DemoStage.warn),
    ("notify", "The wearer comes within 1 km", DemoStage.notify),
    ("respond", "The wearer comes within 100 m", DemoStage.respond),
    ("acknowledge", "Both desks acknowledge their leg", DemoStage.acknowledge),
    ("stand-down", "The wearer turns away", DemoStage.stand_down),
    ("told", "She is told that it is over", DemoStage.wait_for_her_phone),
    ("end", "The police end the order", DemoStage.end_order),
)
"""The steps of the demo: name, title, method."""


@asynccontextmanager
async def stage(clients: Clients, plan: Plan) -> AsyncIterator[DemoStage]:
    """A run with all actors connected: both agencies await matches, desks listen, the warning gateway acknowledges."""
    async with AsyncExitStack() as stack:
        order_ids = (plan.id("order"),)
        matches = [await stack.enter_async_context(Matches(clients, who)) for who in (MOJ_RECORDS, NPA_RECORDS)]
        desks = {
            leg: await stack.enter_async_context(Desk(clients, leg, order_ids, answers=leg == "warning"))
            for leg in ("probation", "police", "warning")
        }
        phone = Phone(clients, plan.id("app"))
        await stack.enter_async_context(phone.head_end)
        yield DemoStage(clients=clients, plan=plan, matches=matches, desks=desks, phone=phone)


async def play(stage: DemoStage) -> AsyncIterator[Begun | Done]:
    """Runs all steps. Raises CommandFailed if a step doesn't succeed."""
    for name, title, act in STEPS:
        yield Begun(name, title)
        began = time.monotonic()
        detail = await act(stage)
        yield Done(name=name, title=title, detail=detail, took_ms=(time.monotonic() - began) * 1000)


async def settled(stage: DemoStage) -> list[outcome.IncidentOutcome]:
    """The demo's incidents after its end, once each leg has recorded the latency of its offers.

    A leg records the latency a little later than it offers. Missing latencies are None after LATENCIES_WITHIN_S.
    """
    deadline_s = time.monotonic() + LATENCIES_WITHIN_S
    while True:
        incidents = await outcome.read(stage.clients, {stage.order_id}, stage.began_ms)
        complete = all(
            answer.report_to_published_ms is not None for incident in incidents for answer in incident.answers
        )
        if complete or time.monotonic() > deadline_s:
            return incidents
        await asyncio.sleep(POLL_S)
