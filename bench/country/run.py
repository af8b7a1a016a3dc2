"""A country on one mesh: minutes of traffic, with a reconnect burst in the middle and a renewal of all cases after it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from bench.country import split
from bench.country.minutes import Minute, idle_percent
from bench.country.split import Comparison
from bench.country.traffic import MINUTE_S, Traffic
from bench.ingestion import burst
from bench.mesh import desks, load, machine, population
from bench.mesh.desks import Answering
from bench.mesh.load import Plan, Trigger
from bench.mesh.machine import Usage
from bench.mesh.offers import Arrivals, Offers, following
from bench.mesh.population import Party
from bench.mesh.running import populate, say
from services.client import mesh
from services.client.actors import VENDOR
from services.client.load_generator import LoadOutcome
from services.client.mesh import Clients, MeshConnection
from services.common.failure import CommandFailed
from services.geofence.domain.state import State

STREAMS = 4
BURST_DEVICES = 2_000
"""Tags that come back together from an hour offline, at most a tenth of all."""
PREPARED_S = 5.0
"""Time before a minute in which its requests are prepared, seconds."""
SPLIT_PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Country:
    """Results of one mesh."""

    registered_s: float
    minutes: Sequence[Minute]
    lost: int
    """Incidents without an offer of some leg."""
    renewed_s: float
    """Time in which all orders were prolonged, seconds."""
    burst_s: float
    """Time until the hour of all tags that came back was durable, seconds."""
    burst_reports: int
    compared: Comparison | None
    """The stored log folded whole and split; None for a mesh of several partitions."""


class Side:
    """Work beside the traffic: at most one piece of it begins in each minute."""

    def __init__(self, clients: Clients, traffic: Traffic, cases: Sequence[Party], *, minutes: int) -> None:
        self._clients = clients
        self._traffic = traffic
        self._cases = cases
        self._begins = {minutes // 2: self._burst, minutes // 2 + max(minutes // 6, 1): self._renewal}
        self._tasks: list[asyncio.Task[None]] = []
        self.renewed_s = self.burst_s = 0.0
        self.burst_reports = 0

    def begin(self, minute: int) -> str:
        """Begins what belongs to a minute, counted from 0; returns what it is."""
        work = self._begins.get(minute)
        if work is None:
            return ""
        self._tasks.append(asyncio.create_task(work()))
        return "reconnect burst" if work == self._burst else "renewal of all cases"

    async def finished(self) -> None:
        """Returns when all of it is done. Raises its errors."""
        await asyncio.gather(*self._tasks)

    async def _burst(self) -> None:
        began_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        count = min(BURST_DEVICES, len(self._traffic.burst) // 10)
        hours = await asyncio.to_thread(
            lambda: [
                burst.hour_of(number, device_id, place, now_ms=now_ms)
                for number, (device_id, place) in enumerate(self._traffic.burst[:count])
            ]
        )
        address = self._clients.mesh.addresses["ingest"]
        self.burst_reports = await burst.send(address, self._clients.identity(VENDOR), hours)
        self.burst_s = time.monotonic() - began_s

    async def _renewal(self) -> None:
        self.renewed_s = await population.renew(self._clients, self._cases)


async def run(
    folder: Path, running: MeshConnection, up_pid: int, *, wearers: int, minutes: int, alerts_a_day: float
) -> Country:
    """Runs a country on a mesh. Raises CommandFailed if a report is refused."""
    cases = population.actors(wearers)
    traffic = await asyncio.to_thread(Traffic, cases, minutes * MINUTE_S, alerts_a_day=alerts_a_day)
    async with AsyncExitStack() as stack:
        clients = await stack.enter_async_context(mesh.connect(running))
        bus = await stack.enter_async_context(running.nats.bus_as("dispatch-probation"))
        say(f"registering {len(cases)} joint cases")
        registered_s = await populate(clients, bus, cases)
        say(f"  took {registered_s:.1f} s, {5 * len(cases) / registered_s:.0f} records/s")
        offers = await stack.enter_async_context(following(bus))
        working = await stack.enter_async_context(desks.at_work(clients))
        working.answering = Answering.CLOSE
        side = Side(clients, traffic, cases, minutes=minutes)
        pids = {**running.pids, "tandem up": up_pid, "bench": os.getpid()}
        measuring = Measuring(traffic, clients, pids=pids, folder=folder)
        await measuring.measure(minutes, side.begin)
        await side.finished()
        triggers = measuring.triggers
        await offers.until_all(triggers)
        await working.arrivals.until_all(triggers)
        measured = measuring.minutes(offers, working.arrivals)
        compared = None
        if running.partitions == 1:
            say(f"folding the stored log whole, and split into {SPLIT_PARTITIONS} partitions")
            async with running.nats.bus_as("explain") as reading:
                entries, empty = await split.read(reading), await split.empty_state(reading)
            compared = await asyncio.to_thread(compare, entries, empty)
    return Country(
        registered_s=registered_s,
        minutes=measured,
        lost=offers.lost(triggers),
        renewed_s=side.renewed_s,
        burst_s=side.burst_s,
        burst_reports=side.burst_reports,
        compared=compared,
    )


def compare(entries: Sequence[split.StoredEntry], empty: State) -> Comparison:
    """Folds a log whole and split, one partition after another, and compares the alerts."""

    def fresh(partition: int) -> State:
        return State(partition, empty.log_id, clock_rate=empty.clock_rate, clock_anchor_ms=empty.clock_anchor_ms)

    parts = split.split(entries, SPLIT_PARTITIONS)
    return split.compare(
        split.folded(entries, fresh(0)), [split.folded(part, fresh(number)) for number, part in enumerate(parts)]
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What was read at the end of a minute."""

    plan: Plan
    sent: LoadOutcome
    used: Usage
    memory_mib: Mapping[str, float]
    disk_mib: float
    event: str


class Measuring:
    """Sends the traffic minute by minute, and measures each."""

    def __init__(self, traffic: Traffic, clients: Clients, *, pids: Mapping[str, int], folder: Path) -> None:
        self._traffic = traffic
        self._clients = clients
        self._pids = pids
        self._folder = folder
        self._readings: list[_Reading] = []

    @property
    def triggers(self) -> dict[Trigger, float]:
        """All triggers, and when each was due in its minute."""
        return {trigger: due_s for reading in self._readings for trigger, due_s in reading.plan.triggers.items()}

    @property
    def due_ms(self) -> dict[Trigger, float]:
        """When each trigger was due, milliseconds since 1970 UTC."""
        return {
            trigger: reading.plan.starts_at_ms + 1000 * due_s
            for reading in self._readings
            for trigger, due_s in reading.plan.triggers.items()
        }

    async def measure(self, count: int, begin: Callable[[int], str]) -> None:
        """Runs this many minutes. The requests of the next one are prepared and queued while the present one goes on."""
        plan, sending = await self._prepared(time.time_ns() // 1_000_000 + round(2000 * PREPARED_S))
        await _until(plan.starts_at_ms)
        before = machine.usage(self._pids)
        for number in range(count):
            event, ends_at_ms = begin(number), plan.starts_at_ms + 1000 * MINUTE_S
            await _until(ends_at_ms - round(1000 * PREPARED_S))
            following_one = await self._prepared(ends_at_ms) if number + 1 < count else None
            await _until(ends_at_ms)
            after = machine.usage(self._pids)
            self._readings.append(
                _Reading(
                    plan=plan,
                    sent=await sending,
                    used=after.since(before),
                    memory_mib={name: machine.resident_mib(pid) or 0.0 for name, pid in self._pids.items()},
                    disk_mib=await asyncio.to_thread(machine.disk_mib, self._folder),
                    event=event,
                )
            )
            before = after
            self._say(number + 1)
            if following_one:
                plan, sending = following_one

    def minutes(self, offers: Offers, at_desks: Arrivals) -> list[Minute]:
        """Figures of all minutes."""
        return [
            Minute(
                used=reading.used,
                in_incidents_ms=offers.latencies_ms(reading.sent.started, reading.plan.triggers)["both"],
                at_desks_ms=at_desks.latencies_ms(reading.sent.started, reading.plan.triggers)["both"],
                memory_mib=reading.memory_mib,
                disk_mib=reading.disk_mib,
                event=reading.event,
            )
            for reading in self._readings
        ]

    async def _prepared(self, starts_at_ms: int) -> tuple[Plan, asyncio.Task[LoadOutcome]]:
        """The requests of a minute, and the task that sends them when they are due."""
        plan = await asyncio.to_thread(self._traffic.minute, starts_at_ms)
        address, identity = self._clients.mesh.addresses["ingest"], self._clients.identity(VENDOR)
        return plan, asyncio.create_task(load.send(address, identity, plan, streams=STREAMS))

    def _say(self, number: int) -> None:
        reading = self._readings[-1]
        if reading.sent.refused:
            raise CommandFailed(f"reports were refused: {reading.sent.refused.most_common(3)}")
        say(
            f"  minute {number}: {reading.sent.accepted} reports, {len(reading.plan.triggers)} incidents,"
            f" {idle_percent(reading.used):.0f} % idle, {reading.disk_mib:,.0f} MiB of disk {reading.event}"
        )


async def _until(wall_ms: int) -> None:
    await asyncio.sleep(max(wall_ms / 1000 - time.time(), 0.0))
