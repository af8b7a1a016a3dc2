"""Devices of a benchmark that report as usual, each every 15 s, and the single reports that trigger incidents."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from bench.mesh.desks import running
from bench.mesh.load import NEAR_DEG, STEP_DEG, Trigger
from bench.mesh.population import Party
from services.client.actors import HeadEnd, Report
from services.client.mesh import Clients
from services.common import times
from services.common.failure import CommandFailed
from tandem.ingest.v1 import ingest_pb2

BATCH = 100
"""Maximum number of reports in a request."""
INTERVAL_S = 15
"""Time between two reports of a device, seconds."""


class Devices:
    """Tags and phones of some cases.

    A protected person's phone reports from her home. A wearer's tag is silent until it triggers an incident; from then on it reports,
    too, from the same place.
    """

    def __init__(self, head_end: HeadEnd, cases: Sequence[Party], clients: Clients) -> None:
        self._head_end = head_end
        self._clock = clients.clock
        self._slots: list[list[tuple[str, tuple[float, float]]]] = [[] for _ in range(INTERVAL_S)]
        for case in cases:
            self._add(case.number, case.device_id, case.home)
        self._numbers = itertools.count(1)
        self.reporting = True
        """Whether the devices report. Triggers are sent in any case."""

    async def report(self) -> None:
        """Reports each second what is due, until cancelled."""
        due_s = time.monotonic()
        for turn in itertools.count():
            due_s += 1.0
            await asyncio.sleep(max(due_s - time.monotonic(), 0.0))
            due = self._slots[turn % INTERVAL_S]
            if self.reporting and due:
                step_deg = turn // INTERVAL_S % 10 * STEP_DEG
                await self._send([self._position(id_, (lat + step_deg, lon)) for id_, (lat, lon) in due])

    async def trigger(self, party: Party) -> Trigger:
        """Reports a wearer for the first time, 55 m from the protected person. Returns when the report is durable."""
        place = party.home[0] + NEAR_DEG, party.home[1]
        position = self._position(party.tag_id, place)
        self._add(party.number, party.tag_id, place)
        await self._send([position])
        return position.device_id, position.report_id

    def _add(self, number: int, device_id: str, place: tuple[float, float]) -> None:
        self._slots[number % INTERVAL_S].append((device_id, place))

    def _position(self, device_id: str, place: tuple[float, float]) -> ingest_pb2.Position:
        return ingest_pb2.Position(
            device_id=device_id,
            report_id=f"report-{next(self._numbers)}",
            fix_time=times.to_timestamp(self._clock.now_ms()),
            lat_deg=place[0],
            lon_deg=place[1],
            accuracy_m=10.0,
        )

    async def _send(self, positions: Sequence[Report]) -> None:
        for first in range(0, len(positions), BATCH):
            refused = await self._head_end.carry(positions[first : first + BATCH])
            if refused:
                raise CommandFailed(f"{len(refused)} reports refused: {refused[0].field} {refused[0].reason}")


@asynccontextmanager
async def reporting(clients: Clients, cases: Sequence[Party]) -> AsyncIterator[Devices]:
    """The devices of these cases, which report in the background."""
    async with HeadEnd(clients) as head_end:
        devices = Devices(head_end, cases, clients)
        async with running(devices.report()):
            yield devices
