"""`python -m bench.pixels`: time from a stored alert to the pixels of both desks, in browsers, at a country's load.

A whole mesh with the reports of 20,000 wearers and 20,000 protected persons, as for bench.country, and the live pages of both desks in
Chromium with software rendering on the same machine. Desks answer and close the incidents. An alert counts from the moment at which the
server stored it in ALERTS; its pixels from the moment after the frame in which the page painted the incident's row with its demand to
respond, by the browser's clock, which is the machine's. `both` is the later of the two desks. Exit code 1 where its p95 exceeds 500 ms,
or the p95 of the pages' long tasks exceeds 200 ms.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bench import figures
from bench.country.command import on_a_mesh
from bench.country.minutes import Minute, idle_percent
from bench.country.run import Measuring
from bench.country.traffic import ALERTS_A_DAY, MINUTE_S, Traffic
from bench.figures import Figure
from bench.mesh import desks, population
from bench.mesh.desks import Answering
from bench.mesh.offers import following
from bench.mesh.running import populate, say
from bench.pixels import browsers
from bench.pixels.browsers import DESKS, Seen
from services.client import mesh
from services.client.mesh import MeshConnection
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from tandem.common.v1 import alert_pb2, geometry_pb2
from tests.browser.driver import Browser, browser

TARGET_MS, LONG_TASK_P95_MS = 500.0, 200.0
DRAWN_WITHIN_S = 30.0
"""Maximum time after the last incident until its pixels; then it counts as never drawn."""


@dataclass(frozen=True, slots=True)
class Pixels:
    """Results of a run."""

    alerts_ms: Mapping[str, float]
    """When the first demand to respond of each incident was stored, milliseconds since 1970 UTC."""
    seen: Mapping[str, Seen]
    """What each desk's page has shown."""
    minutes: tuple[Minute, ...]

    def latencies_ms(self, desk: str) -> list[float]:
        """Latencies of a desk's page; infinite for an incident that was never drawn."""
        drawn = self.seen[desk].drawn_ms
        return [drawn.get(incident, math.inf) - at_ms for incident, at_ms in self.alerts_ms.items()]

    def figures(self) -> list[Figure]:
        """The results as figures with their targets."""
        by_desk = {desk: self.latencies_ms(desk) for desk in DESKS}
        both = [max(pair) for pair in zip(*by_desk.values(), strict=True)]
        tasks = [task for seen in self.seen.values() for task in seen.long_tasks_ms]
        at_desks = [ms for minute in self.minutes for ms in minute.at_desks_ms]
        return [
            Figure("incidents", len(both), "incidents"),
            Figure("machine idle, median", figures.percentile([idle_percent(m.used) for m in self.minutes], 50), "%"),
            Figure("trigger to both desks' streams, p95", figures.percentile(at_desks, 95), "ms"),
            *(Figure(f"alert to pixels, {desk}, p50", figures.percentile(by_desk[desk], 50), "ms") for desk in DESKS),
            *(Figure(f"alert to pixels, {desk}, p95", figures.percentile(by_desk[desk], 95), "ms") for desk in DESKS),
            Figure("alert to pixels, both, p50", figures.percentile(both, 50), "ms"),
            figures.at_most("alert to pixels, both, p95", figures.percentile(both, 95), "ms", target=TARGET_MS),
            Figure("alert to pixels, both, max", max(both, default=math.inf), "ms"),
            Figure("long tasks (over 50 ms)", len(tasks), "tasks"),
            figures.at_most(
                "long tasks, p95", figures.percentile(tasks, 95) if tasks else 0.0, "ms", target=LONG_TASK_P95_MS
            ),
            *(Figure(f"heap, {desk}", self.seen[desk].heap_mb, "MB") for desk in DESKS),
        ]


async def follow_alerts(bus: Bus, alerts_ms: dict[str, float]) -> None:
    """Notes when the first demand to respond of each incident was stored, until cancelled."""
    async for messages in pull.read(bus, flow.ALERTS.name, 1):
        for message in messages:
            alert = alert_pb2.Alert.FromString(message.data)
            if alert.demand == geometry_pb2.RESPOND and alert.incident_id:
                alerts_ms.setdefault(alert.incident_id, message.stamp_us / 1000)


async def run(folder: Path, running: MeshConnection, up_pid: int, *, wearers: int, minutes: int, rate: float) -> Pixels:
    """Runs the traffic with both pages open. Raises CommandFailed if a report is refused."""
    cases = population.actors(wearers)
    traffic = await asyncio.to_thread(Traffic, cases, minutes * MINUTE_S, alerts_a_day=rate)
    alerts_ms: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        # Start the browser first, because a process with gRPC's threads can't be forked safely.
        chromium = await stack.enter_async_context(browser())
        clients = await stack.enter_async_context(mesh.connect(running))
        bus = await stack.enter_async_context(running.nats.bus_as("dispatch-probation"))
        say(f"registering {len(cases)} joint cases")
        await populate(clients, bus, cases)
        offers = await stack.enter_async_context(following(bus))
        working = await stack.enter_async_context(desks.at_work(clients))
        working.answering = Answering.CLOSE
        await stack.enter_async_context(desks.running(follow_alerts(bus, alerts_ms)))
        await browsers.open_desks(chromium, running.console_url)
        pids = {**running.pids, "tandem up": up_pid, "bench": os.getpid()}
        measuring = Measuring(traffic, clients, pids=pids, folder=folder)
        await measuring.measure(minutes, lambda _: "")
        await offers.until_all(measuring.triggers)
        await working.arrivals.until_all(measuring.triggers)
        seen = await _drawn(chromium, alerts_ms)
        return Pixels(alerts_ms, seen, tuple(measuring.minutes(offers, working.arrivals)))


async def _drawn(chromium: Browser, alerts_ms: Mapping[str, float]) -> dict[str, Seen]:
    """What the pages have shown, once they show each incident or after DRAWN_WITHIN_S."""
    until_s = asyncio.get_running_loop().time() + DRAWN_WITHIN_S
    while True:
        seen = {desk: await browsers.seen_by(chromium, desk) for desk in DESKS}
        is_complete = all(alerts_ms.keys() <= each.drawn_ms.keys() for each in seen.values())
        if is_complete or asyncio.get_running_loop().time() > until_s:
            return seen
        await asyncio.sleep(1)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    minutes: Annotated[int, typer.Option(help="Minutes of traffic.", min=1)] = 5,
    wearers: Annotated[int, typer.Option(help="Number of wearers, and of protected persons.", min=10)] = 20_000,
    *,
    alerts_a_day: Annotated[float, typer.Option(help="Incidents of a wearer in a day.", min=0.001)] = ALERTS_A_DAY,
) -> None:
    """Measure the time from an alert to the pixels of both desks at a country's load."""
    on_a_mesh(partial(run, wearers=wearers, minutes=minutes, rate=alerts_a_day), as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
