"""Test support: two evaluator processes on a separate nats-server, a load on their log, and an offline fold to compare with."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.mesh import progress
from services.common.clock import MeshClock
from services.common.messaging import bus as buses
from services.common.messaging import flow, pull, streams
from services.common.messaging.bus import Bus
from services.geofence import translate
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert, Request
from services.geofence.domain.entries import Entry
from services.geofence.domain.state import State
from tandem.common.v1 import alert_pb2, log_pb2
from tests.support.common.nats import STREAM_BYTES, TestServer, running_server
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn
from tests.support.geofence import log

SECRET = "secret-of-this-test"
CHECKPOINT_EVERY = 40
PATIENCE_S = 180.0
PAUSE_S = 0.004
STEPS = 20
"""Reports of a wearer's way from 3 km to 50 m and back."""


class EvaluatorMesh:
    """The server and the evaluators; each evaluator keeps its checkpoints in `folder`/geofence-<replica>."""

    def __init__(self, nats: TestServer, folder: Path) -> None:
        self.nats, self.folder = nats, folder
        self.evaluators: list[Service] = []
        self.addresses = [f"127.0.0.1:{free_port()}" for _ in range(2)]
        self.metrics = [f"http://127.0.0.1:{free_port()}" for _ in range(2)]

    def env(self, replica: int) -> dict[str, str]:
        """Environment settings of an evaluator."""
        return {
            "TANDEM_PORT": self.addresses[replica].rpartition(":")[2],
            "TANDEM_METRICS_PORT": self.metrics[replica].rpartition(":")[2],
            "TANDEM_NATS_URL": self.nats.url_as("geofence"),
            "TANDEM_NATS_MONITOR_URL": self.nats.monitor_url,
            "TANDEM_DEV_SECRET": SECRET,
            "TANDEM_DATA_DIR": str(self.folder),
            "TANDEM_REPLICA": str(replica),
            "TANDEM_REPLICAS": "2",
            "TANDEM_CHECKPOINT_EVERY": str(CHECKPOINT_EVERY),
        }

    def logged(self, replica: int, event: str) -> list[Mapping[str, object]]:
        """Log records of an evaluator with this event name, from all its runs."""
        lines = self.evaluators[replica].log().splitlines()
        records = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
        return [record for record in records if record["event"] == event]

    async def applied(self, sequence: int, replicas: Sequence[int] = (0, 1)) -> list[int]:
        """Waits until these evaluators have applied an entry; returns the applied sequence of each."""
        return [
            await progress.until_applied(self.metrics[replica], sequence, within_s=PATIENCE_S) for replica in replicas
        ]


@contextmanager
def two_evaluators(folder: Path) -> Iterator[EvaluatorMesh]:
    """Starts a nats-server and both evaluators; kills all of them at the end."""
    with running_server(folder / "nats") as nats, ExitStack() as stack:
        mesh = EvaluatorMesh(nats, folder)
        for replica in range(2):
            service = spawn("services.geofence", mesh.env(replica), folder / f"geofence-{replica}.log")
            mesh.evaluators.append(stack.enter_context(service))
        yield mesh


@asynccontextmanager
async def connected(mesh: EvaluatorMesh, replicas: Sequence[int] = (0, 1)) -> AsyncIterator[Bus]:
    """Connects to the server, creates the streams, and waits until these evaluators serve."""
    async with buses.connect(mesh.nats.url, "test") as bus:
        await streams.create(bus, 1, MeshClock(), max_bytes=STREAM_BYTES)
        for replica in replicas:
            await mesh.evaluators[replica].ready(mesh.addresses[replica])
        yield bus


@dataclass(slots=True)
class Load:
    """A load of wearers who approach and leave, one after another, with reports of both sides every few milliseconds."""

    bus: Bus
    entries: int = 0
    stopping: bool = False
    acknowledged: list[tuple[int, bytes]] = field(default_factory=list)
    """Sequence and content of each entry that the server acknowledged."""
    _cases: Iterator[int] = field(default_factory=itertools.count)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def run(self) -> None:
        """Publishes entries until `stopping` is set."""
        while not self.stopping:
            name = str(next(self._cases))
            await self.publish(log.case_entry(name))
            for step in range(STEPS):
                now_ms = time.time_ns() // 1_000_000
                north_m = 50 + 2950 * abs(1 - 2 * step / (STEPS - 1))
                report = log.position(f"t{name}", now_ms, north_m, report_id=f"t{step}")
                other = log.position(f"d{name}", now_ms, 0, report_id=f"d{step}")
                await self.publish(log.positions_entry(other, report))
                await asyncio.sleep(PAUSE_S)

    async def publish(self, entry: log_pb2.LogEntry) -> None:
        """Publishes an entry once, retrying until it is stored."""
        subject = log.subject_of(entry)
        msg_id = f"load-{next(self._numbers)}"
        data = entry.SerializeToString()
        if ack := await self.bus.publish_until_stored(subject, data, msg_id=msg_id):
            self.acknowledged.append((ack.seq, data))
        self.entries += 1

    async def more(self, count: int) -> None:
        """Returns once `count` more entries are in the log."""
        wanted = self.entries + count
        async with asyncio.timeout(PATIENCE_S):
            while self.entries < wanted:  # noqa: ASYNC110  # the load sends no notification
                await asyncio.sleep(0.01)

    async def alert_delay_s(self) -> float:
        """Publishes a wearer at 50 m; returns the time from the stored report to the stored alert, seconds."""
        name = f"delay-{next(self._cases)}"
        now_ms = time.time_ns() // 1_000_000
        await self.publish(log.case_entry(name))
        await self.publish(
            log.positions_entry(log.position(f"d{name}", now_ms, 0), log.position(f"t{name}", now_ms, 50))
        )
        began = time.monotonic()
        last = (await self.bus.bounds_of(flow.ALERTS.name)).last
        async with asyncio.timeout(PATIENCE_S):
            async for messages in pull.read(self.bus, flow.ALERTS.name, max(last - 100, 1)):
                if any(alert_pb2.Alert.FromString(message.data).case_id == f"case-{name}" for message in messages):
                    break
        return time.monotonic() - began


async def stored_alerts(bus: Bus, count: int, last: int) -> list[bytes]:
    """All alerts up to an entry of the log, in the order of the fold, once ALERTS holds at least `count` of them."""
    stored: list[alert_pb2.Alert] = []
    async with asyncio.timeout(PATIENCE_S):
        async for messages in pull.read(bus, flow.ALERTS.name, 1):
            alerts = [alert_pb2.Alert.FromString(message.data) for message in messages]
            stored += [alert for alert in alerts if alert.sequence <= last]
            if len(stored) >= count and not messages[-1].pending:
                break
    return [alert.SerializeToString() for alert in sorted(stored, key=lambda alert: (alert.sequence, alert.ordinal))]


async def offline(bus: Bus, last: int, wanted: Collection[int] = ()) -> tuple[list[bytes], dict[int, bytes]]:
    """Alerts of an offline fold of the log from its start to `last`, and its encoded state after each wanted sequence."""
    log_meta = await streams.read_log_meta(bus)
    state = State(0, log_meta.log_id, clock_rate=log_meta.clock.rate, clock_anchor_ms=log_meta.clock.anchor_ms)
    alerts, states = [], {}
    async for messages in pull.read(bus, flow.log_stream(0), 1):
        for message in messages:
            if message.sequence > last:
                break
            for output in fold.step(
                state, Entry(message.sequence, message.stamp_ms, translate.entry_body(message.data))
            ):
                if isinstance(output, Request):
                    continue
                assert isinstance(output, Alert), output
                alerts.append(translate.alert_to_proto(output, 0).SerializeToString())
            if message.sequence in wanted:
                states[message.sequence] = codec.encode(state)
        if messages[-1].sequence >= last:
            break
    return alerts, states


@asynccontextmanager
async def under_load(bus: Bus) -> AsyncIterator[Load]:
    """Runs a load during a block and stops it at the end. Raises the error that ended the load."""
    load = Load(bus)
    task = asyncio.create_task(load.run())
    try:
        yield load
        load.stopping = True
        await task
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
