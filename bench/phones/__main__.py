"""`python -m bench.phones`: time from a report to her phone, and from an offer to a unit's screen, at a country's load.

A whole mesh with the reports of all wearers and protected persons, as for bench.pixels. The protected persons of the incidents have a
phone besides: ten of them a page in Chromium with software rendering, the others a client that waits for notices as the app does.
Units of the police have pages in Chromium. Desks answer and close the incidents. A report counts from the moment at which it was due
at ingest, an offer from the moment at which the leg made it, a notice and an offer on a screen from the moment after the frame that
painted it, all by the machine's clock. Exit code 1 where the p99 to her phone or screen exceeds 2 s, or that to a unit's screen 1 s.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Collection, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from bench import figures
from bench.country.command import on_a_mesh
from bench.country.minutes import idle_percent
from bench.country.run import Measuring
from bench.country.traffic import ALERTS_A_DAY, MINUTE_S, Traffic, incidents_per_s, reserved
from bench.figures import Figure
from bench.mesh import desks, population
from bench.mesh.desks import Answering
from bench.mesh.load import Trigger
from bench.mesh.offers import following
from bench.mesh.population import Party
from bench.mesh.running import populate, say
from bench.phones import pages
from bench.phones.records import records
from bench.phones.waiting import WaitingPhones
from services.client import mesh
from services.client.actors import DESKS, leg_steps
from services.client.mesh import Clients, MeshConnection
from services.common import times
from tandem.dispatch.v1 import dispatch_pb2
from tests.browser.driver import Browser, browser

HER_TARGET_MS, UNIT_TARGET_MS = 2_000.0, 1_000.0
HER_PAGES = 10
"""Protected persons whose phone is a page: every other one of the first incidents. One address may try 20 codes at once."""
UNITS = tuple(f"car-{number}" for number in range(1, 7))
"""Units of the police. Each incident keeps one busy for some 7 s, which the bench's desks need."""
PAINTED_WITHIN_S = 30.0
"""Maximum time after the last incident until its pixels; then it counts as never painted."""
K = TypeVar("K", int, str)


@dataclass(frozen=True, slots=True)
class PhoneTimes:
    """Results of a run. Times are milliseconds since 1970 UTC."""

    reported_ms: Mapping[int, float]
    """When the report that triggered an incident was due, by the number of its case."""
    arrived_ms: Mapping[int, float]
    """When the first notice arrived at a phone without a browser, by the number of its case."""
    her_painted_ms: Mapping[int, float]
    """When the first notice was painted, by the number of its case."""
    on_pages: Collection[int]
    """Numbers of the cases whose phone is a page."""
    offered_ms: Mapping[str, float]
    """When each first offer to a unit was made, by assignment."""
    unit_painted_ms: Mapping[str, float]
    """When each assignment was first painted on a unit's page."""
    idle_percents: Sequence[float]
    """Idle share of the machine in each minute."""

    def figures(self) -> list[Figure]:
        """The results as figures with their targets."""
        at_phones = _latencies({n: at for n, at in self.reported_ms.items() if n not in self.on_pages}, self.arrived_ms)
        on_screens = _latencies(
            {n: at for n, at in self.reported_ms.items() if n in self.on_pages}, self.her_painted_ms
        )
        at_units = _latencies(self.offered_ms, self.unit_painted_ms)
        return [
            Figure("incidents", len(self.reported_ms), "incidents"),
            Figure("machine idle, median", figures.percentile(list(self.idle_percents), 50), "%"),
            *_with_target("report to her phone", at_phones, HER_TARGET_MS),
            *_with_target("report to her screen", on_screens, HER_TARGET_MS),
            *_with_target("offer to the unit's screen", at_units, UNIT_TARGET_MS),
        ]


def _latencies(begun_ms: Mapping[K, float], ended_ms: Mapping[K, float]) -> list[float]:
    """Latencies in milliseconds; infinite for one that didn't end, because omitting it would improve the percentiles."""
    return [ended_ms.get(key, math.inf) - at_ms for key, at_ms in begun_ms.items()]


def _with_target(name: str, latencies_ms: list[float], target_ms: float) -> list[Figure]:
    p50, p99 = (figures.percentile(latencies_ms, share) if latencies_ms else math.nan for share in (50, 99))
    return [
        Figure(f"{name}, number", len(latencies_ms), ""),
        Figure(f"{name}, p50", p50, "ms"),
        figures.at_most(f"{name}, p99", p99, "ms", target=target_ms),
    ]


async def follow_offers(clients: Clients, offered_ms: dict[str, float]) -> None:
    """Notes when each assignment of the police was first offered to one of the units, as their desk sees it, until cancelled."""
    async for message in leg_steps(clients.legs["police"].dispatch, clients.identity(DESKS["police"])):
        assignment = message.step.assignment
        if assignment.state == dispatch_pb2.OFFERED and assignment.choice.unit_id in UNITS:
            offered_ms.setdefault(assignment.assignment_id, times.from_timestamp(assignment.offered_at))


async def run(
    folder: Path, running: MeshConnection, up_pid: int, *, wearers: int, minutes: int, rate: float
) -> PhoneTimes:
    """Runs the traffic with all phones. Raises CommandFailed if a report or a phone is refused."""
    cases = population.actors(wearers)
    traffic = await asyncio.to_thread(Traffic, cases, minutes * MINUTE_S, alerts_a_day=rate)
    concerned = cases[: reserved(wearers, incidents_per_s(wearers, rate), minutes * MINUTE_S)]
    offered_ms: dict[str, float] = {}
    async with AsyncExitStack() as stack:
        # Start the browser first, because a process with gRPC's threads can't be forked safely.
        chromium = await stack.enter_async_context(browser())
        clients = await stack.enter_async_context(mesh.connect(running))
        bus = await stack.enter_async_context(running.nats.bus_as("dispatch-probation"))
        say(f"registering {len(cases)} joint cases")
        await populate(clients, bus, cases)
        put = await stack.enter_async_context(records(clients))
        waiting = WaitingPhones(running.field_url)
        say(
            f"connecting {len(concerned)} phones, {min(HER_PAGES, len(concerned))} of them in Chromium, and {len(UNITS)} units"
        )
        with_page = concerned[: 2 * HER_PAGES : 2]
        for case in with_page:
            await pages.open_her_app(chromium, running.field_url, case, code=await put.code(case))
        following_notices = [
            waiting.follow(case, await stack.enter_async_context(waiting.connected(case, await put.code(case))))
            for case in concerned
            if case not in with_page
        ]
        await stack.enter_async_context(desks.running(*following_notices, follow_offers(clients, offered_ms)))
        for unit_id, code, case in zip(UNITS, await put.links(UNITS), concerned, strict=False):
            await pages.open_unit(chromium, running.field_url, unit_id, code=code, at=case.home)
        offers = await stack.enter_async_context(following(bus))
        working = await stack.enter_async_context(desks.at_work(clients))
        working.answering = Answering.CLOSE
        pids = {**running.pids, "tandem up": up_pid, "bench": os.getpid()}
        measuring = Measuring(traffic, clients, pids=pids, folder=folder)
        await measuring.measure(minutes, lambda _: "")
        await offers.until_all(measuring.triggers)
        await working.arrivals.until_all(measuring.triggers)
        reported_ms = _by_case(measuring.due_ms)
        on_pages = {case.number for case in with_page} & reported_ms.keys()
        hers, units = await _painted(chromium, sorted(on_pages), offered_ms)
        return PhoneTimes(
            reported_ms=reported_ms,
            arrived_ms=waiting.notified_ms,
            her_painted_ms=hers,
            on_pages=on_pages,
            offered_ms=offered_ms,
            unit_painted_ms=units,
            idle_percents=[idle_percent(minute.used) for minute in measuring.minutes(offers, working.arrivals)],
        )


def _by_case(due_ms: Mapping[Trigger, float]) -> dict[int, float]:
    """When the trigger of each case was due, by the number of the case."""
    return {int(tag_id.removeprefix("tag-")): at_ms for (tag_id, _), at_ms in due_ms.items()}


async def _painted(
    chromium: Browser, numbers: Sequence[int], offered_ms: Mapping[str, float]
) -> tuple[dict[int, float], dict[str, float]]:
    """What the pages have painted, once they have painted all, or after PAINTED_WITHIN_S: first notices, and assignments."""
    until_s = asyncio.get_running_loop().time() + PAINTED_WITHIN_S
    while True:
        hers = {n: await pages.painted_on(chromium, pages.her_page(Party(n))) for n in numbers}
        first = {n: min(painted.values()) for n, painted in hers.items() if painted}
        units: dict[str, float] = {}
        for unit_id in UNITS:
            for id_, at_ms in (await pages.painted_on(chromium, unit_id)).items():
                units[id_] = min(at_ms, units.get(id_, math.inf))
        is_complete = len(first) == len(numbers) and offered_ms.keys() <= units.keys()
        if is_complete or asyncio.get_running_loop().time() > until_s:
            return first, units
        await asyncio.sleep(1)


def main(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    minutes: Annotated[int, typer.Option(help="Minutes of traffic.", min=1)] = 5,
    wearers: Annotated[int, typer.Option(help="Number of wearers, and of protected persons.", min=10)] = 20_000,
    *,
    alerts_a_day: Annotated[float, typer.Option(help="Incidents of a wearer in a day.", min=0.001)] = ALERTS_A_DAY,
) -> None:
    """Measure the time from a report to her phone, and from an offer to a unit's screen, at a country's load."""
    on_a_mesh(partial(run, wearers=wearers, minutes=minutes, rate=alerts_a_day), as_json=as_json)


if __name__ == "__main__":
    typer.run(main)
