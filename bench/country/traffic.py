"""Positions of a country: tags and phones that report every 15 s in batches of 100, and wearers who trigger incidents."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence

from bench.ingestion.reports import ACCURACY_M, BATCH, batch_field, report_id, shared_fields
from bench.mesh.crowd import REPORT_INTERVAL_MS
from bench.mesh.load import FAR_DEG, NEAR_DEG, STEP_DEG, Plan
from bench.mesh.population import Party
from services.client import load_generator
from services.client.load_generator import DueRequest
from tandem.ingest.v1 import ingest_pb2

ALERTS_A_DAY = 0.91
"""Alerts of a wearer in a day: 942,805 in 7 months of 2021 in Korea, and the same as 318 for an operator (Ministry of Justice)."""
DAY_S, MINUTE_S = 86_400, 60
STEPS = (0, 1, 2, 1)
"""Places of a device in turn, metres to the north."""


def incidents_per_s(wearers: int, alerts_a_day: float = ALERTS_A_DAY) -> float:
    """Incidents that begin each second, as if each alert of a country were one."""
    return wearers * alerts_a_day / DAY_S


def reserved(wearers: int, incidents_per_s: float, seconds: float) -> int:
    """Number of wearers who are kept for incidents: four standard deviations more than the expected number."""
    expected = incidents_per_s * seconds
    return min(round(expected + 4 * math.sqrt(expected) + 4), wearers)


class Traffic:
    """Source of the requests of each minute.

    The wearers of the first cases are silent until they trigger an incident, 55 m from the protected person, and report from there with
    all others from the next minute on.
    """

    def __init__(
        self, cases: Sequence[Party], seconds: float, *, alerts_a_day: float = ALERTS_A_DAY, seed: int = 1
    ) -> None:
        self._rng = random.Random(seed)
        self._rate_per_s = incidents_per_s(len(cases), alerts_a_day)
        kept = reserved(len(cases), self._rate_per_s, seconds)
        self._unused = iter(cases[:kept])
        self.devices = len(cases) * 2
        """Number of devices, of which the reserved wearers' tags are still silent."""
        self.burst = [(case.tag_id, (case.home[0] + FAR_DEG, case.home[1])) for case in cases[kept:]]
        """Tags that can come back from an hour offline, and their places."""
        moving = [(case.device_id, case.home) for case in cases] + self.burst
        self._rng.shuffle(moving)
        self._numbers = itertools.count(1)
        self._batches = itertools.count(1)
        groups = [moving[first : first + BATCH] for first in range(0, len(moving), BATCH)]
        self._per_minute = 1000 * MINUTE_S * len(groups) // REPORT_INTERVAL_MS
        self._turns = itertools.cycle([(len(group), _prepared(group, step)) for step in STEPS for group in groups])
        self._triggered: list[tuple[str, tuple[float, float]]] = []

    def minute(self, starts_at_ms: int) -> Plan:
        """Requests of one minute: batches at independent random moments, and the triggers among them."""
        due = [(due_s, *next(self._turns)) for due_s in load_generator.moments_s(self._rng, self._per_minute, MINUTE_S)]
        for turn in range(1000 * MINUTE_S // REPORT_INTERVAL_MS if self._triggered else 0):
            due_s = (turn + self._rng.random()) * REPORT_INTERVAL_MS / 1000
            due.append((due_s, len(self._triggered), _prepared(self._triggered, 0)))
        triggered: dict[float, str] = {}
        for due_s, case in zip(self._moments(), self._unused, strict=False):
            device = case.tag_id, (case.home[0] + NEAR_DEG, case.home[1])
            due.append((due_s, 1, _prepared([device], 0)))
            triggered[due_s] = case.tag_id
            self._triggered.append(device)
        requests, triggers = [], {}
        for due_s, size, pieces in sorted(due):
            id_ = report_id(next(self._numbers))
            shared = shared_fields(id_, int(starts_at_ms / 1000 + due_s))
            requests.append(DueRequest(due_s, size, batch_field(next(self._batches)) + shared.join(pieces)))
            if size == 1 and due_s in triggered:
                triggers[triggered[due_s], id_] = due_s
        return Plan(starts_at_ms, requests, triggers)

    def _moments(self) -> list[float]:
        """Moments of a Poisson process within a minute, seconds."""
        moments, at_s = [], self._rng.expovariate(self._rate_per_s)
        while at_s < MINUTE_S:
            moments.append(at_s)
            at_s += self._rng.expovariate(self._rate_per_s)
        return moments


def _prepared(group: Sequence[tuple[str, tuple[float, float]]], step: int) -> list[bytes]:
    """The reports of these devices, split where their shared fields belong."""
    placeholder = shared_fields(report_id(0), 1_790_000_000)
    positions = []
    for device_id, (lat_deg, lon_deg) in group:
        position = ingest_pb2.Position(
            device_id=device_id, lat_deg=lat_deg + step * STEP_DEG, lon_deg=lon_deg, accuracy_m=ACCURACY_M
        )
        position.MergeFromString(placeholder)
        positions.append(position)
    return ingest_pb2.ReportRequest(positions=positions).SerializeToString().split(placeholder)
