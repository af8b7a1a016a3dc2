"""A whole chain for bench.geofence: nats-server, ingest, evaluators and the three legs, each a process, and its crowd's cases.

The cases go into the log as the registry writes them, by its interface it would take minutes. Each load is over before anybody in
the crowd has been silent for three minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import grpc.aio

from bench.chain import Offers
from bench.ingestion import endpoint as door
from bench.ingestion import reports, saturated
from bench.ingestion.endpoint import Door
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Tally
from bench.mesh import load, machine
from bench.mesh.crowd import WALK, Crowd
from bench.mesh.load import Plan, Shape, Trigger
from bench.mesh.machine import Usage
from services.cli.failure import CommandFailed
from services.cli.simulate import load_generator
from services.cli.simulate.load_generator import DueRequest, LoadOutcome
from services.common import times
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tandem.geofence.v1 import geofence_pb2, geofence_pb2_grpc
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.ports import free_port
from tests.support.common.processes import spawn
from tests.support.dispatch import dispatch

CROWD = Crowd(reports.DEVICES // 2)
TRIGGERS = 2_000
"""Wearers at the end of the crowd who don't report until their first report is near."""
WALKING = CROWD.devices - 2 * TRIGGERS
STREAMS, WINDOW = 8, 8
APPLIED_WITHIN_S = 120.0
_ENTERED_BATCH = 256
_DESK = "spiffe://npa/desk/seoul"


class Alerted(Offers):
    """As Offers, and when the alert that demands a response was read back from ALERTS."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[Trigger, float] = {}

    async def follow_alerts(self, bus: Bus) -> None:
        """Reads the stream for ever."""
        async for messages in pull.read(bus, flow.ALERTS.name, 1):
            now = time.monotonic()
            for message in messages:
                alert = alert_pb2.Alert.FromString(message.data)
                if alert.demand == geometry_pb2.RESPOND:
                    self.alerts.setdefault((alert.cause.device_id, alert.cause.report_id), now)


@dataclass(frozen=True, slots=True)
class Drained:
    """What a chain did with as many reports as ingest took."""

    reports_per_s: float
    """From the first report to all of them applied by every evaluator and the last one's incident offered by every leg."""
    behind_s: float
    """How long that took after ingest had taken the last."""
    used: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class Due:
    """What a load whose requests were due at fixed moments gave."""

    sent: LoadOutcome
    alert_ms: list[float]
    """From due to the alert that demands a response."""
    legs_ms: list[float]
    """From due to the later of the two agencies' offers."""
    lost: int
    used: Usage
    seconds: float


@dataclass(slots=True)
class Chain:
    """A running chain."""

    door: Door
    evaluators: Sequence[str]
    """Their addresses."""
    seen: Alerted
    pids: dict[str, int]
    _walkers: dict[int, Reports] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=partial(itertools.count, 1))
    _triggers: itertools.count[int] = field(default_factory=partial(itertools.count, CROWD.wearers - TRIGGERS))

    def walkers(self, size: int) -> Reports:
        """Reports of those who walk, so many a request."""
        if size not in self._walkers:
            places = [partial(CROWD.place, turn=turn) for turn in range(len(WALK) if size > 1 else 2)]
            self._walkers[size] = Reports(size, self._numbers, places=places, devices=WALKING)
        return self._walkers[size]

    def trigger(self, fix_time_s: int) -> tuple[Trigger, ingest_pb2.Position]:
        """The first report of a wearer who is near already."""
        device = 2 * next(self._triggers)
        if device >= CROWD.devices:
            raise CommandFailed("this chain has no wearer left who hasn't reported: fewer or shorter turns")
        lat_deg, lon_deg = CROWD.place(device, 0, trigger=True)
        position = ingest_pb2.Position(
            device_id=reports.device_id(device),
            report_id="first",
            fix_time=times.to_timestamp(fix_time_s * 1000),
            lat_deg=lat_deg,
            lon_deg=lon_deg,
            accuracy_m=reports.ACCURACY_M,
        )
        return (position.device_id, position.report_id), position

    async def applied(self) -> None:
        """Returns when every evaluator has applied all that the log holds now."""
        last = (await self.door.bus.bounds_of(flow.log_stream(0))).last
        request = geofence_pb2.GetCaseRequest(case_id=next(CROWD.cases(0, 0)).case_id, min_sequence=last)
        async with asyncio.timeout(APPLIED_WITHIN_S):
            for address in self.evaluators:
                async with server.channel(address) as channel:
                    stub = geofence_pb2_grpc.GeofenceServiceStub(channel)
                    while True:
                        try:
                            await stub.GetCase(request, metadata=server.bearer(_DESK, door.SECRET), wait_for_ready=True)
                            break
                        except grpc.aio.AioRpcError as error:
                            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                                raise

    async def drain(self, seconds: float) -> Drained:
        """Sends as much as ingest takes for so long, then waits until everything has come out at the other end."""
        tally, walkers = Tally(), self.walkers(BATCH)
        before, began = machine.usage(self.pids), time.monotonic()

        async def stop() -> None:
            await asyncio.sleep(seconds)
            tally.over = True

        async with server.channel(self.door.address) as channel:
            work = [saturated.stream(channel, self.door.identity, walkers, WINDOW, tally) for _ in range(STREAMS)]
            await asyncio.gather(stop(), *work)
        taken = time.monotonic()
        trigger, position = self.trigger(int(time.time()))
        plan = Plan(int(time.time() * 1000) + 50, [_request(0.0, 0, b"", [position])], {trigger: 0.0})
        await load.send(self.door.address, self.door.identity, plan, 1)
        await self.applied()
        await self.seen.until_all(plan.triggers)
        took_s = time.monotonic() - began
        if self.seen.lost(plan.triggers):
            raise CommandFailed("the last report's incident was offered by no leg")
        used = machine.usage(self.pids).since(before)
        return Drained(tally.reports / took_s, time.monotonic() - taken, used, took_s)

    async def due(self, shape: Shape, seconds: float, seed: int, triggers_per_s: float) -> Due:
        """Sends a load whose requests are due at independent random moments, with triggers among them."""
        drawn, walkers = random.Random(seed), self.walkers(shape.batch)
        dues_s = load_generator.moments_s(drawn, round(seconds * shape.reports_per_s / shape.batch), seconds)
        with_trigger = set(drawn.sample(range(len(dues_s)), round(seconds * triggers_per_s)))
        starts_at_ms = load_generator.starts_at_ms(len(dues_s))
        requests, triggers = [], {}
        for i, due_s in enumerate(dues_s):
            fix_time_s = int(starts_at_ms / 1000 + due_s)
            if i in with_trigger:
                trigger, position = self.trigger(fix_time_s)
                triggers[trigger] = due_s
                rest = walkers.next_of(fix_time_s, i) if shape.batch > 1 else b""
                requests.append(_request(due_s, i, rest, [position], shape.batch))
            else:
                requests.append(DueRequest(due_s, shape.batch, walkers.next_of(fix_time_s, i)))
        plan = Plan(starts_at_ms, requests, triggers)
        await asyncio.sleep(
            starts_at_ms / 1000 - time.time() - 0.3
        )  # what made the load isn't counted as the chain's work
        before = machine.usage(self.pids)
        sent = await load.send(self.door.address, self.door.identity, plan, shape.streams)
        used = machine.usage(self.pids).since(before)
        await self.seen.until_all(plan.triggers)
        legs_ms = self.seen.latencies_ms(sent.started, triggers)["both"]
        alert_ms = [
            (self.seen.alerts.get(one, float("inf")) - sent.started - due_s) * 1000 for one, due_s in triggers.items()
        ]
        return Due(sent, alert_ms, legs_ms, self.seen.lost(triggers), used, sent.took_s)


def _request(
    due_s: float, batch: int, rest: bytes, positions: Sequence[ingest_pb2.Position], size: int = 1
) -> DueRequest:
    """A request with these positions behind the rest. The bytes of two messages one behind the other are both in one."""
    more = ingest_pb2.ReportRequest(batch=batch, positions=positions).SerializeToString()
    return DueRequest(due_s, size if not rest else size + len(positions), rest + more)


@asynccontextmanager
async def running(folder: Path, replicas: int) -> AsyncIterator[Chain]:
    """A chain that has all cases, and has heard everybody who walks."""
    async with AsyncExitStack() as stack:
        nats, bus = await stack.enter_async_context(door.running_nats(folder))
        one = await stack.enter_async_context(door.running(folder, nats, bus))
        pids, addresses = dict(one.pids), []
        for replica in range(replicas):
            address = f"127.0.0.1:{free_port()}"
            env = {
                "TANDEM_PORT": address.rpartition(":")[2],
                "TANDEM_NATS_URL": nats.url_as("geofence"),
                "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
                "TANDEM_DEV_SECRET": door.SECRET,
                "TANDEM_DATA_DIR": str(folder),
                "TANDEM_REPLICA": str(replica),
                "TANDEM_REPLICAS": str(replicas),
            }
            name = f"geofence-{replica}"
            service = stack.enter_context(spawn("services.geofence", env, folder / f"{name}.log"))
            await service.ready(address)
            pids[name] = service.pid
            addresses.append(address)
        for leg in flow.LEGS:
            configured = dispatch.settings(leg, nats, folder / leg)
            process = await stack.enter_async_context(dispatch.process(configured))
            await stack.enter_async_context(dispatch.client(configured))
            pids[leg] = process.pid
        seen = Alerted()
        tasks = [asyncio.create_task(seen.follow(bus)), asyncio.create_task(seen.follow_alerts(bus))]
        try:
            chained = Chain(one, addresses, seen, pids | {"bench": os.getpid()})
            await _enter(bus)
            await _hear(chained)
            yield chained
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def _enter(bus: Bus) -> None:
    now_ms = time.time_ns() // 1_000_000
    left = (case for wearer in range(CROWD.wearers) for case in CROWD.cases(wearer, now_ms - 1000))

    async def work() -> None:
        for case in left:
            entry = log_pb2.LogEntry(case=case).SerializeToString()
            await bus.publish_until_stored(flow.log_subject(0, "case"), entry, msg_id=case.case_id)

    await asyncio.gather(*(work() for _ in range(_ENTERED_BATCH)))


async def _hear(chain: Chain) -> None:
    """Everybody has reported before anything is measured, but for the wearers who are to trigger an incident."""
    devices = [device for device in range(CROWD.devices) if device < WALKING or device % 2]
    requests = []
    for first in range(0, len(devices), BATCH):
        fix_time = times.to_timestamp(time.time_ns() // 1_000_000 - 1000)
        positions = []
        for device in devices[first : first + BATCH]:
            lat_deg, lon_deg = CROWD.place(device, 0)
            positions.append(
                ingest_pb2.Position(
                    device_id=reports.device_id(device),
                    report_id="here",
                    fix_time=fix_time,
                    lat_deg=lat_deg,
                    lon_deg=lon_deg,
                    accuracy_m=reports.ACCURACY_M,
                )
            )
        requests.append(_request(0.0, first // BATCH, b"", positions, len(positions)))
    sent = await load.send(
        chain.door.address, chain.door.identity, Plan(load_generator.starts_at_ms(0), requests, {}), 1
    )
    if sent.refused:
        raise CommandFailed(f"the chain isn't ready: {sent.refused}")
    await chain.applied()
