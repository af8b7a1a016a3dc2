"""`python -m bench.console`: cost of the live page in a browser with 500 incidents and 20,000 live subjects.

Simulated legs send 500 incidents to a real console over real gRPC. In the 200 most urgent incidents 100 subjects each move, and report
every 15 s, as tags do in pursuit. Chromium with software rendering has the page open, as at a desk; in the end an officer chooses 20
incidents one after another, and the map moves to each. Exit code 1 where the p95 of long tasks exceeds 200 ms in either part, or the
heap grows by more than 10 MB in 10 minutes. With a shorter `--seconds`, the heap figure proves nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio
import uvloop

from bench import figures
from bench.figures import Figure
from bench.mesh import machine
from services.common import times
from services.common.failure import FAILED
from services.common.priority import PriorityGate
from services.common.rpc import server as rpc
from services.common.rpc.history import HistoryBudget
from services.common.settings import CommonSettings
from tandem.common.v1 import alert_pb2, geometry_pb2, subject_pb2
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc, following_pb2, following_pb2_grpc
from tests.browser.driver import Browser, browser
from tests.support.common.ports import free_port
from tests.support.common.processes import Service

INCIDENTS = 500
SUBJECTS_EACH = 100
STEPS_EACH = 10
"""Messages in which one subject of each incident is sent, so that subjects report evenly in time."""
REPORTS_INTERVAL_S = 15.0
LONG_TASK_P95_MS = 200.0
MAX_HEAP_GROWTH_MB = 10.0
WARM_UP_S = 20.0
"""Time to draw everything once; at most a quarter of the measurement."""
CHOICES, CHOICE_INTERVAL_S = 20, 2.0
"""How often an officer chooses the next incident after that, and how long they look at it, s."""
UP_WITHIN_S = 60.0
SECRET = "secret-of-the-bench"


class CrowdedLeg(dispatch_pb2_grpc.DispatchServiceServicer):
    """500 incidents, each waiting for both legs; one step a second."""

    def __init__(self, leg: alert_pb2.Leg.ValueType, rng: random.Random) -> None:
        self._leg, self._rng = leg, rng
        self._began_ms = time.time_ns() // 1_000_000
        self._due_s = [rng.randrange(600) for _ in range(INCIDENTS)]

    def _assignment(self, n: int) -> dispatch_pb2.Assignment:
        assignment = dispatch_pb2.Assignment(
            assignment_id=f"assignment-{n}",
            incident_id=f"incident-{n:04d}",
            leg=self._leg,
            subject_id=f"subject-{n}",
            order_ids=[f"order-{n}"],
            state=dispatch_pb2.OFFERED,
            demand=geometry_pb2.RESPOND,
            kind=alert_pb2.RING_ENTERED,
            offer_number=1,
        )
        assignment.due_at.CopyFrom(times.to_timestamp(self._began_ms + self._due_s[n] * 1_000))
        return assignment

    async def ListIncidents(
        self, request: dispatch_pb2.ListIncidentsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> dispatch_pb2.ListIncidentsResponse:
        """Returns all incidents at once."""
        opened = times.to_timestamp(self._began_ms)
        return dispatch_pb2.ListIncidentsResponse(
            incidents=[
                dispatch_pb2.Incident(
                    incident_id=f"incident-{n:04d}", opened_at=opened, assignments=[self._assignment(n)]
                )
                for n in range(INCIDENTS)
            ]
        )

    async def Subscribe(
        self, request: dispatch_pb2.SubscribeRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
        """Sends one step a second."""
        sequence = 0
        while True:
            await asyncio.sleep(1)
            sequence += 1
            n = self._rng.randrange(INCIDENTS)
            self._due_s[n] += 30
            step = dispatch_pb2.Step(step_id=f"step-{sequence}", assignment=self._assignment(n))
            yield dispatch_pb2.SubscribeResponse(sequence=sequence, step=step)


class MovingSubjects(following_pb2_grpc.FollowingServiceServicer):
    """Subjects who move at random and report evenly in time."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    async def FollowTargets(
        self,
        requests: AsyncIterator[following_pb2.FollowTargetsRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[following_pb2.FollowTargetsResponse]:
        """Sends the subjects of the followed incidents in turn, until cancelled."""
        places: dict[str, tuple[float, float]] = {}
        unseen: list[str] = []

        async def read() -> None:
            async for request in requests:
                for incident_id in request.add_incident_ids:
                    places[incident_id] = self._rng.uniform(35.0, 38.0), self._rng.uniform(126.5, 129.0)
                    unseen.append(incident_id)
                for incident_id in request.remove_incident_ids:
                    places.pop(incident_id, None)

        reading = asyncio.create_task(read())
        try:
            for n in itertools.cycle(range(SUBJECTS_EACH)):
                for step in range(STEPS_EACH):
                    new = [(id_, place) for id_ in unseen if (place := places.get(id_))]
                    unseen.clear()
                    events = [self._event(id_, m, place) for id_, place in new for m in range(SUBJECTS_EACH)]
                    turn = list(places.items())[step::STEPS_EACH]
                    events += [self._event(id_, n, place) for id_, place in turn]
                    yield following_pb2.FollowTargetsResponse(events=events)
                    await asyncio.sleep(REPORTS_INTERVAL_S / SUBJECTS_EACH / STEPS_EACH)
        finally:
            reading.cancel()

    def _event(self, incident_id: str, n: int, place: tuple[float, float]) -> following_pb2.TargetEvent:
        target = following_pb2.TargetPosition(
            subject_id=f"subject-{n}",
            kind=subject_pb2.PROTECTED_PERSON if n % 2 else subject_pb2.WEARER,
            lat_deg=place[0] + self._rng.uniform(-0.01, 0.01),
            lon_deg=place[1] + self._rng.uniform(-0.01, 0.01),
            accuracy_m=self._rng.uniform(5, 50),
            fix_time=times.to_timestamp(time.time_ns() // 1_000_000),
        )
        return following_pb2.TargetEvent(incident_id=incident_id, target=target)


@dataclass(frozen=True, slots=True)
class Result:
    """Results of the measurement."""

    seconds: float
    subjects: int
    """Subjects with a position on the page."""
    long_tasks: int
    long_task_p95_ms: float
    """0 where no task took over 50 ms."""
    long_task_max_ms: float
    choosing_p95_ms: float
    """p95 of the long tasks while incidents are chosen, each of which moves the map. 0 where no task took over 50 ms."""
    choosing_max_ms: float
    heap_before_mb: float
    heap_after_mb: float
    """Measured after a garbage collection, like `heap_before_mb`."""
    kb_per_min: float
    """Traffic that a page receives."""
    messages_per_s: float

    @property
    def heap_growth_mb(self) -> float:
        """Growth of the heap, MB."""
        return self.heap_after_mb - self.heap_before_mb

    def figures(self) -> list[Figure]:
        """The results as figures with their targets."""
        return [
            Figure("measured for", self.seconds, "s"),
            Figure("subjects on the map", self.subjects, "subjects"),
            Figure("long tasks (over 50 ms)", self.long_tasks, "tasks"),
            figures.at_most("long tasks, p95", self.long_task_p95_ms, "ms", target=LONG_TASK_P95_MS),
            Figure("long tasks, max", self.long_task_max_ms, "ms"),
            figures.at_most("long tasks of choices, p95", self.choosing_p95_ms, "ms", target=LONG_TASK_P95_MS),
            Figure("long tasks of choices, max", self.choosing_max_ms, "ms"),
            Figure("heap before", self.heap_before_mb, "MB"),
            figures.at_most("heap, growth", self.heap_growth_mb, "MB", target=MAX_HEAP_GROWTH_MB),
            Figure("received", self.kb_per_min, "kB/min"),
            Figure("messages", self.messages_per_s, "messages/s"),
        ]


@asynccontextmanager
async def _console(folder: Path) -> AsyncIterator[str]:
    """Starts a console with a crowded police leg; yields its address."""
    rng, port = random.Random(20260706), free_port()

    def add(server: grpc.aio.Server) -> None:
        leg = CrowdedLeg(alert_pb2.POLICE, rng)  # type: ignore[abstract]  # the console calls no other method
        dispatch_pb2_grpc.add_DispatchServiceServicer_to_server(leg, server)
        following_pb2_grpc.add_FollowingServiceServicer_to_server(MovingSubjects(rng), server)

    async with AsyncExitStack() as stack:
        served = await stack.enter_async_context(
            rpc.serve(CommonSettings(port=0, dev_secret=SECRET), add, history=HistoryBudget(PriorityGate()))
        )
        unused_address = f"ipv4:127.0.0.1:{free_port()}"
        env = {f"TANDEM_{name}": unused_address for name in ("REGISTRY", "INGEST", "GEOFENCE", "DISPATCH_PROBATION")}
        env |= {"TANDEM_DISPATCH_POLICE": f"ipv4:127.0.0.1:{served.port}", "TANDEM_PORT": str(port)}
        env |= {"TANDEM_DATA_DIR": str(folder), "TANDEM_DEV_SECRET": SECRET}
        process = Service("services.console", env, folder / "console.log")
        process.start()
        stack.callback(process.kill)
        await _until_up(port)
        yield f"http://127.0.0.1:{port}"


async def _until_up(port: int) -> None:
    async with asyncio.timeout(UP_WITHIN_S):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.1)
            else:
                writer.close()
                return


_WATCH = """(() => {
    window.tasks = []; window.received = {bytes: 0, messages: 0}; window.subjects = 0;
    new PerformanceObserver((list) => window.tasks.push(...list.getEntries().map((entry) => entry.duration)))
        .observe({type: "longtask", buffered: false});
    const source = new EventSource("/stream");
    source.onmessage = (event) => {
        window.subjects ||= JSON.parse(event.data).targets.length;
        window.received.bytes += event.data.length; window.received.messages += 1;
    };
})()"""
"""Script that counts the messages of a second stream, because the page's own stream is inaccessible. It costs the page a little."""


async def _measure(chromium: Browser, url: str, seconds: float) -> Result:
    await chromium.sign_in("desk", url, "police")
    await chromium("wait", page="desk", selector="#incidents li:nth-child(500)")
    await asyncio.sleep(min(WARM_UP_S, seconds / 4))
    await chromium("eval", page="desk", expression=_WATCH)
    await asyncio.sleep(2)  # the first message holds the whole state and is no update
    await chromium(
        "eval", page="desk", expression="(() => { window.received.bytes = window.received.messages = 0; })()"
    )
    before = await chromium("heap", page="desk")
    await chromium("eval", page="desk", expression="(() => { window.tasks.length = 0; })()")
    began_s = time.monotonic()
    await asyncio.sleep(seconds)
    took_s = time.monotonic() - began_s
    tasks: list[float] = sorted(await chromium("eval", page="desk", expression="window.tasks"))
    received = await chromium("eval", page="desk", expression="({...window.received})")
    after = await chromium("heap", page="desk")
    choosing = await _choosing(chromium)
    return Result(
        seconds=round(took_s, 1),
        subjects=await chromium("eval", page="desk", expression="window.subjects"),
        long_tasks=len(tasks),
        long_task_p95_ms=_p95(tasks),
        long_task_max_ms=max(tasks, default=0.0),
        choosing_p95_ms=_p95(choosing),
        choosing_max_ms=max(choosing, default=0.0),
        heap_before_mb=before / 1e6,
        heap_after_mb=after / 1e6,
        kb_per_min=received["bytes"] / 1e3 / (took_s / 60),
        messages_per_s=received["messages"] / took_s,
    )


async def _choosing(chromium: Browser) -> list[float]:
    """Lengths of the long tasks in ms, ascending, while an officer goes down the queue: each choice moves the map."""
    await chromium("eval", page="desk", expression="(() => { window.tasks.length = 0; })()")
    for _ in range(CHOICES):
        before = await chromium("eval", page="desk", expression="map.dataset.fitted ?? ''")
        await chromium("press", page="desk", key="j")
        await chromium.until("desk", f"map.dataset.fitted !== {json.dumps(before)}")
        await asyncio.sleep(CHOICE_INTERVAL_S)
    return sorted(await chromium("eval", page="desk", expression="window.tasks"))


def _p95(ordered: Sequence[float]) -> float:
    return ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)] if ordered else 0.0


async def _run(seconds: float, as_json: bool) -> int:
    with tempfile.TemporaryDirectory() as folder:
        # Start the browser first, because a process with gRPC's threads can't be forked safely.
        async with browser() as chromium, _console(Path(folder)) as url:
            result = await _measure(chromium, url, seconds)
    figures.show(machine.describe(Path()), machine.versions(), result.figures(), as_json=as_json)
    return FAILED if any(figure.met is False for figure in result.figures()) else 0


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.console", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="length of the measurement, s")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    arguments = parser.parse_args()
    sys.exit(uvloop.run(_run(arguments.seconds, arguments.json)))


if __name__ == "__main__":
    main()
