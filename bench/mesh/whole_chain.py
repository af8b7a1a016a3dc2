"""A whole chain for bench.geofence: processes of nats-server, ingest, evaluators and the three legs, and the cases of a crowd.

The cases are written to the log directly, in the registry's form, because its interface would take minutes. Each load ends before any
device of the crowd has been silent for three minutes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from bench.ingestion import answering, endpoint, reports, saturated
from bench.ingestion.endpoint import IngestEndpoint
from bench.ingestion.reports import BATCH, Reports
from bench.ingestion.saturated import Tally
from bench.mesh import load, machine, progress
from bench.mesh.crowd import WALK, Crowd
from bench.mesh.load import Plan, Shape, Trigger
from bench.mesh.machine import Usage
from bench.mesh.offers import Offers
from services.client import load_generator
from services.client.load_generator import DueRequest, LoadOutcome
from services.common import times
from services.common.failure import CommandFailed
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import alert_pb2, geometry_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.ports import free_port
from tests.support.common.processes import spawn
from tests.support.dispatch import dispatch

CROWD = Crowd(reports.DEVICES // 2)
TRIGGERS = 2_000
"""Number of wearers at the end of the crowd whose first report is near the protected person and triggers an incident."""
WALKING = CROWD.devices - 2 * TRIGGERS
STREAMS, WINDOW = 8, 8
APPLIED_WITHIN_S = 120.0
_ENTERED_BATCH = 256


class OffersAndAlerts(Offers):
    """First offers in INCIDENTS, and the time at which the alert with RESPOND was read from ALERTS."""

    def __init__(self) -> None:
        super().__init__()
        self.alerts: dict[Trigger, float] = {}

    async def follow_alerts(self, bus: Bus) -> None:
        """Reads ALERTS until cancelled."""
        async for messages in pull.read(bus, flow.ALERTS.name, 1):
            now = time.monotonic()
            for message in messages:
                alert = alert_pb2.Alert.FromString(message.data)
                if alert.demand == geometry_pb2.RESPOND:
                    self.alerts.setdefault((alert.cause.device_id, alert.cause.report_id), now)


@dataclass(frozen=True, slots=True)
class Drained:
    """Result of a saturated chain."""

    reports_per_s: float
    """Rate over the time from the first report until every evaluator has applied all reports and every leg has offered the last
    incident."""
    behind_s: float
    """Part of that time after ingest had accepted the last report."""
    used: Usage
    seconds: float


@dataclass(frozen=True, slots=True)
class Due:
    """Result of a load whose requests were due at fixed moments."""

    sent: LoadOutcome
    alert_ms: list[float]
    """Latencies from due to the alert with RESPOND."""
    legs_ms: list[float]
    """Latencies from due to the later of the two agencies' offers."""
    lost: int
    used: Usage
    seconds: float


@dataclass(slots=True)
class Chain:
    """A running chain."""

    endpoint: IngestEndpoint
    evaluators: Sequence[str]
    """Addresses of the evaluators' metrics."""
    outputs: OffersAndAlerts
    pids: dict[str, int]
    _walkers: dict[int, Reports] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=partial(itertools.count, 1))
    _triggers: itertools.count[int] = field(default_factory=partial(itertools.count, CROWD.wearers - TRIGGERS))

    def walkers(self, size: int) -> Reports:
        """Reports of the walking devices, `size` in each request."""
        if size not in self._walkers:
            places = [partial(CROWD.place, turn=turn) for turn in range(len(WALK) if size > 1 else 2)]
            self._walkers[size] = Reports(size, self._numbers, places=places, devices=WALKING)
        return self._walkers[size]

    def trigger(self, fix_time_s: int) -> tuple[Trigger, ingest_pb2.Position]:
        """The first report of an unused wearer who is near the protected person. Raises CommandFailed where none is left."""
        device = 2 * next(self._triggers)
        if device >= CROWD.devices:
            raise CommandFailed("this chain has no unused wearer left: use fewer repeats or shorter turns")
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
        """Returns when every evaluator has applied all entries that the log holds now."""
        last = (await self.endpoint.bus.bounds_of(flow.log_stream(0))).last
        for metrics_url in self.evaluators:
            await progress.until_applied(metrics_url, last, within_s=APPLIED_WITHIN_S)

    async def drain(self, seconds: float) -> Drained:
        """Sends at ingest's maximum rate for `seconds`, then waits until all reports are applied and the last incident is offered."""
        tally, walkers = Tally(), self.walkers(BATCH)
        before, began = machine.usage(self.pids), time.monotonic()

        async def stop() -> None:
            await asyncio.sleep(seconds)
            tally.over = True

        async with server.channel(self.endpoint.address) as channel:
            work = [
                saturated.stream(channel, self.endpoint.identity, walkers, window=WINDOW, tally=tally)
                for _ in range(STREAMS)
            ]
            await asyncio.gather(stop(), *work)
        ingested_s = time.monotonic()
        trigger, position = self.trigger(int(time.time()))
        plan = Plan(int(time.time() * 1000) + 50, [_request(0.0, 0, b"", positions=[position])], {trigger: 0.0})
        await load.send(self.endpoint.address, self.endpoint.identity, plan, streams=1)
        await self.applied()
        await self.outputs.until_all(plan.triggers)
        took_s = time.monotonic() - began
        if self.outputs.lost(plan.triggers):
            raise CommandFailed("some leg didn't offer the incident of the last report")
        used = machine.usage(self.pids).since(before)
        return Drained(
            reports_per_s=tally.reports / took_s, behind_s=time.monotonic() - ingested_s, used=used, seconds=took_s
        )

    async def due(self, shape: Shape, seconds: float, seed: int, *, triggers_per_s: float) -> Due:
        """Sends a load whose requests are due at independent random moments, with triggers among them."""
        rng, walkers = random.Random(seed), self.walkers(shape.batch)
        dues_s = load_generator.moments_s(rng, round(seconds * shape.reports_per_s / shape.batch), seconds)
        with_trigger = set(rng.sample(range(len(dues_s)), round(seconds * triggers_per_s)))
        starts_at_ms = load_generator.starts_at_ms(len(dues_s))
        requests, triggers = [], {}
        for i, due_s in enumerate(dues_s):
            fix_time_s = int(starts_at_ms / 1000 + due_s)
            if i in with_trigger:
                trigger, position = self.trigger(fix_time_s)
                triggers[trigger] = due_s
                other_reports = walkers.next_of(fix_time_s, i) if shape.batch > 1 else b""
                requests.append(_request(due_s, i, other_reports, positions=[position], size=shape.batch))
            else:
                requests.append(DueRequest(due_s, shape.batch, walkers.next_of(fix_time_s, i)))
        plan = Plan(starts_at_ms, requests, triggers)
        await asyncio.sleep(
            starts_at_ms / 1000 - time.time() - 0.3
        )  # so that the work of generating the load isn't counted as the chain's
        before = machine.usage(self.pids)
        sent = await load.send(self.endpoint.address, self.endpoint.identity, plan, streams=shape.streams)
        used = machine.usage(self.pids).since(before)
        await self.outputs.until_all(plan.triggers)
        legs_ms = self.outputs.latencies_ms(sent.started, triggers)["both"]
        alert_ms = [
            (self.outputs.alerts.get(trigger, float("inf")) - sent.started - due_s) * 1000
            for trigger, due_s in triggers.items()
        ]
        return Due(
            sent=sent,
            alert_ms=alert_ms,
            legs_ms=legs_ms,
            lost=self.outputs.lost(triggers),
            used=used,
            seconds=sent.took_s,
        )


def _request(
    due_s: float, batch: int, other_reports: bytes, *, positions: Sequence[ingest_pb2.Position], size: int = 1
) -> DueRequest:
    """A request with these positions after other reports. Protobuf merges the concatenated messages into one."""
    request = ingest_pb2.ReportRequest(batch=batch, positions=positions).SerializeToString()
    return DueRequest(due_s, size if not other_reports else size + len(positions), other_reports + request)


@asynccontextmanager
async def running(folder: Path, replicas: int) -> AsyncIterator[Chain]:
    """Starts a chain, with all cases in its log and a first report of every device except those of the triggers."""
    async with AsyncExitStack() as stack:
        nats, bus = await stack.enter_async_context(endpoint.running_nats(folder))
        ingest = await stack.enter_async_context(endpoint.running(folder, nats, bus))
        pids, metrics_urls = dict(ingest.pids), []
        for replica in range(replicas):
            address = f"127.0.0.1:{free_port()}"
            metrics_port = free_port()
            env = {
                "TANDEM_PORT": address.rpartition(":")[2],
                "TANDEM_METRICS_PORT": str(metrics_port),
                "TANDEM_NATS_URL": nats.url_as("geofence"),
                "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
                "TANDEM_DEV_SECRET": endpoint.SECRET,
                "TANDEM_DATA_DIR": str(folder),
                "TANDEM_REPLICA": str(replica),
                "TANDEM_REPLICAS": str(replicas),
            }
            name = f"geofence-{replica}"
            service = stack.enter_context(spawn("services.geofence", env, folder / f"{name}.log"))
            await service.ready(address)
            pids[name] = service.pid
            metrics_urls.append(f"http://127.0.0.1:{metrics_port}")
        for leg in flow.LEGS:
            configured = dispatch.settings(leg, nats, folder / leg)
            process = await stack.enter_async_context(dispatch.process(configured))
            await stack.enter_async_context(dispatch.client(configured))
            pids[leg] = process.pid
        outputs = OffersAndAlerts()
        tasks = [asyncio.create_task(outputs.follow(bus)), asyncio.create_task(outputs.follow_alerts(bus))]
        try:
            chained = Chain(
                endpoint=ingest, evaluators=metrics_urls, outputs=outputs, pids=pids | {"bench": os.getpid()}
            )
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
    """Sends a first report of every device before the measurements, except of the wearers who will trigger an incident.

    The decision then asks each tag for its interval. A mesh in service asks once, so the measurements begin after the tags' receipts.
    """
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
        requests.append(ingest_pb2.ReportRequest(batch=first // BATCH, positions=positions).SerializeToString())
    tags = [reports.device_id(device) for device in devices if device % 2 == 0]
    before, began = machine.usage(chain.pids), time.monotonic()
    await answering.confirm_all(chain.endpoint.address, chain.endpoint.identity, requests, tags=tags)
    await chain.applied()
    used, took_s = machine.usage(chain.pids).since(before), time.monotonic() - began
    spent = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in used.by_process.items())
    print(
        f"{len(devices)} devices heard, {len(tags)} tags asked for their interval and answered in {took_s:.0f} s; "
        f"processor time: {spent}",
        file=sys.stderr,
        flush=True,
    )
