"""Honest phones: each report and each panic comes over a connection of its own, as after a change of the mobile network."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

import aiohttp

from services.client import mesh
from services.client.actors import DESKS, NPA_RECORDS
from services.client.calls import call
from services.client.mesh import Clients
from services.common.clock import wall_us
from services.common.failure import CommandFailed
from services.local import processes
from tandem.registry.v1 import device_token_pb2, enrolment_pb2, registry_pb2
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub
from tests.support.field.phone import PhoneClient

WITHIN_S = 10.0
"""Time after which a connection without an answer has failed, seconds."""
KNOWN_WITHIN_S = 60.0
SET_UP_CONCURRENCY = 16
HOME_LAT_DEG, HOME_LON_DEG = 37.636, 127.2165


class Phone(Protocol):
    """A phone that ingest knows."""

    @property
    def device_id(self) -> str:
        """Device of the phone."""

    async def send(self, address: str, at_ms: int, *, is_panic: bool) -> bool:
        """Sends a position or a panic over a new connection from a loopback address. Returns whether it is stored."""


@dataclass(frozen=True, slots=True)
class DirectPhone:
    """A phone with a token, whose app reports to ingest."""

    device_id: str
    url: str
    token: str

    async def send(self, address: str, at_ms: int, *, is_panic: bool) -> bool:
        """See Phone.send."""
        form = {"id": self.device_id, "timestamp": str(at_ms)}
        form |= {"alarm": "sos"} if is_panic else {"lat": str(HOME_LAT_DEG), "lon": str(HOME_LON_DEG), "accuracy": "12"}
        async with (
            _connection(address) as session,
            session.post(f"{self.url}/", data=form, headers={"Authorization": f"Bearer {self.token}"}) as answer,
        ):
            return answer.status == 200 and (await answer.json())["accepted"] == 1


@dataclass(frozen=True, slots=True)
class AppPhone:
    """A phone with her app, which reports to field."""

    device_id: str
    url: str
    client: PhoneClient
    cookie: str

    async def send(self, address: str, at_ms: int, *, is_panic: bool) -> bool:
        """See Phone.send."""
        report = {"id": "r", "at_ms": at_ms}
        report |= {"alarm": "panic"} if is_panic else {"lat": HOME_LAT_DEG, "lon": HOME_LON_DEG, "accuracy": 12}
        async with _connection(address) as session:
            client = PhoneClient(self.url, session)
            client.key = self.client.key
            client.take_cookie(self.cookie)
            answer = await client.report(report)
            return answer.status == 200 and answer.content["results"][0]["outcome"] == "stored"


def _connection(address: str) -> aiohttp.ClientSession:
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(local_addr=(address, 0)),
        cookie_jar=aiohttp.CookieJar(unsafe=True),
        timeout=aiohttp.ClientTimeout(total=WITHIN_S),
    )


def own_address(number: int) -> str:
    """A loopback address of a phone alone."""
    return f"127.0.{1 + number // 250}.{1 + number % 250}"


def ingest_url(clients: Clients) -> str:
    """URL of ingest's port for phones."""
    base_port = int(clients.mesh.addresses["ingest"].rpartition(":")[2]) - 2
    return processes.other_addresses(processes.SERVICES, base_port)["ingest: phones"]


@asynccontextmanager
async def known_phones(clients: Clients, count: int) -> AsyncIterator[tuple[Sequence[Phone], Sequence[Phone]]]:
    """Registers phones and waits until ingest knows each: those that report to ingest, and as many with her app."""
    async with AsyncExitStack() as stack:
        enrolments = EnrolmentServiceStub(await stack.enter_async_context(mesh.channel(clients.mesh, "registry")))
        url, npa = ingest_url(clients), clients.identity(NPA_RECORDS)

        async def put(device_id: str) -> None:
            person = registry_pb2.ProtectedPerson(person_id=f"of-{device_id}", name="Bench", source_version=1)
            device = registry_pb2.Device(device_id=device_id, person_id=person.person_id, source_version=1)
            request = registry_pb2.PutProtectedPersonRequest(protected_person=person)
            await call(clients.registry.PutProtectedPerson, request, npa)
            await call(clients.registry.PutDevice, registry_pb2.PutDeviceRequest(device=device), npa)

        async def direct(number: int) -> Phone:
            device_id = f"direct-{number}"
            await put(device_id)
            request = device_token_pb2.IssueDeviceTokenRequest(device_id=device_id)
            issued = await call(clients.device_tokens.IssueDeviceToken, request, npa)
            return await _known(DirectPhone(device_id, url, issued.token), number)

        async def app(number: int) -> Phone:
            device_id = f"app-{number}"
            await put(device_id)
            request = enrolment_pb2.IssueEnrolmentCodeRequest(device_id=device_id)
            code = (await call(enrolments.IssueEnrolmentCode, request, clients.identity(DESKS["police"]))).code
            async with _connection(own_address(number)) as session:
                client = PhoneClient(clients.mesh.field_url, session)
                if (answer := await client.enrol(code)).status != 200:
                    raise CommandFailed(f"field refused a phone: {answer.status} {answer.content}")
                return await _known(
                    AppPhone(device_id, clients.mesh.field_url, client=client, cookie=client.cookie()), number
                )

        yield await _gathered(direct, count), await _gathered(app, count)


async def _gathered(make: Callable[[int], Awaitable[Phone]], count: int) -> list[Phone]:
    lane = asyncio.Semaphore(SET_UP_CONCURRENCY)

    async def one_after_the_other(number: int) -> Phone:
        async with lane:
            return await make(number)

    return await asyncio.gather(*map(one_after_the_other, range(count)))


async def _known(phone: Phone, number: int) -> Phone:
    """The phone, once ingest has its token."""
    until_s = time.monotonic() + KNOWN_WITHIN_S
    while not await phone.send(own_address(number), wall_us() // 1000, is_panic=False):
        if time.monotonic() > until_s:
            raise CommandFailed(f"ingest doesn't know {phone.device_id}")
        await asyncio.sleep(0.5)
    return phone
