"""Clients of a benchmark that read a mesh's history without pause: incidents, traces, evidence, and all steps from the first.

They run in a process of their own (`python -m bench.mesh.history FOLDER COUNT`), so that they don't delay what the benchmark measures.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc.aio

from bench.mesh.desks import running
from services.client import mesh
from services.client.actors import DESK_BASIS, DESKS
from services.client.mesh import Clients, MeshConnection
from services.common.failure import CommandFailed
from services.common.messaging import flow
from tandem.dispatch.v1 import dispatch_pb2, evidence_pb2
from tandem.dispatch.v1.evidence_pb2_grpc import EvidenceServiceStub
from tandem.registry.v1 import disclosure_pb2, trace_pb2

PAGE_SIZE = 1_000
WITHIN_S = 30.0
REFUSED_PAUSE_S = 0.1
"""Pause of a client whose call was refused or failed, seconds."""
STEPS_READ = 5_000
"""Steps after which a subscriber begins from the first step again."""
_READY = "reading"
SERVED, REFUSED = "served", "refused"


class History:
    """Clients that read history, and how many of their calls were served and refused, by method."""

    def __init__(self, clients: Clients, evidence: dict[str, EvidenceServiceStub]) -> None:
        self._clients = clients
        self._evidence = evidence
        self._incident_ids: dict[str, list[str]] = {leg: [] for leg in flow.AGENCY_LEGS}
        self.calls: Counter[str] = Counter()

    async def learn(self) -> None:
        """Reads which incidents there are."""
        for leg in flow.AGENCY_LEGS:
            listed = await self._clients.legs[leg].dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE), metadata=self._clients.identity(DESKS[leg])
            )
            self._incident_ids[leg] = [incident.incident_id for incident in listed.incidents]

    async def read(self, number: int) -> None:
        """Reads without pause, until cancelled. The number decides what is read, and from which leg."""
        leg = flow.AGENCY_LEGS[number // 4 % 2]
        methods = {
            "ListIncidents": self._list,
            "GetTrace": self._trace,
            "ReadEvidence": self._read_evidence,
            "Subscribe": self._subscribe,
        }
        name = list(methods)[number % len(methods)]
        for n in itertools.count(number):
            known = self._incident_ids[leg]
            await self._count(name, methods[name](leg, known[n % len(known)] if known else "none"))

    async def _count(self, name: str, reading: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(WITHIN_S):
                await reading
        except (grpc.aio.AioRpcError, TimeoutError):
            self.calls[f"{name}: {REFUSED}"] += 1
            await asyncio.sleep(REFUSED_PAUSE_S)
        else:
            self.calls[f"{name}: {SERVED}"] += 1

    async def _list(self, leg: str, _: str) -> None:
        request = dispatch_pb2.ListIncidentsRequest(page_size=PAGE_SIZE)
        await self._clients.legs[leg].dispatch.ListIncidents(request, metadata=self._clients.identity(DESKS[leg]))

    async def _trace(self, leg: str, incident_id: str) -> None:
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        await self._clients.traces.GetTrace(request, metadata=self._clients.identity(DESKS[leg]))

    async def _read_evidence(self, leg: str, incident_id: str) -> None:
        grounds = disclosure_pb2.Grounds(
            legal_basis=DESK_BASIS, purpose=disclosure_pb2.PURPOSE_ENFORCEMENT, reference=incident_id
        )
        request = evidence_pb2.ReadEvidenceRequest(incident_id=incident_id, grounds=grounds)
        await self._evidence[leg].ReadEvidence(request, metadata=self._clients.identity(DESKS[leg]))

    async def _subscribe(self, leg: str, _: str) -> None:
        stream = self._clients.legs[leg].dispatch.Subscribe(
            dispatch_pb2.SubscribeRequest(), metadata=self._clients.identity(DESKS[leg])
        )
        try:
            # Ends also where the leg has fewer steps: the time limit of the caller would count that as refused.
            async with asyncio.timeout(WITHIN_S / 10):
                for _step in range(STEPS_READ):
                    if await stream.read() is grpc.aio.EOF:
                        return
        except TimeoutError:
            pass
        finally:
            stream.cancel()


async def read_until_stopped(connection: MeshConnection, count: int) -> Counter[str]:
    """Runs this many clients, in turn of each kind and leg, until SIGTERM; returns the numbers of calls."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with AsyncExitStack() as stack:
        clients = await stack.enter_async_context(mesh.connect(connection))
        evidence = {
            leg: EvidenceServiceStub(await stack.enter_async_context(mesh.channel(connection, f"dispatch-{leg}")))
            for leg in flow.AGENCY_LEGS
        }
        history = History(clients, evidence)
        await history.learn()
        async with running(*(history.read(number) for number in range(count))):
            print(_READY, flush=True)
            await stop.wait()
    return history.calls


class Readers:
    """A process of clients that read history; `calls` is filled when it has ended."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()


@contextmanager
def readers(folder: Path, count: int) -> Iterator[Readers]:
    """This many clients that read the history of the mesh on `folder`. Raises CommandFailed if they end by themselves."""
    found = Readers()
    if not count:
        yield found
        return
    command = (sys.executable, "-m", "bench.mesh.history", str(folder), str(count))
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        if not process.stdout or process.stdout.readline().strip() != _READY:
            raise CommandFailed("the clients that read history didn't start")
        yield found
        process.terminate()
        printed, _ = process.communicate(timeout=WITHIN_S)
        if process.returncode:
            raise CommandFailed(f"the clients that read history ended with {process.returncode}")
        found.calls.update(json.loads(printed))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    print(json.dumps(asyncio.run(read_until_stopped(mesh.load(Path(sys.argv[1])), int(sys.argv[2])))))
