"""Load of a benchmark: the reports of all parties, and which of them trigger an incident."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from bench.mesh.population import Party
from services.client import load_generator
from services.client.load_generator import DueRequest, LoadOutcome
from services.common import times
from services.common.failure import CommandFailed
from services.common.rpc import server
from services.common.rpc.server import Metadata
from tandem.ingest.v1 import ingest_pb2

FAR_DEG = 0.2
"""Distance between wearer and protected person of a background case, degrees of latitude: 22 km."""
NEAR_DEG = 0.0005
"""Distance between wearer and protected person of a triggered case, degrees of latitude: 55 m."""
STEP_DEG = 1e-5
"""Movement from report to report, degrees: 1 m."""


@dataclass(frozen=True, slots=True)
class Shape:
    """Shape of a load: rate, batch size and number of streams."""

    name: str
    reports_per_s: int
    batch: int
    """Number of reports in each request."""
    streams: int
    """Number of streams over which the requests are spread."""


Trigger = tuple[str, str]
"""(device_id, report_id) of a report that triggers an incident."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All requests of a load, and its triggers."""

    starts_at_ms: int
    """Wall time of the start, milliseconds since 1970 UTC; fix times count from here."""
    requests: list[DueRequest]
    """Requests in the order in which they are due."""
    triggers: dict[Trigger, float]
    """Due time of each trigger, seconds after the start."""


def prepare(
    name: str,
    shape: Shape,
    seconds: float,
    *,
    background: Sequence[Party],
    triggered: Sequence[Party],
    seed: int,
    lead_s: float = 0.0,
) -> Plan:
    """Plans a load: draws the due times of the requests, and places the triggers at random among the reports.

    The other reports come from both parties of the background cases in turn, who stay far apart. The load begins `lead_s` seconds
    later than it is surely prepared.
    """
    rng = random.Random(seed)
    count = round(seconds * shape.reports_per_s / shape.batch)
    dues_s = load_generator.moments_s(rng, count, seconds)
    wearers = dict(zip(rng.sample(range(count * shape.batch), len(triggered)), triggered, strict=True))
    devices = [(party.tag_id, party.home, FAR_DEG) for party in background] + [
        (party.device_id, party.home, 0.0) for party in background
    ]
    rng.shuffle(devices)
    starts_at_ms = load_generator.starts_at_ms(count * shape.batch) + round(lead_s * 1000)
    requests, triggers = [], {}
    for i, due_s in enumerate(dues_s):
        fix_time = times.to_timestamp(starts_at_ms + int(due_s * 1000))
        positions = []
        for n in range(i * shape.batch, (i + 1) * shape.batch):
            report_id = f"{name}-{n}"
            if (party := wearers.get(n)) is not None:
                device_id = party.tag_id
                (lat_deg, lon_deg) = party.home
                north_deg = NEAR_DEG
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


def prepare_quiet(name: str, triggered: Sequence[Party], *, interval_s: float, seed: int) -> Plan:
    """Plans triggers alone, each a request of its own, one in each interval at a random moment of its first half."""
    rng = random.Random(seed)
    starts_at_ms = load_generator.starts_at_ms(len(triggered))
    requests, triggers = [], {}
    for n, party in enumerate(triggered):
        due_s = (n + rng.uniform(0, 0.5)) * interval_s
        position = ingest_pb2.Position(
            device_id=party.tag_id,
            report_id=f"{name}-{n}",
            fix_time=times.to_timestamp(starts_at_ms + int(due_s * 1000)),
            lat_deg=party.home[0] + NEAR_DEG,
            lon_deg=party.home[1],
            accuracy_m=10.0,
        )
        triggers[position.device_id, position.report_id] = due_s
        message = ingest_pb2.ReportRequest(batch=n, positions=[position]).SerializeToString()
        requests.append(DueRequest(due_s, 1, message))
    return Plan(starts_at_ms, requests, triggers)


async def send(address: str, identity: Metadata, plan: Plan, *, streams: int) -> LoadOutcome:
    """Sends each request when it is due, and returns when all are answered. Raises CommandFailed where an answer is missing."""
    sent = await load_generator.send(
        server.channel(address), identity, plan.starts_at_ms, requests=plan.requests, streams=streams
    )
    if sent.unanswered:
        raise CommandFailed(
            f"{sent.unanswered} reports weren't answered within {load_generator.ANSWERED_WITHIN_S:.0f} s after the last was due"
        )
    return sent
