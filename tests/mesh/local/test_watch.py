"""Canaries and drills through a whole mesh while NATS or a leg is stopped: pages, views of desks, and cleanup."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.client import mesh
from services.client.actors import DESKS, MOJ_RECORDS, REVIEWER
from services.client.drill import DRILL_OPERATOR, STEPS
from services.client.mesh import Clients, MeshConnection
from services.common import times
from services.local.watch import SLOTS, WATCH_IDENTITY
from tandem.common.v1 import exercise_pb2, log_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2
from tandem.registry.v1 import registry_pb2, trace_pb2
from tests.support.common.mesh import PATIENCE_S, TANDEM, RunningMesh, environment, tandem
from tests.support.common.nats import TestServer, running_server

RATE = 10
"""Clock rate of the mesh: a canary every 2 s, and a minute of mesh time is 6 s."""
POLICE = "dispatch-police"
PAGER = """\
import json, sys
with open({out!r}, "a") as out:
    out.write(json.dumps(json.loads(sys.stdin.read())) + "\\n")
"""


@dataclass(frozen=True)
class Watched:
    """A watched mesh on a NATS server without a watchdog, and the pages of the watch."""

    nats: TestServer
    up: RunningMesh
    pages_file: Path

    def pages(self) -> list[dict[str, Any]]:
        """The pages so far."""
        if not self.pages_file.exists():
            return []
        return [json.loads(line) for line in self.pages_file.read_text().splitlines()]

    async def until(self, what: Callable[[], bool], patience_s: float = PATIENCE_S) -> None:
        """Returns once the condition holds."""
        async with asyncio.timeout(patience_s):
            while not what():  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def until_paged(self, *kinds: str, patience_s: float = PATIENCE_S) -> None:
        """Returns once exactly these pages have come."""
        await self.until(lambda: len(self.pages()) >= len(kinds), patience_s)
        assert [page["kind"] for page in self.pages()] == list(kinds)

    def is_noted(self) -> bool:
        """Whether the watch has saved that a page of the outage was delivered."""
        return bool(json.loads((self.up.folder / "watch.json").read_text())["outage"]["pages"])

    def is_well(self) -> bool:
        """Whether the watch sees no outage now."""
        return not json.loads((self.up.folder / "watch.json").read_text())["outage"]

    def sent(self) -> int:
        """Number of canaries that the watch has sent."""
        state = self.up.folder / "watch.json"
        return int(json.loads(state.read_text())["sent"]) if state.exists() else 0


@contextmanager
def watched_mesh(folder: Path, rate: int) -> Iterator[Watched]:
    """Runs a mesh during the block; `tandem up` has started its watch."""
    pages, program = folder / "pages.jsonl", folder / "pager.py"
    program.write_text(PAGER.format(out=str(pages)))
    with running_server(folder / "nats") as nats:
        settings = {
            "TANDEM_NATS_URL": nats.url,
            "TANDEM_NATS_MONITOR_URL": nats.monitor_url,
            "TANDEM_PAGER_COMMAND": f"{TANDEM[0]} {program}",
        }
        up = RunningMesh(folder / "mesh", "--clock-rate", str(rate), settings=settings)
        try:
            up.wait_until_up()
            yield Watched(nats, up, pages)
        finally:
            if up.process.poll() is None:
                nats.thaw()
                up.stop()


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    with watched_mesh(tmp_path_factory.mktemp("watch"), RATE) as running:
        yield running


@asynccontextmanager
async def connected(watched: Watched) -> AsyncIterator[tuple[MeshConnection, Clients]]:
    async with mesh.connect(watched.up.now) as clients:
        yield watched.up.now, clients


async def test_a_stopped_nats_server_is_paged_once_and_so_is_its_return(watched: Watched) -> None:
    # At this rate, a busy machine alone may have caused an outage.
    await watched.until(lambda: watched.sent() > 3 and watched.is_well())
    before = len(watched.pages())
    watched.nats.freeze()
    try:
        await watched.until(lambda: len(watched.pages()) > before)
        [page] = watched.pages()[before:]
        assert page["kind"] == "MISSING"
        assert "nats-server" in page["not_answering"]
        assert page["last_seen"], "the progress of the canary, which may have been on its way"
        assert "canaries have been missing since" in page["text"] and "Korean time" in page["text"]
        assert page["since"].endswith("Z")
        assert Path(page["runbook"]).name == "a-page-of-tandem-watch.md"
        # A delivered page that isn't saved yet is repeated after a kill, as a repeated page is better than a lost one.
        await watched.until(watched.is_noted)
        killed = watched.up.kill("watch")
        await watched.up.wait_until_returned(killed)
        await asyncio.sleep(4)  # longer than a canary may take: a watch that lost its state would page another time
    finally:
        watched.nats.thaw()

    def kinds() -> list[str]:
        # At this rate, a busy machine alone may cause another outage later, with another id.
        return [other["kind"] for other in watched.pages() if other["outage_id"] == page["outage_id"]]

    await watched.until(lambda: "BACK" in kinds())
    sent = watched.sent()
    await watched.until(lambda: watched.sent() > sent + 4)
    assert kinds() == ["MISSING", "BACK"]


async def test_a_stopped_leg_is_paged_by_name(watched: Watched) -> None:
    sent = watched.sent()
    await watched.until(lambda: watched.sent() > sent + 1 and watched.is_well())
    paged = len(watched.pages())
    police = watched.up.now.pids[POLICE]
    # `tandem up` is stopped too, as it would replace the leg before the page.
    stopped = (watched.up.process.pid, police)
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        await watched.until(lambda: any(POLICE in page["not_answering"] for page in watched.pages()[paged:]))
    finally:
        for pid in reversed(stopped):
            os.kill(pid, signal.SIGCONT)
    page = next(page for page in watched.pages()[paged:] if POLICE in page["not_answering"])
    assert page["kind"] in ("MISSING", "STILL_MISSING"), (
        "at this rate, a busy machine alone may have caused an outage before"
    )
    assert page["not_answering"] == [POLICE]
    if page["kind"] == "MISSING":
        assert "police" in page["last_seen"], "the page names the leg that did nothing"

    def is_back() -> bool:
        return any(other["kind"] == "BACK" and other["outage_id"] == page["outage_id"] for other in watched.pages())

    await watched.until(is_back)


async def test_only_the_watch_sees_canaries(watched: Watched) -> None:
    async with connected(watched) as (_, clients):
        for leg, stubs in clients.legs.items():
            listed = await stubs.dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(), metadata=clients.identity(REVIEWER), timeout=5
            )
            assert not [incident for incident in listed.incidents if "exercise.canary" in str(incident.order_ids)], leg
        stream = clients.legs["police"].dispatch.Subscribe(
            dispatch_pb2.SubscribeRequest(), metadata=clients.identity(DESKS["police"]), timeout=2
        )
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            async for message in stream:
                assert message.step.assignment.exercise != exercise_pb2.CANARY
        assert ended.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        await a_canary(clients)
    assert not list(watched.up.folder.glob("data/*/evidence-*/*"))
    for log in (watched.up.folder / "logs").glob("dispatch-*.log"):
        assert "assignment_offered" not in log.read_text()


async def a_canary(clients: Clients) -> str:
    """Id of the first canary's incident, as the watch sees it."""
    alerts = clients.geofence.WatchAlerts(
        geofence_pb2.WatchAlertsRequest(), metadata=clients.identity(WATCH_IDENTITY), timeout=PATIENCE_S
    )
    incident_id = ""
    async for message in alerts:
        assert message.alert.exercise == exercise_pb2.CANARY and not message.HasField("measure")
        if incident_id := message.alert.incident_id:
            break
    alerts.cancel()
    return incident_id


async def test_exercises_need_the_right_role_and_valid_fields(watched: Watched) -> None:
    async with connected(watched) as (_, clients):

        async def put(run_by: str, **more: Any) -> grpc.StatusCode | None:
            soon = times.to_timestamp(clients.clock.now_ms() + 3_600_000)
            given: dict[str, Any] = {
                "exercise": exercise_pb2.DRILL,
                "exercise_id": "a",
                "wearers": 1,
                "vendor_id": "exercise",
                "valid_until": soon,
            }
            try:
                request = records_pb2.PutExerciseRequest(**(given | more))
                await clients.exercises.PutExercise(request, metadata=clients.identity(run_by), timeout=5)
            except grpc.aio.AioRpcError as error:
                return error.code()
            return None

        denied, invalid = grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INVALID_ARGUMENT
        assert await put(WATCH_IDENTITY) is denied
        assert await put(DRILL_OPERATOR, exercise=exercise_pb2.CANARY) is denied
        assert await put(MOJ_RECORDS) is denied
        far = times.to_timestamp(clients.clock.now_ms() + 8 * 86_400_000)
        for wrong in (
            {"exercise": exercise_pb2.EXERCISE_UNSPECIFIED},
            {"exercise_id": "A b"},
            {"wearers": 0},
            {"wearers": 11},
            {"vendor_id": ""},
            {"valid_until": far},
        ):
            assert await put(DRILL_OPERATOR, **wrong) is invalid, wrong
        assert await put(DRILL_OPERATOR) is None and await put(DRILL_OPERATOR) is None
        end = records_pb2.EndExerciseRequest(exercise=exercise_pb2.DRILL, exercise_id="a")
        for _ in range(2):
            await clients.exercises.EndExercise(end, metadata=clients.identity(DRILL_OPERATOR), timeout=5)
        assert await put(DRILL_OPERATOR) is grpc.StatusCode.FAILED_PRECONDITION
        wearer = registry_pb2.Wearer(
            wearer_id="exercise.drill.a.wearer-0", national_id="8001011234567", name="A", birth_date="1980-01-01"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await clients.registry.PutWearer(
                registry_pb2.PutWearerRequest(wearer=wearer), metadata=clients.identity(MOJ_RECORDS), timeout=5
            )
        assert refused.value.code() is invalid


async def test_a_drill_measures_each_step_and_leaves_no_incident_open(watched: Watched) -> None:
    ran = await asyncio.to_thread(tandem, "drill", "--dir", str(watched.up.folder), "--times", "2", "--json")
    assert ran.returncode == 0, ran.stderr
    output = json.loads(ran.stdout)
    assert [list(steps) for steps in output["drills"]] == [list(STEPS)] * 2
    assert list(output["percentiles_ms"]) == list(STEPS)
    deadline = time.monotonic() + PATIENCE_S
    # The other legs' steps reach the police's list a moment later.
    while incidents := await drilled(watched):
        if all(incident["ended"] and incident["states"] == {"CLOSED"} for incident in incidents):
            break
        assert time.monotonic() < deadline, incidents
        await asyncio.sleep(0.1)
    assert len(incidents) == 2
    async with connected(watched) as (_, clients):

        async def trace(incident_id: str) -> Sequence[trace_pb2.Span]:
            request = trace_pb2.GetTraceRequest(incident_id=incident_id)
            answer = await clients.traces.GetTrace(request, metadata=clients.identity(REVIEWER), timeout=5)
            return answer.spans

        # The registry reads alerts in order, so it has already read the first canary's alerts. It stores the facts in idle time.
        spans: Sequence[trace_pb2.Span] = ()
        while "police offered" not in {span.name for span in spans}:
            assert time.monotonic() < deadline, [span.name for span in spans]
            await asyncio.sleep(0.2)
            with suppress(grpc.aio.AioRpcError):  # NOT_FOUND before the first fact
                spans = await trace(incidents[0]["incident_id"])
        assert spans[0].attributes["exercise"] == "DRILL"
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await trace(await a_canary(clients))
        assert refused.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_stopped_drill_ends_its_records(watched: Watched) -> None:
    before = len(await drilled(watched))
    command = (*TANDEM, "drill", "--dir", str(watched.up.folder), "--by-desks")
    process = await asyncio.create_subprocess_exec(*command, stderr=subprocess.PIPE, env=environment())
    deadline = time.monotonic() + PATIENCE_S
    while len(await drilled(watched)) == before:
        assert time.monotonic() < deadline and process.returncode is None
    process.send_signal(signal.SIGINT)
    _, said = await process.communicate()
    assert process.returncode == 1 and said.endswith(b"\nstopped; the records of the drill were ended\n"), said
    while not all(incident["ended"] for incident in await drilled(watched)):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.1)


async def drilled(watched: Watched) -> list[dict[str, Any]]:
    """Drills in the police leg's list: whether each has ended, and the states of all legs' assignments."""
    async with connected(watched) as (_, clients):
        request = dispatch_pb2.ListIncidentsRequest()
        listed = await clients.legs["police"].dispatch.ListIncidents(
            request, metadata=clients.identity(REVIEWER), timeout=5
        )
    return [
        {
            "incident_id": incident.incident_id,
            "ended": incident.HasField("ended_at"),
            "states": {dispatch_pb2.AssignmentState.Name(own.state) for own in incident.assignments},
        }
        for incident in listed.incidents
        if incident.assignments[0].exercise == exercise_pb2.DRILL
    ]


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_canaries_that_are_not_stood_down_are_paged_and_the_watch_goes_on(tmp_path: Path) -> None:
    with watched_mesh(tmp_path, RATE) as running:

        async def clear_after(seconds: int) -> None:
            async with connected(running) as (_, clients):
                rules = log_pb2.Rules(rules_id=f"after-{seconds}", clear_after_s=seconds)
                request = geofence_pb2.PutRulesRequest(rules=rules)
                await clients.geofence.PutRules(request, metadata=clients.identity(DRILL_OPERATOR), timeout=5)

        await clear_after(3_600)
        await running.until_paged("MISSING")
        assert "stood down" in running.pages()[0]["last_seen"]
        await clear_after(60)
        await running.until_paged("MISSING", "BACK")


@pytest.mark.soak
@pytest.mark.timeout(900)
async def test_two_minutes_without_nats_in_real_time(tmp_path: Path) -> None:
    """An outage is paged while it lasts, at the clock rate of a production mesh."""
    with watched_mesh(tmp_path, 1) as running:
        await running.until(lambda: running.sent() > 2, patience_s=120)
        running.nats.freeze()
        await running.until_paged("MISSING", patience_s=60)
        await asyncio.sleep(60)
        running.nats.thaw()
        await running.until_paged("MISSING", "BACK", patience_s=120)
        sent = running.sent()
        await running.until(lambda: running.sent() > sent + SLOTS, patience_s=300)
        await running.until_paged("MISSING", "BACK")
