"""A first contact with the wearer on a whole mesh: record in, message to the tag by ingest's stream, both desks, turned back.

The records, tag and desks are those of a chase. Mesh time runs fast.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.client.actors import DESKS, MOJ_RECORDS, NPA_RECORDS, VENDOR_ID, Desk, HeadEnd, Matches
from services.client.calls import call
from services.client.mesh import OPERATOR, Clients, connect
from services.common import times
from services.common.rpc import server
from tandem.common.v1 import first_contact_pb2, geometry_pb2, log_pb2, notice_pb2
from tandem.dispatch.v1 import calls_pb2, calls_pb2_grpc, contact_pb2, dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh, tandem

HOME = (37.4321987, 127.3456789)
METRES_PER_DEGREE = 111_195.0
STEP_S = 10
BASIS = ("--legal-basis", "STALKING_9_1_3_2", "--recipient", "spiffe://moj/desk/seoul", "--reviewer", "lee")
pytestmark = pytest.mark.timeout(600)


class Tag(HeadEnd):
    """A vendor's head-end. Its tags refuse messages to the wearer if `refuses` is set."""

    refuses = False

    def _acknowledge(self, commands: Iterable[ingest_pb2.DeviceCommand]) -> None:
        for command in commands:
            if self.refuses and command.instruction.HasField("remind_wearer"):
                receipt = ingest_pb2.CommandReceipt(
                    command_id=command.command_id, device_id=command.device_id, refused_because="no loudspeaker"
                )
                self._send(ingest_pb2.ReportRequest(receipts=[receipt]))
            else:
                super()._acknowledge([command])


class Approach:
    """A wearer with a tag, an order that names a home to him, and both desks."""

    def __init__(self, clients: Clients, run_id: str, head_end: Tag, desks: dict[str, Desk]) -> None:
        self.clients = clients
        self.run_id = run_id
        self.head_end = head_end
        self.desks = desks
        self.order_id, self.wearer_id = f"order-{run_id}", f"wearer-{run_id}"
        self.commanded: list[ingest_pb2.DeviceCommand] = []
        self._reports = 0

    async def put(self) -> None:
        """Stores the records, and waits for their match."""
        registry = self.clients.registry
        npa = self.clients.identity(NPA_RECORDS)
        moj = self.clients.identity(MOJ_RECORDS)
        number, now_ms = f"{time.time_ns() // 1000 % 10**13:013d}", self.clients.clock.now_ms() // 1000 * 1000
        wearer = registry_pb2.Wearer(
            wearer_id=self.wearer_id, national_id=number, name="Made Up", birth_date="1990-01-01", source_version=1
        )
        tag = registry_pb2.Tag(
            device_id=f"tag-{self.run_id}", wearer_id=self.wearer_id, source_version=1, vendor_id=VENDOR_ID
        )
        person = registry_pb2.ProtectedPerson(person_id=f"person-{self.run_id}", name="Made Up Too", source_version=1)
        home = geometry_pb2.Place(
            place_id="home",
            circle=geometry_pb2.Circle(lat_deg=HOME[0], lon_deg=HOME[1], radius_m=30),
            named_to_respondent=True,
        )
        order = registry_pb2.Order(
            order_id=self.order_id,
            respondent=registry_pb2.Respondent(national_id=number, name="Made Up", birth_date="1990-01-01"),
            protected_person_ids=[person.person_id],
            places=[home],
            valid_from=times.to_timestamp(now_ms - 3_600_000),
            valid_until=times.to_timestamp(now_ms + 30 * 86_400_000),
            source_version=1,
        )
        rules = log_pb2.Rules(rules_id="contact", clear_after_s=20)
        await call(
            self.clients.geofence.PutRules,
            geofence_pb2.PutRulesRequest(rules=rules),
            self.clients.identity(OPERATOR),
        )
        await call(registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
        await call(registry.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)
        await call(registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa)
        async with Matches(self.clients, NPA_RECORDS) as matches:
            await call(registry.PutOrder, registry_pb2.PutOrderRequest(order=order), npa)
            await matches.until("the match", lambda: matches.seen_wall_us.get(self.order_id), PATIENCE_S)

    async def walk(self, points_m: Sequence[tuple[float, float]], until: Callable[[], Any] = bool) -> None:
        """Reports the wearer at points north and east of the home, one each STEP_S of mesh time, until a condition holds."""
        for north_m, east_m in points_m:
            if until():
                return
            self._reports += 1
            position = ingest_pb2.Position(
                device_id=f"tag-{self.run_id}",
                report_id=f"{self.run_id}-{self._reports}",
                fix_time=times.to_timestamp(self.clients.clock.now_ms()),
                lat_deg=HOME[0] + north_m / METRES_PER_DEGREE,
                lon_deg=HOME[1] + east_m / METRES_PER_DEGREE / 0.794,
                accuracy_m=5,
            )
            refusals = await self.head_end.carry([position])
            assert not refusals, refusals
            await asyncio.sleep(self.clients.clock.wall_s(STEP_S * 1000))

    async def contact(self, good: Callable[[contact_pb2.WearerContact], Any]) -> dispatch_pb2.Assignment:
        """Waits for probation's contact to fulfil a condition."""
        desk = self.desks["probation"]

        def found() -> dispatch_pb2.Assignment | None:
            contacts = (a for a in desk.assignments.values() if a.task == notice_pb2.CONTACT)
            return next((assignment for assignment in contacts if good(assignment.contact)), None)

        return await desk.until("the contact", found, PATIENCE_S)

    async def at_police(
        self, incident_id: str, good: Callable[[contact_pb2.WearerContact], Any]
    ) -> dispatch_pb2.Assignment:
        """Waits until the police's list of incidents shows probation's contact."""
        request = dispatch_pb2.ListIncidentsRequest(incident_id=incident_id)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                listed = await call(
                    self.clients.legs["police"].dispatch.ListIncidents, request, self.clients.identity(DESKS["police"])
                )
                for incident in listed.incidents:
                    for assignment in incident.assignments:
                        if assignment.task == notice_pb2.CONTACT and good(assignment.contact):
                            return assignment
                await asyncio.sleep(0.1)

    @asynccontextmanager
    async def calls(self, leg: str = "probation") -> AsyncIterator[calls_pb2_grpc.ContactServiceStub]:
        async with server.channel(self.clients.mesh.addresses[f"dispatch-{leg}"]) as channel:
            yield calls_pb2_grpc.ContactServiceStub(channel)


TOWARDS = [(1_500.0 - 15 * n, 1.5 * n) for n in range(50)]
AWAY = [(850.0 + 15 * n, 120.0 + 2 * n) for n in range(400)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", "40") as running:
        yield running


@asynccontextmanager
async def approaching(mesh: RunningMesh, *, refuses: bool = False) -> AsyncIterator[Approach]:
    run_id = f"{time.time_ns() // 1000:x}"
    commanded: list[ingest_pb2.DeviceCommand] = []
    async with connect(mesh.now) as clients, AsyncExitStack() as stack:
        desks = {
            leg: await stack.enter_async_context(Desk(clients, leg, (f"order-{run_id}",), answers=True))
            for leg in ("probation", "police")
        }
        head_end = await stack.enter_async_context(Tag(clients, commanded.append))
        head_end.refuses = refuses
        approach = Approach(clients, run_id, head_end, desks)
        approach.commanded = commanded
        await approach.put()
        yield approach


def has_message(approach: Approach) -> Callable[[], bool]:
    return lambda: any(command.instruction.HasField("remind_wearer") for command in approach.commanded)


async def test_the_tag_tells_him_and_he_turns_back(mesh: RunningMesh, tmp_path: Path) -> None:
    async with approaching(mesh) as approach:
        await approach.walk(TOWARDS, until=has_message(approach))
        [message] = [c for c in approach.commanded if c.instruction.HasField("remind_wearer")]
        assert message.device_id == f"tag-{approach.run_id}" and "접근" in message.instruction.remind_wearer.text
        contacted = await approach.contact(lambda contact: contact.state == contact_pb2.CONTACTED)
        assert contacted.subject_id == approach.wearer_id and contacted.contact.contact_id == message.command_id
        assert contacted.contact.plan == first_contact_pb2.CONTACT_PLAN_TAG
        incident_id = contacted.incident_id
        shown = await approach.at_police(incident_id, lambda contact: contact.state == contact_pb2.CONTACTED)
        assert shown.assignment_id == contacted.assignment_id

        turning = asyncio.create_task(approach.walk(AWAY))
        turned = await approach.contact(lambda contact: contact.state == contact_pb2.CONTACT_TURNED_BACK)
        await approach.at_police(incident_id, lambda contact: contact.state == contact_pb2.CONTACT_TURNED_BACK)
        turning.cancel()
        assert turned.assignment_id == contacted.assignment_id
        assert not any(a.HasField("offered_at") for a in approach.desks["police"].assignments.values()), "nobody goes"

    names = await asyncio.to_thread(traced, mesh, incident_id)
    assert {"probation first contact: sent", "probation first contact: contacted"} <= names
    assert "probation first contact: turned back" in names
    bundle = tmp_path / "probation.tar"
    command = ("evidence", incident_id, "--dir", str(mesh.folder), "--leg", "probation", *BASIS, "--out", str(bundle))
    made = await asyncio.to_thread(tandem, *command)
    assert made.returncode == 0, made.stderr
    content = bundle.read_bytes()
    assert b"ContactBegun" in content and b"ContactStepped" in content and message.command_id.encode() in content


def traced(mesh: RunningMesh, incident_id: str) -> set[str]:
    """Names of the steps in the incident's trace, once it has the end of the contact."""
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        printed = tandem("trace", incident_id, "--dir", str(mesh.folder), "--json")
        names = {span["name"] for span in json.loads(printed.stdout).get("spans", ())} if printed.stdout else set()
        if any("turned back" in name for name in names):
            return names
        assert time.monotonic() < give_up_at, (names, printed.stderr)
        time.sleep(0.2)


async def test_a_tag_that_refuses_brings_the_call_and_the_officer_records_it(mesh: RunningMesh) -> None:
    async with (
        approaching(mesh, refuses=True) as approach,
        approach.calls() as calls,
        approach.calls("police") as other,
    ):
        await approach.walk(TOWARDS, until=has_message(approach))
        staying = asyncio.create_task(approach.walk([(900.0 + n % 3, 2.0 * n) for n in range(400)]))
        due = await approach.contact(lambda contact: contact.state == contact_pb2.CONTACT_CALL_DUE)
        assert due.contact.call_reason == contact_pb2.CALL_TAG_REFUSED
        me = approach.clients.identity(DESKS["probation"])
        listed = await call(calls.ListCalls, calls_pb2.ListCallsRequest(), me)
        assert due.assignment_id in [assignment.assignment_id for assignment in listed.assignments]
        request = calls_pb2.RecordCallRequest(
            assignment_id=due.assignment_id, contact_id=due.contact.contact_id, result=calls_pb2.SPOKEN
        )
        for stub, identity, change, expected in (
            (other, DESKS["police"], {}, grpc.StatusCode.PERMISSION_DENIED),
            (calls, DESKS["police"], {}, grpc.StatusCode.PERMISSION_DENIED),
            (calls, DESKS["probation"], {"result": 0}, grpc.StatusCode.INVALID_ARGUMENT),
            (calls, DESKS["probation"], {"contact_id": "contact-0"}, grpc.StatusCode.FAILED_PRECONDITION),
            (calls, DESKS["probation"], {"assignment_id": "assign-0"}, grpc.StatusCode.NOT_FOUND),
        ):
            bad = calls_pb2.RecordCallRequest()
            bad.CopyFrom(request)
            for name, value in change.items():
                setattr(bad, name, value)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await call(stub.RecordCall, bad, approach.clients.identity(identity))
            assert refused.value.code() is expected, refused.value
        recorded = (await call(calls.RecordCall, request, me)).assignment
        assert recorded.contact.state == contact_pb2.CONTACTED and recorded.contact.recorded_by
        shown = await approach.at_police(due.incident_id, lambda contact: contact.state == contact_pb2.CONTACTED)
        assert not shown.contact.recorded_by
        staying.cancel()
