"""The load of a benchmark: who reports what, and which of the reports an incident follows from."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.mesh.population import Party
from services.cli.failure import CommandFailed
from services.cli.simulate import load_generator
from services.cli.simulate.load_generator import DueRequest, LoadOutcome
from services.cli.stack.mesh import Metadata
from services.common import times
from services.common.rpc import server
from tandem.ingest.v1 import ingest_pb2

FAR_DEG = 0.2
"""Between a wearer and the protected person of a case that nothing happens in, degrees of latitude: 22 km."""
NEAR_DEG = 0.0005
"""The same in a case that is triggered: 55 m."""
STEP_DEG = 1e-5
"""From report to report, degrees: 1 m."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How reports come."""

    name: str
    reports_per_s: int
    batch: int
    """Reports in each request."""
    streams: int
    """Streams over which the requests are spread."""


Trigger = tuple[str, str]
"""(device_id, report_id) of a report that an incident follows from."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a load sends."""

    starts_at_ms: int
    """Wall time of its start, milliseconds since 1970 UTC; fix times count from here."""
    requests: list[DueRequest]
    """In the order in which they are due."""
    triggers: dict[Trigger, float]
    """When each was due, seconds after the start."""


def prepare(
    name: str, shape: Shape, seconds: float, background: Sequence[Party], triggered: Sequence[Party], seed: int
) -> Plan:
    """Draws the moments of the requests, and puts the triggers at random among the reports.

    The background is of both parties of cases who stay far apart, in turn.
    """
    drawn = random.Random(seed)
    count = round(seconds * shape.reports_per_s / shape.batch)
    dues_s = load_generator.moments_s(drawn, count, seconds)
    wearers = dict(zip(drawn.sample(range(count * shape.batch), len(triggered)), triggered, strict=True))
    devices = [(one.tag_id, one.home, FAR_DEG) for one in background] + [
        (one.device_id, one.home, 0.0) for one in background
    ]
    drawn.shuffle(devices)
    starts_at_ms = load_generator.starts_at_ms(count * shape.batch)
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
        requests.append(DueRequest(due_s, shape.batch, message))
    return Plan(starts_at_ms, requests, triggers)


async def send(address: str, identity: Metadata, plan: Plan, streams: int) -> LoadOutcome:
    """Sends each request when it is due and returns when all are answered. Raises CommandFailed where they aren't."""
    sent = await load_generator.send(server.channel(address), identity, plan.starts_at_ms, plan.requests, streams)
    if sent.unanswered:
        raise CommandFailed(
            f"{sent.unanswered} reports weren't answered {load_generator.ANSWERED_WITHIN_S:.0f} s after the last was due"
        )
    return sent
