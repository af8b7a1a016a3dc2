"""A console process with fake legs: real sockets, real roles, and a record of all calls to the legs."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import grpc.aio

from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.dispatch.v1 import (
    dispatch_pb2,
    dispatch_pb2_grpc,
    evidence_pb2,
    evidence_pb2_grpc,
    notes_pb2,
    notes_pb2_grpc,
)
from tests.support.common.certificates import Authority
from tests.support.common.ports import free_port
from tests.support.common.processes import Service

SECRET = "secret-of-the-console-tests"
INCIDENT = "incident-1"
PATIENCE_S = 60.0
Asked = tuple[str, str, str]
"""Call to a leg: leg, method, SPIFFE id of the caller."""


def offer(leg: str, state: dispatch_pb2.AssignmentState.ValueType = dispatch_pb2.OFFERED) -> dispatch_pb2.Assignment:
    """Returns a leg's assignment of the only incident."""
    return dispatch_pb2.Assignment(
        assignment_id=f"assignment-{leg}",
        incident_id=INCIDENT,
        leg=alert_pb2.PROBATION if leg == "probation" else alert_pb2.POLICE,
        subject_id="W-1" if leg == "probation" else "P-1",
        state=state,
        demand=geometry_pb2.RESPOND,
        offer_number=1,
    )


class FakeLeg(dispatch_pb2_grpc.DispatchServiceServicer):
    """Fake leg with one incident and this leg's assignment only. Its steps go to all subscribers."""

    def __init__(self, leg: str, asked: list[Asked]) -> None:
        self._leg, self._asked = leg, asked
        self.assignment = offer(leg)
        self._step_added = asyncio.Condition()
        self._steps: list[dispatch_pb2.Step] = []

    def _record_call(self, method: str) -> None:
        self._asked.append((self._leg, method, rpc.caller().spiffe_id))

    async def emit_step(self, state: dispatch_pb2.AssignmentState.ValueType) -> None:
        """Moves the assignment to a state and sends the step to all subscribers."""
        self.assignment = offer(self._leg, state)
        async with self._step_added:
            self._steps.append(dispatch_pb2.Step(step_id=f"s-{state}", assignment=self.assignment, number=state))
            self._step_added.notify_all()

    async def ListIncidents(
        self, request: dispatch_pb2.ListIncidentsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> dispatch_pb2.ListIncidentsResponse:
        """Returns the incident."""
        self._record_call("ListIncidents")
        incident = dispatch_pb2.Incident(incident_id=INCIDENT, assignments=[self.assignment])
        incident.opened_at.FromMilliseconds(1_000)
        return dispatch_pb2.ListIncidentsResponse(incidents=[incident])

    async def Subscribe(
        self, request: dispatch_pb2.SubscribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
        """Yields the steps from now on."""
        self._record_call("Subscribe")
        seen = len(self._steps)
        while True:
            async with self._step_added:
                while len(self._steps) <= seen:
                    await self._step_added.wait()
            yield dispatch_pb2.SubscribeResponse(sequence=seen + 1, step=self._steps[seen])
            seen += 1

    async def Receive(
        self, request: dispatch_pb2.ReceiveRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> dispatch_pb2.ReceiveResponse:
        """Records that the desk's machine has the offer."""
        self._record_call("Receive")
        return dispatch_pb2.ReceiveResponse(assignment=self.assignment)

    async def Acknowledge(
        self, request: dispatch_pb2.AcknowledgeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> dispatch_pb2.AcknowledgeResponse:
        """Acknowledges the offer."""
        self._record_call("Acknowledge")
        await self.emit_step(dispatch_pb2.ACKNOWLEDGED)
        return dispatch_pb2.AcknowledgeResponse(assignment=self.assignment)


@asynccontextmanager
async def visiting(url: str, tls: ssl.SSLContext | bool = True) -> AsyncIterator[Visitor]:
    """Opens a browser without scripts at a console."""
    connector, jar = aiohttp.TCPConnector(ssl=tls), aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(connector=connector, cookie_jar=jar) as client:
        yield Visitor(url, client)


class FakeEvidence(evidence_pb2_grpc.EvidenceServiceServicer):
    """Fake leg with copies of the evidence by incident. Without one it has none, as after its retention."""

    def __init__(self, copies: Mapping[str, evidence_pb2.ReadEvidenceResponse]) -> None:
        self._copies = copies

    async def ReadEvidence(
        self, request: evidence_pb2.ReadEvidenceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> evidence_pb2.ReadEvidenceResponse:
        """Returns the copy, or refuses as a leg does."""
        if copy := self._copies.get(request.incident_id):
            return copy
        await context.abort(grpc.StatusCode.NOT_FOUND, "this leg knows no such incident; check incident_id")


class FakeNotes(notes_pb2_grpc.NoteServiceServicer):
    """Fake leg that keeps the notes of its desk, each with the writer's word on whether it is shared."""

    def __init__(self, leg: str, asked: list[Asked], added: list[notes_pb2.AddNoteRequest]) -> None:
        self._leg = leg
        self._asked = asked
        self._added = added

    async def ListNotes(
        self, request: notes_pb2.ListNotesRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> notes_pb2.ListNotesResponse:
        """Returns the notes."""
        self._asked.append((self._leg, "ListNotes", rpc.caller().spiffe_id))
        return notes_pb2.ListNotesResponse(notes=[_note(added) for added in self._added])

    async def AddNote(
        self, request: notes_pb2.AddNoteRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> notes_pb2.AddNoteResponse:
        """Adds a note."""
        self._added.append(request)
        return notes_pb2.AddNoteResponse(note=_note(request))


def _note(added: notes_pb2.AddNoteRequest) -> notes_pb2.IncidentNote:
    return notes_pb2.IncidentNote(
        note_id=added.note_key, incident_id=added.incident_id, kind=added.kind, result=added.result, text=added.text
    )


@dataclass
class ConsoleBench:
    """A running console and its legs."""

    url: str
    legs: dict[str, FakeLeg]
    asked: list[Asked] = field(default_factory=list)
    copies: dict[str, evidence_pb2.ReadEvidenceResponse] = field(default_factory=dict)
    """Copies of the evidence that the legs have, by incident. Empty at the beginning."""
    notes: list[notes_pb2.AddNoteRequest] = field(default_factory=list)
    """Notes that desks added."""
    tls: ssl.SSLContext | bool = True
    """TLS context of its browsers."""

    @asynccontextmanager
    async def visitor(self, role: str = "", name: str = "duty-1") -> AsyncIterator[Visitor]:
        """Opens a browser without scripts, signed in where a role is given."""
        async with visiting(self.url, self.tls) as visitor:
            if role:
                await visitor.read("/sign-in")
                status, _ = await visitor.post("/sign-in", role=role, name=name)
                assert status == 303
            yield visitor


class Visitor:
    """Visitor of a console with cookies, but without scripts."""

    def __init__(self, url: str, client: aiohttp.ClientSession) -> None:
        self.url, self.client = url, client
        self.csrf = ""

    async def get(self, path: str, **headers: str) -> tuple[int, str, dict[str, str]]:
        """Requests a path and returns status, text and headers."""
        async with self.client.get(self.url + path, headers=headers, allow_redirects=False) as answer:
            return answer.status, await answer.text(errors="replace"), dict(answer.headers)

    async def read(self, path: str) -> str:
        """Returns the text of a page, which must exist, and keeps its token for the next form."""
        status, text, _ = await self.get(path)
        assert status == 200, (path, status, text)
        if found := re.search(r'name="csrf" value="([0-9A-Za-z_-]+)"', text):
            self.csrf = found[1]
        return text

    async def post(
        self, path: str, csrf: str | None = None, origin: str = "", accept: str = "text/html", **form: str
    ) -> tuple[int, str]:
        """Sends a form with the token of the last page or a given one. Returns status and text."""
        token = self.csrf if csrf is None else csrf
        headers = {"Accept": accept} | ({"Origin": origin} if origin else {})
        async with self.client.post(
            self.url + path, data={**form, "csrf": token}, headers=headers, allow_redirects=False
        ) as answer:
            return answer.status, await answer.text(errors="replace")

    async def download(self, path: str, **form: str) -> tuple[int, bytes]:
        """Sends a form with the token of the last page. Returns status and content."""
        async with self.client.post(self.url + path, data={**form, "csrf": self.csrf}) as answer:
            return answer.status, await answer.read()

    async def callback(self) -> str:
        """Signs in at the identity provider and returns the callback address, without opening it."""
        status, text, headers = await self.get("/sign-in/begin")
        assert status == 303, (status, text)
        async with aiohttp.ClientSession() as away, away.get(headers["Location"], allow_redirects=False) as answer:
            back = answer.headers["Location"]
        assert back.startswith(self.url + "/sign-in/callback?")
        return back.removeprefix(self.url)

    async def come_back(self) -> tuple[int, str]:
        """Signs in at the identity provider and opens the callback address. Returns status and text."""
        status, text, _ = await self.get(await self.callback())
        return status, text

    @asynccontextmanager
    async def stream(
        self, last_event_id: str = "", *, path: str = "/stream"
    ) -> AsyncIterator[AsyncIterator[tuple[str, dict[str, Any]]]]:
        """Yields the messages of the live page, or of another stream, with their ids."""
        headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
        async with self.client.get(self.url + path, headers=headers) as answer:
            assert answer.status == 200

            async def messages() -> AsyncIterator[tuple[str, dict[str, Any]]]:
                id_ = ""
                async for raw in answer.content:
                    line = raw.decode().rstrip("\n")
                    if line.startswith("id: "):
                        id_ = line[4:]
                    elif line.startswith("data: "):
                        yield id_, json.loads(line[6:])

            yield messages()


@asynccontextmanager
async def console_bench(
    folder: Path, more: Mapping[str, str] | None = None, authority: Authority | None = None
) -> AsyncIterator[ConsoleBench]:
    """Starts the legs and the console, with `more` settings. Registry, ingest and evaluators are unavailable.

    With an authority, all use its certificates, and the console is that of the police.
    """
    port = free_port()
    asked = list[Asked]()
    copies = dict[str, evidence_pb2.ReadEvidenceResponse]()
    notes: list[notes_pb2.AddNoteRequest] = []
    async with AsyncExitStack() as stack:
        legs, env = {}, {}
        for leg in ("probation", "police"):
            fake_leg = legs[leg] = FakeLeg(leg, asked)  # type: ignore[abstract]  # the console calls no other methods
            settings = CommonSettings(port=0, dev_secret=SECRET)
            if authority:
                settings = CommonSettings(
                    port=0, **_files(authority, folder, f"spiffe://tandem/service/dispatch-{leg}")
                )

            fake_notes = FakeNotes(leg, asked, notes)

            def add(server: grpc.aio.Server, fake_leg: FakeLeg = fake_leg, fake_notes: FakeNotes = fake_notes) -> None:
                notes_pb2_grpc.add_NoteServiceServicer_to_server(fake_notes, server)
                dispatch_pb2_grpc.add_DispatchServiceServicer_to_server(fake_leg, server)
                evidence_pb2_grpc.add_EvidenceServiceServicer_to_server(FakeEvidence(copies), server)  # type: ignore[abstract]

            served = await stack.enter_async_context(rpc.serve(settings, add, history=HistoryBudget(PriorityGate())))
            env[f"TANDEM_DISPATCH_{leg.upper()}"] = f"ipv4:127.0.0.1:{served.port}"
        for name in ("REGISTRY", "INGEST", "GEOFENCE"):
            env[f"TANDEM_{name}"] = f"ipv4:127.0.0.1:{free_port()}"
        env |= {"TANDEM_PORT": str(port), "TANDEM_DATA_DIR": str(folder / "console")}
        env |= {"TANDEM_DEV_SECRET": SECRET, **(more or {})}
        if authority:
            files = _files(authority, folder, "spiffe://npa/desk/console")
            env |= {f"TANDEM_{name.upper()}": str(path) for name, path in files.items()}
            pages = _files(authority, folder, "spiffe://tandem/service/console")
            env |= {"TANDEM_HTTP_TLS_CERT": str(pages["tls_cert"]), "TANDEM_HTTP_TLS_KEY": str(pages["tls_key"])}
            env |= {"TANDEM_CONSOLE_ROLE": "police", "TANDEM_DEV_SECRET": ""}
        process = Service("services.console", env, folder / "console.log")
        process.start()
        stack.callback(process.kill)
        bench = ConsoleBench(f"http://127.0.0.1:{port}", legs, asked, copies, notes)
        if authority:
            bench.url, bench.tls = (
                f"https://127.0.0.1:{port}",
                ssl.create_default_context(cadata=authority.cert.decode()),
            )
        async with asyncio.timeout(PATIENCE_S), bench.visitor() as early:
            while True:
                try:
                    await early.get("/sign-in")
                    break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
        yield bench


def _files(authority: Authority, folder: Path, spiffe_id: str) -> dict[str, Any]:
    cert, key = authority.service(spiffe_id).write(folder, spiffe_id.rpartition("//")[2].replace("/", "-"))
    ca = folder / "ca.pem"
    ca.write_bytes(authority.cert)
    return {"tls_cert": cert, "tls_key": key, "tls_ca": ca}
