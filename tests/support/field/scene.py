"""A whole mesh with the demo's people and phones of two protected persons."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from typing import Any

from services.client import demo
from services.client import mesh as meshes
from services.client.actors import DESKS, NPA_RECORDS
from services.client.calls import call
from services.client.mesh import Clients
from services.common.messaging import flow, pull
from tandem.common.v1 import alert_pb2, contact_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tests.support.common.mesh import PATIENCE_S, RunningMesh
from tests.support.field.phone import PhoneClient, PushService, phone

DURESS_CHOICE = 2


class Scene:
    """The demo's records, a phone of the protected person, and one of another person."""

    def __init__(self, mesh: RunningMesh, clients: Clients, stage: demo.DemoStage, push: PushService) -> None:
        self.mesh = mesh
        self.clients = clients
        self.stage = stage
        self.push = push
        self.url = mesh.now.field_url
        self.hers, self.others = stage.plan.id("phone"), stage.plan.id("phone-of-another")

    async def put_phones(self, language: contact_pb2.Language.ValueType) -> None:
        """Puts the devices, and her contact with a duress answer and the language of her notices."""
        npa, registry = self.clients.identity(NPA_RECORDS), self.clients.registry
        contact = contact_pb2.Contact(handle="010-0000-0000", language=language, duress_choice=DURESS_CHOICE)
        hers = registry_pb2.ProtectedPerson(
            person_id=self.stage.person_id, name="Demo protected person", source_version=2, contact=contact
        )
        other = registry_pb2.ProtectedPerson(person_id=self.stage.plan.id("other"), name="Other", source_version=1)
        for person in (hers, other):
            await call(
                registry.PutProtectedPerson, registry_pb2.PutProtectedPersonRequest(protected_person=person), npa
            )
        for device_id, person in ((self.hers, hers), (self.others, other)):
            device = registry_pb2.Device(device_id=device_id, person_id=person.person_id, source_version=1)
            await call(registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)

    async def code(self, device_id: str) -> str:
        """A new code, as a police desk issues it."""
        async with meshes.channel(self.mesh.now, "registry") as channel:
            request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id)
            method = EnrolmentServiceStub(channel).IssueEnrolmentCode
            return str((await call(method, request, self.clients.identity(DESKS["police"]))).code)

    @asynccontextmanager
    async def enrolled(self, device_id: str) -> AsyncIterator[PhoneClient]:
        """A phone that is enrolled."""
        async with phone(self.url) as client:
            answer = await client.enrol(await self.code(device_id))
            assert answer.status == 200, answer
            yield client

    async def offered_at_both(self) -> bool:
        """Whether both agencies' desks have an offer."""
        found = []
        for leg, number in (("probation", alert_pb2.PROBATION), ("police", alert_pb2.POLICE)):
            answer = await self.clients.legs[leg].dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(), metadata=self.clients.identity(DESKS[leg])
            )
            own = [each for incident in answer.incidents for each in incident.assignments if each.leg == number]
            found.append(any(assignment.HasField("offered_at") for assignment in own))
        return all(found)

    async def panics(self, device_id: str) -> list[tuple[int, bool]]:
        """Panics of a device in the log, as often as it has them: time by the phone's clock, milliseconds, and whether silent."""
        stream = flow.log_stream(0)
        found: list[tuple[int, bool]] = []
        async with self.mesh.now.nats.bus_as("explain") as bus:
            last = (await bus.bounds_of(stream)).last
            async for messages in pull.read(bus, stream, 1):
                events = [log_pb2.LogEntry.FromString(message.data).equipment for message in messages]
                found += [
                    (event.event_time_ms, event.silent)
                    for event in events
                    if event.device_id == device_id and event.event == log_pb2.PANIC_BUTTON
                ]
                if messages[-1].sequence >= last:
                    break
        return sorted(found)

    def stored(self, notice_id: str) -> tuple[Any, ...]:
        """Times of the receipts of a notice in the warning leg's database: delivered, displayed, answered."""
        path = self.mesh.folder / "data" / "dispatch-warning" / "warning.sqlite3"
        with closing(sqlite3.connect(path, timeout=10)) as database:
            query = "SELECT delivered_ms, displayed_ms, acknowledged_ms FROM messages WHERE message_id = ?"
            return tuple(database.execute(query, (notice_id,)).fetchone())

    def warning_rows(self, query: str) -> list[tuple[Any, ...]]:
        """Rows of the warning leg's database."""
        path = self.mesh.folder / "data" / "dispatch-warning" / "warning.sqlite3"
        with closing(sqlite3.connect(path, timeout=10)) as database:
            return database.execute(query).fetchall()

    def push_addresses(self, device_id: str) -> list[str]:
        """The address at which field wakes a device or a unit's page; nothing without one."""
        path = self.mesh.folder / "data" / "field" / "field.sqlite3"
        with closing(sqlite3.connect(path, timeout=10)) as database:
            query = "SELECT endpoint FROM push_addresses WHERE device_id = ?"
            return [row[0] for row in database.execute(query, (device_id,))]

    def ledger_recipients(self) -> list[tuple[str, ...]]:
        """Recipients of the disclosures in the registry's ledger."""
        path = self.mesh.folder / "data" / "registry" / "registry.sqlite3"
        with closing(sqlite3.connect(path, timeout=10)) as database:
            return database.execute("SELECT recipient FROM ledger").fetchall()


PAUSE_S = 0.5
"""Pause between two looks, seconds: a page that asks more often than twice a second is refused after a minute."""


async def until(check: Callable[[], Awaitable[Any]]) -> Any:
    """Waits until a check gives something."""
    async with asyncio.timeout(PATIENCE_S):
        while not (found := await check()):  # noqa: ASYNC110
            await asyncio.sleep(PAUSE_S)
        return found


@asynccontextmanager
async def scene_on(
    mesh: RunningMesh, push: PushService, *, language: contact_pb2.Language.ValueType = contact_pb2.LANGUAGE_ENGLISH
) -> AsyncIterator[Scene]:
    """The scene on a running mesh, with the demo's records and the match."""
    async with (
        push.serving(),
        meshes.connect(mesh.now) as clients,
        demo.stage(clients, demo.new_plan()) as stage,
    ):
        scene = Scene(mesh, clients, stage, push)
        for step in (stage.set_rules, stage.put_tag, stage.put_order, stage.see_match):
            await step()
        await scene.put_phones(language)
        yield scene
