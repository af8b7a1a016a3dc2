"""What the decision needs of a tag is asked, delivered and obeyed on a mesh, while ingest and evaluators are killed.

Evaluators decide, ingest delivers, and a tag reports as it is told. Mesh time runs fast.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import log_pb2, sensing_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.nats import STREAM_BYTES, running_server
from tests.support.geofence import log
from tests.support.geofence.evaluators import Evaluators
from tests.support.ingest.asked import Reporting, stored_commands
from tests.support.ingest.ingest import Client, IngestMesh, position, running_ingest

RATE = 20
PATIENCE_S = 150.0
FAR_M, NEAR_M = 5_000.0, 300.0
PACE_MPS = 8.0
USUAL_S = 60
pytestmark = pytest.mark.timeout(600)


class Mesh:
    """An ingest and two evaluators on a server of their own."""

    def __init__(self, ingest: IngestMesh, evaluators: Evaluators, clock: MeshClock) -> None:
        self.ingest = ingest
        self.evaluators = evaluators
        self.clock = clock


@contextmanager
def running_mesh(folder: Path) -> Iterator[Mesh]:
    """Starts the mesh, and kills it at the end."""
    clock = MeshClock(RATE, round(time.time() * 1000))
    env = {
        "TANDEM_CLOCK_RATE": str(RATE),
        "TANDEM_CLOCK_ANCHOR_MS": str(clock.anchor_ms),
        "TANDEM_TICK_AFTER_S": "0.2",
        "TANDEM_CHECKPOINT_EVERY": "20",
    }

    async def create() -> None:
        async with buses.connect(nats.url, "setup") as bus:
            await streams.create(bus, 1, clock, max_bytes=STREAM_BYTES)

    with running_server(folder / "nats") as nats:
        asyncio.run(create())
        evaluators = Evaluators(nats, folder, partitions=1, env=env)
        clock_only = {name: value for name, value in env.items() if "CLOCK" in name}
        with running_ingest(nats, folder / "ingest.log", clock_only) as ingest:
            try:
                for service in evaluators.services:
                    service.start()
                yield Mesh(ingest, evaluators, clock)
            finally:
                for service in evaluators.services:
                    service.kill()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    with running_mesh(tmp_path) as running:
        yield running


class Reporter:
    """A device north of the protected person. It reports at its interval and follows commands, over a new stream if one breaks."""

    def __init__(self, client: Client, device_id: str, clock: MeshClock, *, north_m: float = 0.0) -> None:
        self._client = client
        self.device_id = device_id
        self._clock = clock
        self.interval_s: int | None = None
        """Interval that the device was asked to keep. None for its usual one."""
        self.received: dict[str, ingest_pb2.DeviceCommand] = {}
        self._from_m = self._to_m = north_m
        self._left_ms = clock.now_ms()
        self._until_ms = 0
        self._wake = asyncio.Event()

    def go(self, north_m: float) -> None:
        """Sets out for another place, at PACE_MPS."""
        self._from_m = self.north_m
        self._to_m = north_m
        self._left_ms = self._clock.now_ms()

    @property
    def north_m(self) -> float:
        """Where it is now, metres north of the protected person."""
        gone_m = PACE_MPS * (self._clock.now_ms() - self._left_ms) / 1000
        way_m = self._to_m - self._from_m
        return self._to_m if gone_m >= abs(way_m) else self._from_m + (gone_m if way_m > 0 else -gone_m)

    async def run(self) -> None:
        """Reports until cancelled."""
        while True:
            with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                call: Any = self._client.open()
                reading = asyncio.create_task(self._read(call))
                try:
                    while not reading.done():
                        await self._report(call)
                        self._wake.clear()
                        interval_s = self.interval_s or USUAL_S
                        with suppress(TimeoutError):
                            async with asyncio.timeout(interval_s / RATE):
                                await self._wake.wait()
                finally:
                    reading.cancel()
                    call.cancel()
                    with suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
                        await reading
            await asyncio.sleep(0.2)

    async def _report(self, call: Any) -> None:
        now_ms = self._clock.now_ms()
        if self.interval_s is not None and now_ms >= self._until_ms:
            self.interval_s = None
        fix = position(self.device_id, f"r{now_ms}", now_ms, lat_deg=37.5 + self.north_m * log.E7_PER_KM / 1e10)
        await call.write(ingest_pb2.ReportRequest(batch=1, positions=[fix]))

    async def _read(self, call: Any) -> None:
        while (response := await call.read()) is not grpc.aio.EOF:
            for command in response.commands:
                receipt = ingest_pb2.CommandReceipt(command_id=command.command_id, device_id=command.device_id)
                await call.write(ingest_pb2.ReportRequest(batch=2, receipts=[receipt]))
                self.received[command.command_id] = command
                self._obey(command)

    def _obey(self, command: ingest_pb2.DeviceCommand) -> None:
        every = command.instruction.report_every
        match command.instruction.WhichOneof("kind"):
            case "report_every":
                self.interval_s, self._until_ms = every.interval_s, self._clock.now_ms() + every.for_s * 1000
            case "report_as_usual":
                self.interval_s = None
            case "locate_now":
                self._wake.set()
            case "remind_wearer":
                pass  # the wearer goes where the test sends him
            case kind:
                raise AssertionError(f"no tag gets {kind}")


async def requests(bus: Bus) -> list[sensing_pb2.SensingRequest]:
    """Requests of the decision, oldest first."""
    bounds = await bus.bounds_of(flow.SENSING.name)
    if bounds.first > bounds.last:
        return []
    return [
        sensing_pb2.SensingRequest.FromString(message.data)
        async for message in pull.between(bus, flow.SENSING.name, bounds.first, last=bounds.last)
    ]


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    """Waits for a condition that other processes bring about."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not await condition():  # noqa: ASYNC110
                await asyncio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not in {PATIENCE_S:g} s: {what}") from None


async def test_a_tag_keeps_what_the_decision_asks_while_ingest_and_evaluators_are_killed(mesh: Mesh) -> None:
    await mesh.evaluators.ready()
    async with (
        mesh.ingest.connected() as client,
        server.channel(mesh.ingest.address) as channel,
        asyncio.TaskGroup() as tasks,
    ):
        bus, people = client.bus, Reporting(channel)
        await client.route("t1", subject_id="w1")
        await client.route("d1", subject_id="p1", kind=log_pb2.DeviceKind.PROTECTIVE_DEVICE)
        entry = log.case_entry("1", from_ms=mesh.clock.now_ms() - 1_000)
        await bus.publish_until_stored(log.subject_of(entry), entry.SerializeToString())
        tag, phone = Reporter(client, "t1", mesh.clock, north_m=FAR_M), Reporter(client, "d1", mesh.clock)
        running = [tasks.create_task(tag.run()), tasks.create_task(phone.run())]

        async def asks(least_s: int, most_s: int) -> bool:
            """Whether the newest request is for an interval in this range, and the tag keeps that interval."""
            asked = [request for request in await requests(bus) if request.HasField("report_every")]
            newest_s = asked[-1].report_every.interval_s if asked else 0
            return least_s <= newest_s <= most_s and tag.interval_s == newest_s

        async def is_shown() -> bool:
            """Whether the list shows that the tag keeps what the decision asks."""
            with suppress(grpc.aio.AioRpcError):
                row = await people.row("t1")
                return row.obeys == ingest_pb2.OBEDIENCE_YES and row.asks[0].interval_s == tag.interval_s
            return False

        await until(lambda: asks(130, 170), "a long interval far away")
        await until(is_shown, "obeyed far away")

        tag.go(NEAR_M)
        mesh.ingest.service.kill()
        mesh.evaluators.services[0].kill()
        await asyncio.sleep(1)
        mesh.ingest.service.start()
        await until(lambda: asks(27, 66), "a short interval near her, of one evaluator")
        mesh.evaluators.services[0].start()
        await until(is_shown, "obeyed near her")

        tag.go(FAR_M)
        for service in (*mesh.evaluators.services, mesh.ingest.service):
            service.kill()
        await asyncio.sleep(1)
        for service in (*mesh.evaluators.services, mesh.ingest.service):
            service.start()
        await until(lambda: asks(130, 170), "a long interval far away again")
        await until(is_shown, "obeyed far away again")
        for task in running:
            task.cancel()

        made = await stored_commands(bus, "t1")
        intervals = [request for request in await requests(bus) if request.HasField("report_every")]
        asked = [command for command in made if command.instruction.HasField("report_every") and not command.ask_id]
        assert len(asked) == len(intervals), "one command for each request"
        assert {command.issued_by for command in asked} == {"geofence"}
        assert {request.device_id for request in await requests(bus)} == {"t1"}, "her phone is asked for nothing"
        assert not phone.received
        assert {command.instruction.WhichOneof("kind") for command in tag.received.values()} <= {
            "report_every",
            "report_as_usual",
            "locate_now",
            "remind_wearer",
        }
