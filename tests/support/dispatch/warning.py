"""Recipients of warnings in tests: a gateway, a device behind a real or a fake ingest, and their cases."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import sqlalchemy as sa
from aiohttp import web
from standardwebhooks import Webhook

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.privacy import secret_keys
from services.common.storage.db import Database
from services.dispatch.settings import DispatchSettings
from services.dispatch.warning.domain import MessageKind
from services.dispatch.warning.tables import WAITING, MessageRow, messages
from tandem.common.v1 import alert_pb2, command_pb2, contact_pb2, geometry_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port
from tests.support.dispatch import dispatch
from tests.support.ingest import ingest

SECRET = f"whsec_{base64.b64encode(bytes(range(32))).decode()}"
HANDLE = "010-9876-5432"
DURESS_CHOICE = 2
WITHIN_S = 75.0


def settings(nats: TestServer, folder: Path, *gateways: Gateway, **more: Any) -> DispatchSettings:
    """Returns settings of a warning leg with these gateways and an answer endpoint, and creates its keys."""
    folder.mkdir(parents=True, exist_ok=True)
    if gateways:
        receivers = [{"name": gateway.name, "url": gateway.url, "secrets": [SECRET]} for gateway in gateways]
        (folder / "gateways.json").write_text(json.dumps(receivers))
        more["warning_gateways"] = folder / "gateways.json"
    port = free_port()
    more = {"link_port": port, "link_url": f"http://127.0.0.1:{port}"} | more
    made = dispatch.settings("warning", nats, folder, **more)
    secret_keys.open_private_keys(made.warning_key_file)
    for gateway in gateways:
        gateway.receipts_url = f"{made.link_url}/receipts"
    return made


async def put_case(
    bus: Bus, made: DispatchSettings, *device_ids: str, handle: str = HANDLE, version: int = 1, person_id: str = "p1"
) -> None:
    """Publishes a case as the registry does: with a sealed contact, unless `handle` is empty."""
    contact = contact_pb2.Contact(handle=handle, language=contact_pb2.LANGUAGE_ENGLISH, duress_choice=DURESS_CHOICE)
    public = secret_keys.read_public_key(secret_keys.public_file(made.warning_key_file))
    sealed = secret_keys.seal(contact, person_id, public) if handle else b""
    person = log_pb2.ProtectedTarget(person_id=person_id, device_ids=device_ids, sealed_contact=sealed)
    case = log_pb2.CaseSnapshot(
        case_id="case-1" if person_id == "p1" else f"case-of-{person_id}",
        version=version,
        order_id="order-1",
        wearer_id="w1",
        persons=[person],
        valid_until_ms=1 << 45,
    )
    entry = log_pb2.LogEntry(case=case).SerializeToString()
    await bus.publish_until_stored(flow.log_subject(0, "case"), entry)


def ring(sequence: int, ring_m: float = 1000.0, demand: Any = geometry_pb2.WARN, **more: Any) -> alert_pb2.Alert:
    """Returns an alert that a ring round a person is entered. With the demand WARN only she is notified."""
    message = dispatch.alert(sequence, demand, **more)
    message.ring_m = ring_m
    message.target_id = next(
        destination.subject_id for destination in message.destinations if destination.leg == alert_pb2.WARNING
    )
    if demand == geometry_pb2.WARN:
        only = [destination for destination in message.destinations if destination.leg == alert_pb2.WARNING]
        message.ClearField("destinations")
        message.destinations.extend(only)
    return message


class Gateway:
    """A real HTTP server that the leg uses as a gateway for text messages. It can send receipts."""

    def __init__(self, name: str = "sms") -> None:
        self.name = name
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/send"
        self.receipts_url = ""
        self.hangs = asyncio.Event()
        """Responses wait until it is set."""
        self.hangs.set()
        self.answers: list[int] = []
        """HTTP statuses of the next responses; later ones are 204."""
        self.requests: list[tuple[dict[str, str], bytes]] = []

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves until the end of the context."""

        async def accept(request: web.Request) -> web.Response:
            self.requests.append((dict(request.headers), await request.read()))
            await self.hangs.wait()
            return web.Response(status=self.answers.pop(0) if self.answers else 204)

        app = web.Application()
        app.add_routes([web.post("/send", accept)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def message(self, number: int = 1) -> dict[str, Any]:
        """Waits for the nth message, and returns it."""
        async with asyncio.timeout(WITHIN_S):
            while len(self.requests) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        content: dict[str, Any] = json.loads(self.requests[number - 1][1])
        return content

    async def shown(self, number: int = 1) -> tuple[str, str]:
        """Waits for the nth message, and returns its id and text."""
        message = await self.message(number)
        return message["warning_id"], message["text"]

    async def arrived(self, warning_id: str) -> None:
        """Sends a receipt: the message was delivered."""
        assert await self.receipt({"warning_id": warning_id, "status": "delivered"}) == 204

    async def receipt(self, content: Any, *, secret: str = SECRET, ago_s: int = 0, id_: str = "r-1") -> int:
        """Sends a receipt, signed by the library of Standard Webhooks, and returns the HTTP status."""
        body = json.dumps(content)
        at = datetime.now(UTC) - timedelta(seconds=ago_s)
        headers = {
            "webhook-id": id_,
            "webhook-timestamp": str(int(at.timestamp())),
            "webhook-signature": Webhook(secret).sign(id_, at, body),
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.receipts_url, data=body, headers=headers) as answer,
        ):
            return answer.status


class FakeDevice:
    """A device with a fake ingest, which reads commands from the stream and writes their steps."""

    device_id = "app-1"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._commands: dict[str, str] = {}

    async def shown(self, number: int = 1) -> tuple[str, str]:
        """Waits for the nth notice, and returns its id and text."""
        count = 0
        async with asyncio.timeout(WITHIN_S):
            async for messages in pull.read(self._bus, flow.COMMANDS.name, 1, subjects=("command.>",)):
                for message in messages:
                    command = command_pb2.Command.FromString(message.data)
                    assert command.device_id == self.device_id
                    count += 1
                    if count == number:
                        notice = command.instruction.show_notice
                        self._commands[notice.warning_id] = command.command_id
                        return notice.warning_id, notice.text
        raise AssertionError("no notice")

    async def arrived(self, warning_id: str) -> None:
        """Publishes a receipt: the device has received the notice."""
        step = command_pb2.CommandStep(
            command_id=self._commands[warning_id],
            device_id=self.device_id,
            state=command_pb2.COMMAND_STATE_RECEIVED,
            at_ms=1,
        )
        subject = flow.command_step_subject(step.command_id, "RECEIVED")
        await self._bus.publish_until_stored(subject, step.SerializeToString(), expected_last=0)


class RealDevice:
    """A device of a head-end that is connected to a real ingest."""

    device_id = "app-1"

    def __init__(self, client: ingest.Client, call: Any) -> None:
        self._client, self._call = client, call
        self._commands: list[ingest_pb2.DeviceCommand] = []

    @classmethod
    @asynccontextmanager
    async def connected(cls, mesh: ingest.IngestMesh) -> AsyncIterator[RealDevice]:
        """Connects a device that is routed, has reported once, and listens on its stream."""
        async with mesh.connected() as client:
            kind = log_pb2.DeviceKind.PROTECTIVE_DEVICE
            await client.route(cls.device_id, kind=kind, subject_id="p1")
            call = client.open()
            device = cls(client, call)
            async with asyncio.timeout(WITHIN_S):
                while True:  # until the route is known
                    report = ingest.position(cls.device_id, f"r-{time.monotonic_ns()}")
                    await call.write(ingest.request(1, report))
                    answer: Any = await device._answer()
                    if set(answer.outcomes) == {ingest_pb2.ACCEPTED}:
                        break
                    await asyncio.sleep(0.1)
            yield device
            call.cancel()

    async def _answer(self) -> ingest_pb2.ReportResponse:
        while True:
            answer: ingest_pb2.ReportResponse = await self._call.read()
            self._commands.extend(answer.commands)
            if answer.batches or not answer.commands:
                return answer

    async def shown(self, number: int = 1) -> tuple[str, str]:
        """Waits for the nth notice, and returns its id and text."""
        async with asyncio.timeout(WITHIN_S):
            while len(self._commands) < number:
                answer: Any = await self._call.read()
                self._commands.extend(answer.commands)
        notice = self._commands[number - 1].instruction.show_notice
        return notice.warning_id, notice.text

    async def arrived(self, warning_id: str) -> None:
        """Sends the device's receipt."""
        (command,) = [command for command in self._commands if command.instruction.show_notice.warning_id == warning_id]
        receipt = ingest_pb2.CommandReceipt(command_id=command.command_id, device_id=self.device_id)
        async with asyncio.timeout(WITHIN_S):
            await self._call.write(ingest_pb2.ReportRequest(batch=99, receipts=[receipt]))


async def answer(url: str, method: str = "POST", **form: str) -> tuple[int, str, str]:
    """Calls a link. Returns the status, a hash of all headers but the date, and the text."""
    async with aiohttp.ClientSession() as session, session.request(method, url, data=form or None) as response:
        headers = sorted((name, value) for name, value in response.headers.items() if name != "Date")
        return response.status, hashlib.sha256(repr(headers).encode()).hexdigest(), await response.text()


def waiting_message(message_id: str, **more: Any) -> MessageRow:
    """A message that waits, in an incident of its own, and has been due since 0."""
    values: dict[str, Any] = {
        "message_id": message_id,
        "incident_id": f"incident of {message_id}",
        "person_id": f"person of {message_id}",
        "order_id": "order",
        "partition": 0,
        "alert_id": "alert",
        "sequence": 1,
        "ordinal": 0,
        "kind": MessageKind.OVER.value,
        "drill": False,
        "made_ms": 0,
        "due_ms": 0,
        "state": WAITING,
    }
    return MessageRow(**values | more)


async def put_waiting(database: Database, *rows: MessageRow) -> None:
    """Stores messages in the database of the warnings."""
    await database.visit(lambda connection: connection.execute(sa.insert(messages), list(map(asdict, rows))))
