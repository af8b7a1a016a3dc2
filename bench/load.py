"""The load: reports sent at moments that were fixed beforehand, whether or not the mesh keeps up (an open loop).

Whoever waits for an answer before the next report stops measuring just when the mesh is slow. Here a latency counts from
the moment at which a report was due, so a report that had to wait for its turn is as late as it is to those who wait for it.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.population import Party
from services.cli.failure import CommandFailed
from services.cli.mesh import Clients
from services.cli.parties import VENDOR
from services.common import rpc, times
from tandem.ingest.v1 import ingest_pb2

LATE_S = 0.005
"""A request that was sent so long after it was due counts as late."""
ANSWERED_WITHIN_S = 60.0
"""How long the last answers are awaited."""
FAR_DEG = 0.2
"""Between a wearer and the protected person of a case that nothing happens in, degrees of latitude: 22 km."""
NEAR_DEG = 0.0005
"""The same in a case that is triggered: 55 m."""
STEP_DEG = 1e-5
"""From report to report, degrees: 1 m."""
_METHOD = f"/{ingest_pb2.DESCRIPTOR.services_by_name['IngestService'].full_name}/Report"
_PREPARED_PER_S = 60_000
"""How many reports can be prepared in a second, at the least."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How reports come."""

    name: str
    reports_per_s: int
    batch: int
    """Reports in each request."""
    streams: int
    """Streams over which the requests are spread."""


@dataclass(frozen=True, slots=True)
class Request:
    """A batch on the wire, and when it is due."""

    due_s: float
    """After the load's start."""
    reports: int
    message: bytes


Trigger = tuple[str, str]
"""(device_id, report_id) of a report that an incident follows from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a load sends."""

    starts_at_ms: int
    """Wall time of its start, milliseconds since 1970 UTC; fix times count from here."""
    requests: list[Request]
    """In the order in which they are due."""
    triggers: dict[Trigger, float]
    """When each was due, seconds after the start."""


@dataclass(slots=True)
class Sent:
    """What came of a load on the side of those who report."""

    started: float = 0.0
    """Monotonic time of the start, as time.monotonic gives it."""
    late: int = 0
    """Requests that were sent more than 5 ms after they were due."""
    latest_s: float = 0.0
    """The most that one was sent after it was due."""
    accepted: int = 0
    """Reports that are durable in the log."""
    last_answer: float = 0.0
    """Monotonic time of the last answer."""
    answered_after_s: list[float] = field(default_factory=list)
    """For each request: from the moment when it was due to its answer."""
    refused: list[str] = field(default_factory=list)

    @property
    def took_s(self) -> float:
        """From the start to the last answer."""
        return self.last_answer - self.started


def prepare(
    name: str, shape: Shape, seconds: float, background: Sequence[Party], triggered: Sequence[Party], seed: int
) -> Plan:
    """Draws the moments of the requests, and puts the triggers at random among the reports.

    Requests come like those of many senders who don't know of each other: independent of one another, not in even steps. The
    background is of both parties of cases who stay far apart, in turn.
    """
    drawn = random.Random(seed)
    count = round(seconds * shape.reports_per_s / shape.batch)
    dues_s = sorted(drawn.uniform(0, seconds) for _ in range(count))
    wearers = dict(zip(drawn.sample(range(count * shape.batch), len(triggered)), triggered, strict=True))
    devices = [(one.tag_id, one.home, FAR_DEG) for one in background] + [
        (one.device_id, one.home, 0.0) for one in background
    ]
    drawn.shuffle(devices)
    starts_at_ms = time.time_ns() // 1_000_000 + 1000 + count * shape.batch * 1000 // _PREPARED_PER_S
    requests, triggers = [], {}
    for i, due_s in enumerate(dues_s):
        fix_time = times.to_timestamp(starts_at_ms + int(due_s * 1000))
        positions = []
        for n in range(i * shape.batch, (i + 1) * shape.batch):
            report_id = f"{name}-{n}"
            if (party := wearers.get(n)) is not None:
                device_id, (lat_deg, lon_deg), north_deg = party.tag_id, party.home, NEAR_DEG
                triggers[device_id, report_id] = due_s
            else:
                turn, which = divmod(n, len(devices))
                device_id, (lat_deg, lon_deg), north_deg = devices[which]
                north_deg += turn % 10 * STEP_DEG
            positions.append(
                ingest_pb2.Position(
                    device_id=device_id,
                    report_id=report_id,
                    fix_time=fix_time,
                    lat_deg=lat_deg + north_deg,
                    lon_deg=lon_deg,
                    accuracy_m=10.0,
                )
            )
        message = ingest_pb2.ReportRequest(batch=i, positions=positions).SerializeToString()
        requests.append(Request(due_s, shape.batch, message))
    return Plan(starts_at_ms, requests, triggers)


async def send(clients: Clients, plan: Plan, streams: int) -> Sent:
    """Sends each request when it is due and returns when all are answered. Raises CommandFailed where they aren't."""
    wait_s = plan.starts_at_ms / 1000 - time.time()
    if wait_s < 0:
        raise CommandFailed("this machine is too busy: the load wasn't prepared when it was due to start")
    sent = Sent(started=time.monotonic() + wait_s)
    async with rpc.channel(clients.mesh.addresses["ingest"]) as channel:
        # Messages are made beforehand; while the load runs they only pass through.
        method: Any = channel.stream_stream(_METHOD, None, ingest_pb2.ReportResponse.FromString)
        work = []
        for i in range(streams):
            call = method(metadata=clients.identity(VENDOR))
            work += [_write(call, plan.requests[i::streams], sent), _read(call, plan.requests, sent)]
        try:
            async with asyncio.timeout(wait_s + plan.requests[-1].due_s + ANSWERED_WITHIN_S):
                await asyncio.gather(*work)
        except TimeoutError:
            missing = sum(one.reports for one in plan.requests) - sent.accepted
            raise CommandFailed(
                f"{missing} reports weren't answered {ANSWERED_WITHIN_S:.0f} s after the last"
            ) from None
    return sent


async def _write(call: Any, requests: Sequence[Request], sent: Sent) -> None:
    for request in requests:
        due = sent.started + request.due_s
        wait_s = due - time.monotonic()
        if wait_s > 0:
            await asyncio.sleep(wait_s)
        late_s = time.monotonic() - due
        sent.late += late_s > LATE_S
        sent.latest_s = max(sent.latest_s, late_s)
        await call.write(request.message)
    await call.done_writing()


async def _read(call: Any, requests: Sequence[Request], sent: Sent) -> None:
    async for answer in call:
        sent.last_answer = time.monotonic()
        sent.answered_after_s.append(sent.last_answer - sent.started - requests[answer.batch].due_s)
        sent.accepted += len(answer.outcomes) - len(answer.refusals)
        sent.refused += [f"{one.field}: {one.reason}" for one in answer.refusals]
