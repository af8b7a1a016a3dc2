"""The demo: the Namyangju case as it would go once the agencies' records are linked. All its people are made up.

The demo uses the public interfaces only, through the clients of actors.py. `play` yields as each step begins and ends, so that a
person can follow it, and a test can kill a process in between. By phones nobody sits at a desk: a person opens her app and the units'
pages in a browser and presses their buttons. The demo prepares the roster, the links and her code, moves the wearer, and waits.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from services.client import mesh, outcome
from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Desk, HeadEnd, Matches, State
from services.client.calls import call
from services.client.mesh import OPERATOR, Clients, MeshConnection
from services.common import times
from services.common.clock import MeshClock, wall_us
from services.common.failure import MISUSED, CommandFailed
from services.common.geometry import METRES_PER_DEGREE
from services.common.messaging import flow
from services.common.rpc import server
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2, roster_pb2, unit_duty_pb2
from tandem.dispatch.v1.roster_pb2_grpc import RosterServiceStub
from tandem.dispatch.v1.unit_duty_pb2_grpc import UnitDutyServiceStub
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

HOME = geometry_pb2.Circle(lat_deg=37.6360, lon_deg=127.2165, radius_m=20)
BIRTH_DATE = "1990-01-01"
LATENCIES_WITHIN_S = 5.0
"""Maximum time that `settled` waits for the offer latencies of all legs, seconds. It then returns without the missing ones."""
LAST_NOTICE_WITHIN_S = 30.0
"""Maximum time that the demo waits for the last notice on her phone, seconds of mesh time. She gets 20 s to read the one before it."""
STOOD_DOWN_WITHIN_S = 180.0
"""Maximum time until all legs stand down after the wearer has gone, seconds of wall time. Four positions of each of her devices must
agree that he has left, and a phone reports each 15 s."""
STEPS_OVERHEAD_S = 4.0
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
        return clock.wall_s(round(sum(map(len, walks)) * self.pace_s * 1000)) + STEPS_OVERHEAD_S

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
        self._running = running
        self._stage = stage
        self._legs = legs
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
        async with mesh.channel(self._running, "registry") as registry:
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
            if missed := [each for each in own if _is_missed(each)]:
                leg = alert_pb2.Leg.Name(missed[0].leg).lower()
                raise CommandFailed(
                    f"the {leg} unit didn't accept in time, so only the supervisor's desk is asked, where nobody sits here"
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
        method = self._stage.clients.legs[leg].dispatch.ListIncidents
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

    def _desk(self, leg: str) -> server.Metadata:
        return self._stage.clients.identity(DESKS[leg])


def _is_missed(assignment: dispatch_pb2.Assignment) -> bool:
    """Whether a desk is asked, and no unit may accept any more."""
    is_with_desk = assignment.state == State.ESCALATED and not assignment.choice.unit_id
    return is_with_desk and all(offer.state != dispatch_pb2.UNIT_ASKED for offer in assignment.unit_offers)


@asynccontextmanager
async def phones(running: MeshConnection, stage: DemoStage) -> AsyncIterator[DemoPhones]:
    """The demo's phones. At the end the roster is as it was. Raises CommandFailed if the mesh has no app."""
    if not running.field_url:
        raise CommandFailed("--phones: this mesh has no app for phones: start it with `tandem up`", MISUSED)
    async with AsyncExitStack() as stack:
        legs = {}
        for leg in flow.AGENCY_LEGS:
            channel = await stack.enter_async_context(mesh.channel(running, f"dispatch-{leg}"))
            legs[leg] = RosterServiceStub(channel), UnitDutyServiceStub(channel)
        made = DemoPhones(running, stage, legs)
        try:
            yield made
        finally:
            await made.remove_units()
