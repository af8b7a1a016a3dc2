"""Police leg and desk are down: probation and warning continue, probation's desk sees the absence, and police catches up later."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from bench.figures import percentile
from services.common.messaging.bus import Bus
from services.dispatch.domain.assignment import assignment_id
from services.dispatch.domain.leg import Leg
from tandem.common.v1 import alert_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import alert, client, publish
from tests.support.dispatch.legs import Answering, LegMesh, running_legs

CHECK_INTERVAL_S, MAX_CHECKS = 0.01, 3000
SUBJECTS = {"probation": "w1", "police": "p1", "warning": "p1"}


def is_ignored(key: str) -> bool:
    return False


@asynccontextmanager
async def answering(mesh: LegMesh, *legs: str) -> AsyncIterator[dict[str, Answering]]:
    """Runs the desks of some legs, which answer every offer."""
    desks = {leg: Answering(leg, is_ignored) for leg in legs}
    tasks = [asyncio.create_task(desk.run(mesh.settings[leg])) for leg, desk in desks.items()]
    try:
        yield desks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    """Waits for a condition. It counts checks instead of time, so that a pause of the machine fails no test."""
    for _ in range(MAX_CHECKS):
        if condition():
            return
        await asyncio.sleep(CHECK_INTERVAL_S)
    raise AssertionError(f"the condition isn't met after {MAX_CHECKS} checks")


async def until_seen(desk: Answering, incident_ids: Iterable[str]) -> None:
    """Returns once the desk has the offers of these incidents."""
    wanted = {assignment_id(incident_id, Leg(desk.leg), SUBJECTS[desk.leg]) for incident_id in incident_ids}
    await until(lambda: wanted <= desk.seen.keys())


async def open_some(
    bus: Bus, desks: dict[str, Answering], first: int, count: int, interval_s: float
) -> dict[str, list[float]]:
    """Opens incidents one by one; returns the time from each alert to the desk by leg, milliseconds."""
    loop, took_ms = asyncio.get_running_loop(), {leg: list[float]() for leg in desks}
    for n in range(first, first + count):
        incident_id, began_s = f"incident-{n}", loop.time()
        await publish(bus, alert(n, incident=incident_id))
        for leg, desk in desks.items():
            await until_seen(desk, [incident_id])
            id_ = assignment_id(incident_id, Leg(leg), SUBJECTS[leg])
            took_ms[leg].append((desk.seen[id_] - began_s) * 1000)
        await asyncio.sleep(max(0.0, interval_s - (loop.time() - began_s)))
    return took_ms


async def until_absent(mesh: LegMesh, incidents: int) -> None:
    """Waits until the metrics of probation's leg count police as absent in this number of incidents."""
    url = f"http://127.0.0.1:{mesh.settings['probation'].metrics_port}/metrics"
    metric = f'tandem_dispatch_leg_absent{{absent="police",leg="probation"}} {float(incidents)}\n'
    async with aiohttp.ClientSession() as session:
        for _ in range(MAX_CHECKS // 5):
            async with session.get(url) as answer:
                if metric in await answer.text():
                    return
            await asyncio.sleep(5 * CHECK_INTERVAL_S)
    raise AssertionError(f"probation's metrics don't show: {metric}")


async def play(mesh: LegMesh, bus: Bus, away_s: float, interval_s: float) -> str:
    """Kills and restarts police, leg and desk; returns the latencies of the other desks before and meanwhile, as text."""
    count = round(away_s / interval_s)
    async with answering(mesh, "probation", "warning") as desks:
        async with answering(mesh, "police") as police:
            await open_some(bus, desks, 2 * count + 1, 1, 0)  # so that every desk is connected
            before = await open_some(bus, desks, 1, count, interval_s if away_s < 60 else 0.2)
            await until_seen(police["police"], [f"incident-{n}" for n in range(1, count + 1)])
        mesh.legs["police"].kill()
        assert not desks["probation"].absent
        died_s = time.monotonic()
        during = await open_some(bus, desks, count + 1, count, interval_s)
        await until(lambda: "police" in desks["probation"].absent)
        assert "warning" not in desks["probation"].absent
        await until_absent(mesh, count)  # in each incident, after its waiting time
        gone_s = time.monotonic() - died_s
        mesh.legs["police"].start()
        returned_s = time.monotonic()
        async with answering(mesh, "police") as police:
            await until_seen(police["police"], [f"incident-{n}" for n in range(1, 2 * count + 1)])
            caught_up_s = time.monotonic() - returned_s
            await until_absent(mesh, 0)
        async with client(mesh.settings["probation"]) as probation:
            listed = (await probation.desk.list(page_size=1000)).incidents
        own = [
            assignment
            for incident in listed
            for assignment in incident.assignments
            if assignment.leg == alert_pb2.PROBATION
        ]
        assert len(own) == 2 * count + 1 and not any(assignment.absent_legs for assignment in own)
    lines = [f"police away for {gone_s:.1f} s, {count} incidents before and {count} meanwhile; alert to desk, ms"]
    for leg in desks:
        for when, took in (("before", before[leg]), ("meanwhile", during[leg])):
            figures = ", ".join(f"p{p} {percentile(took, p):.1f}" for p in (50, 99))
            lines.append(f"  {leg:<10} {when:<10} {figures}, at most {max(took):.1f}")
    lines.append(f"police had all {count} that it missed {caught_up_s:.1f} s after its start")
    return "\n".join(lines)


async def test_police_leg_and_desk_die_and_return(tmp_path: Path, nats: TestServer, bus: Bus) -> None:
    with running_legs(tmp_path, nats, None, other_leg_within_s=2) as mesh:
        print(await play(mesh, bus, away_s=2, interval_s=0.25))


@pytest.mark.soak
async def test_police_leg_and_desk_are_dead_for_five_minutes(tmp_path: Path, nats: TestServer, bus: Bus) -> None:
    with running_legs(tmp_path, nats, None, other_leg_within_s=10) as mesh:
        print(await play(mesh, bus, away_s=300, interval_s=2))
