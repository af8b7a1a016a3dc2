"""Test support for live positions: processes of a registry and two evaluators, and readers of both agencies."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import code_pb2

from bench.mesh import progress
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import alert_pb2, log_pb2, subject_pb2
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn
from tests.support.geofence import log
from tests.support.registry import records
from tests.support.registry import registry as registries
from tests.support.registry.registry import SECRET, WITHIN_S, RegistryMesh, running_registry

MOJ_DESK = "spiffe://moj/desk/seoul"
NPA_DESK = "spiffe://npa/desk/seoul"
BASIS = "STALKING_9_1_3_2"
INTERVALS_S = (0.02, 0.5)
"""Minimum time between two positions of a subject, by evaluator, seconds. The second checks more often than it sends."""

_UNWRITTEN = "Internal error from Core"
"""Details that grpc.aio gives to a call whose write failed."""

Call = grpc.aio.StreamStreamCall[positions_pb2.FollowPositionsRequest, positions_pb2.FollowPositionsResponse]


@dataclass(frozen=True)
class Event:
    """An event of one share."""

    subject: positions_pb2.Subject
    message: positions_pb2.ShareEvent

    @property
    def position(self) -> positions_pb2.LivePosition:
        """The position; empty if the event has none."""
        return self.message.position

    @property
    def end(self) -> positions_pb2.ShareEnd:
        """The end; empty if the share goes on."""
        return self.message.end

    @property
    def is_position(self) -> bool:
        """Whether the event is a position."""
        return self.message.HasField("position")

    @property
    def is_end(self) -> bool:
        """Whether the event is the end of the share."""
        return self.message.HasField("end")


class Refused(Exception):
    """A share was refused."""

    def __init__(self, refusal: positions_pb2.ShareRefused) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal
        self.code = code_pb2.Code.Name(refusal.code)


class Stream:
    """A stream of shares. Subjects are numbered in the order in which they are added."""

    def __init__(self, call: Call) -> None:
        self.call = call
        self._subjects: dict[int, positions_pb2.Subject] = {}
        self._events: deque[Event] = deque()
        self._unsent: list[positions_pb2.FollowPositionsRequest] = []

    def add(self, *requests: positions_pb2.ShareRequest) -> list[int]:
        """Adds shares with the next read. Returns their numbers."""
        for request in requests:
            request.number = len(self._subjects) + 1
            self._subjects[request.number] = request.subject
        self._unsent.append(positions_pb2.FollowPositionsRequest(adds=requests))
        return [request.number for request in requests]

    async def send(self, request: positions_pb2.FollowPositionsRequest | None = None) -> None:
        """Sends what was added, then a request."""
        while self._unsent:
            await self.call.write(self._unsent.pop(0))
        if request is not None:
            await self.call.write(request)

    async def finish(self) -> None:
        """Sends what was added, and nothing more."""
        await self.send()
        await self.call.done_writing()

    async def event(self) -> Event | None:
        """The next event, whatever it is; None at the end of the stream."""
        await self.send()
        while not self._events:
            response = await self.call.read()
            if not isinstance(response, positions_pb2.FollowPositionsResponse):
                return None
            self._events += (Event(self._subjects[event.number], event) for event in response.events)
        return self._events.popleft()

    async def next(self) -> Event | None:
        """The next position or end; None at the end of the stream. Raises Refused."""
        while (event := await self.event()) is not None:
            if event.message.HasField("refused"):
                raise Refused(event.message.refused)
            if not event.message.HasField("opened"):
                return event
        return None

    def cancel(self) -> None:
        """Ends the stream as a caller that is gone."""
        self.call.cancel()


def wearer(case: str) -> positions_pb2.Subject:
    """The wearer of a case of `log.case_entry`."""
    return positions_pb2.Subject(kind=subject_pb2.WEARER, subject_id=f"w{case}")


def person(case: str) -> positions_pb2.Subject:
    """The protected person of a case of `log.case_entry`."""
    return positions_pb2.Subject(kind=subject_pb2.PROTECTED_PERSON, subject_id=f"p{case}")


class Evaluator:
    """An evaluator process."""

    def __init__(self, service: Service, address: str, metrics_url: str, folder: Path) -> None:
        self.service = service
        self.address = address
        self.metrics_url = metrics_url
        self.outbox = folder / "disclosures.sqlite3"


class SharingMesh:
    """The registry and the evaluators."""

    def __init__(self, registry: RegistryMesh, evaluators: Sequence[Evaluator]) -> None:
        self.registry = registry
        self.evaluators = evaluators

    @asynccontextmanager
    async def connected(self, number: int = 0, *options: tuple[str, int]) -> AsyncIterator[Client]:
        """A client of one evaluator, once the evaluator serves and can share, and the registry serves."""
        evaluator = self.evaluators[number]
        await evaluator.service.ready(evaluator.address)
        await evaluator.service.logged("disclosures_opened")  # it serves before, as decisions need no ledger
        async with (
            grpc.aio.insecure_channel(evaluator.address, options=options) as channel,
            self.registry.connected() as registry,
            buses.connect(self.registry.nats.url, "test") as bus,
        ):
            yield Client(self, evaluator, channel, registry, bus)

    def rows(self, reference: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger about an incident, in order."""
        rows = self.registry.query(
            "select reference, deed, record_kind, record_id, order_id, legal_basis, who, recipient, positions, disclosure_id"
            " from ledger order by sequence"
        )
        return [row[1:] for row in rows if row[0] == reference]

    async def until_rows(self, reference: str, count: int) -> list[tuple[Any, ...]]:
        """Rows of the ledger about an incident, once there are at least `count`."""
        async with asyncio.timeout(WITHIN_S):
            while len(rows := self.rows(reference)) < count:  # noqa: ASYNC110  # another process writes them
                await asyncio.sleep(0.05)
        return rows


class Client:
    """Reads positions from one evaluator, and writes the log."""

    def __init__(
        self,
        mesh: SharingMesh,
        evaluator: Evaluator,
        channel: grpc.aio.Channel,
        registry: registries.Client,
        bus: Bus,
    ) -> None:
        self.mesh = mesh
        self.bus = bus
        self._evaluator = evaluator
        self._registry = registry
        self._stub = positions_pb2_grpc.PositionServiceStub(channel)

    async def publish(self, entry: log_pb2.LogEntry) -> int:
        """Publishes an entry to the log; returns its sequence. The records of a case are stored first, as the ledger wants them."""
        if entry.HasField("case"):
            await self._record(entry.case)
        stored = await self.bus.publish_until_stored(log.subject_of(entry), entry.SerializeToString())
        assert stored
        return stored.seq

    async def _record(self, case: log_pb2.CaseSnapshot) -> None:
        """Stores the records of a case in the registry, which makes no joint case of them."""
        wearer, person, order = records.unlinked()
        wearer.wearer_id = case.wearer_id
        person.person_id = case.persons[0].person_id
        order.order_id = case.order_id
        order.protected_person_ids[:] = [person.person_id]
        await self._registry.put(wearer, person, order)

    async def approach(self, case: str) -> str:
        """Publishes a wearer 80 m from the protected person 2 minutes ago; returns the id of the incident once it is open."""
        at_ms = now_ms() - 120_000
        await self.publish(log.case_entry(case, from_ms=at_ms - 60_000))
        positions = (log.position(f"d{case}", at_ms, 0), log.position(f"t{case}", at_ms, 80))
        return await self.incident_of(case, await self.publish(log.positions_entry(*positions)))

    async def incident_of(self, case: str, sequence: int) -> str:
        """Id of the incident of a case, once this evaluator has applied an entry of the log that opens one."""
        await self.reached(sequence)
        async with asyncio.timeout(WITHIN_S):
            while True:
                last = (await self.bus.bounds_of(flow.ALERTS.name)).last
                async for message in pull.between(self.bus, flow.ALERTS.name, 1, last=last):
                    alert = alert_pb2.Alert.FromString(message.data)
                    if alert.case_id == f"case-{case}" and alert.incident_id:
                        return alert.incident_id
                await asyncio.sleep(0.05)

    async def reached(self, sequence: int) -> None:
        """Returns once this evaluator has applied an entry of the log.

        Alerts don't show the progress of an evaluator, because either evaluator may publish them first.
        """
        await progress.until_applied(self._evaluator.metrics_url, sequence, within_s=WITHIN_S)

    async def caught_up_with(self, other: Client) -> None:
        """Returns once this client's evaluator has applied all entries that the other client's evaluator has applied now."""
        await self.reached(await progress.applied(other._evaluator.metrics_url))

    async def leave(self, case: str) -> None:
        """Publishes positions of the wearer 6 km away, from 110 to 10 seconds ago."""
        for ago_s in range(110, 0, -10):
            at_ms = now_ms() - ago_s * 1000
            positions = (log.position(f"d{case}", at_ms, 0), log.position(f"t{case}", at_ms, 6_000))
            await self.publish(log.positions_entry(*positions))

    def stream(self, who: str) -> Stream:
        """Opens a stream without shares."""
        return Stream(self._stub.FollowPositions(metadata=server.bearer(who, SECRET)))

    def watch(
        self,
        who: str,
        *subjects: positions_pb2.Subject,
        incident: str = "",
        order: str = "",
        basis: str = BASIS,
        for_s: float = 600,
    ) -> Stream:
        """Opens a stream with a share of each subject."""
        stream = self.stream(who)
        stream.add(*(share(each, incident=incident, order=order, basis=basis, for_s=for_s) for each in subjects))
        return stream

    async def read(self, stream: Stream) -> Event:
        """The next position or end of a stream. Raises Refused."""
        async with asyncio.timeout(WITHIN_S):
            event = await stream.next()
        assert event is not None, await stream.call.code()
        return event

    async def first(
        self, who: str, subject: positions_pb2.Subject, order: str, basis: str
    ) -> tuple[Stream, positions_pb2.LivePosition]:
        """Opens a share under an order, once the evaluator has applied the order; returns its first position, too."""
        async with asyncio.timeout(WITHIN_S):
            while True:
                stream = self.watch(who, subject, order=order, basis=basis)
                try:
                    return stream, (await self.read(stream)).position
                except Refused as error:
                    if error.code != "FAILED_PRECONDITION":
                        raise
                    stream.cancel()
                    await asyncio.sleep(0.05)

    async def refusal(
        self,
        who: str,
        *subjects: positions_pb2.Subject,
        incident: str = "",
        order: str = "",
        basis: str = BASIS,
        for_s: float = 600,
    ) -> str:
        """Status code of the refusal of a stream with a share of each subject, or of its first share.

        A stream that the server refused before its first request was written is opened another time: grpc.aio then states its own
        failed write in the place of the server's status.
        """
        while True:
            stream = self.watch(who, *subjects, incident=incident, order=order, basis=basis, for_s=for_s)
            code = await self._refusal_of(stream)
            if code != "INTERNAL" or await stream.call.details() != _UNWRITTEN:
                return code

    async def _refusal_of(self, stream: Stream) -> str:
        """Status code of the refusal of a stream or of its first share."""
        try:
            async with asyncio.timeout(WITHIN_S):
                event = await stream.next()
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except Refused as error:
            return error.code
        finally:
            stream.cancel()
        raise AssertionError(f"got {event}")

    async def until_end(self, stream: Stream) -> list[Event]:
        """All positions and ends of a stream until its last share ends."""
        events = []
        async with asyncio.timeout(WITHIN_S):
            await stream.finish()
            while (event := await stream.next()) is not None:
                events.append(event)
        return events


def share(
    subject: positions_pb2.Subject, *, incident: str = "", order: str = "", basis: str = BASIS, for_s: float = 600
) -> positions_pb2.ShareRequest:
    """A request of a share."""
    request = positions_pb2.ShareRequest(legal_basis=basis, subject=subject, expires_at=moment(for_s))
    if incident:
        request.incident_id = incident
    if order:
        request.order_id = order
    return request


def now_ms() -> int:
    """Mesh time now, ms since 1970 UTC."""
    return int(time.time() * 1000)


def moment(in_s: float) -> Timestamp:
    """The time `in_s` seconds from now."""
    timestamp = Timestamp()
    timestamp.FromMilliseconds(now_ms() + int(in_s * 1000))
    return timestamp


@contextmanager
def sharing_mesh(folder: Path, module: str = "services.geofence", **env: str) -> Iterator[SharingMesh]:
    """Starts a registry and two evaluators, without waiting for them; kills all processes at the end."""
    with running_registry(folder, 1) as registry, ExitStack() as stack:
        evaluators = []
        for replica in range(2):
            port, metrics_port = free_port(), free_port()
            data_dir = folder / f"data-{replica}"
            settings = {
                "TANDEM_PORT": str(port),
                "TANDEM_METRICS_PORT": str(metrics_port),
                "TANDEM_NATS_URL": registry.nats.url_as("geofence"),
                "TANDEM_NATS_MONITOR_URL": registry.nats.monitor_url,
                "TANDEM_DATA_DIR": str(data_dir),
                "TANDEM_DEV_SECRET": SECRET,
                "TANDEM_REPLICA": str(replica),
                "TANDEM_SHARE_EVERY_S": str(INTERVALS_S[replica]),
                **env,
            }
            service = stack.enter_context(spawn(module, settings, folder / f"geofence-{replica}.log"))
            metrics_url = f"http://127.0.0.1:{metrics_port}"
            evaluators.append(Evaluator(service, f"127.0.0.1:{port}", metrics_url, data_dir / f"geofence-{replica}"))
        yield SharingMesh(registry, evaluators)
