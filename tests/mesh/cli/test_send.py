"""`tandem send` and `tandem load` on a running mesh: no report is lost if ingest is killed, and refusals are reported."""

from __future__ import annotations

import asyncio
import json
import re
import signal
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.client.actors import DESKS
from services.common import times
from services.common.rpc import server
from tandem.common.v1 import command_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.ingest.v1.ingest_pb2_grpc import CommandServiceStub
from tests.support.common.mesh import PATIENCE_S, TANDEM, RunningMesh, environment, running_mesh, tandem
from tests.support.ingest.ingest import Client

DEVICES = 6
START_S = 1_772_445_600
LOAD_DEVICES = 40


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    folder = tmp_path_factory.mktemp("mesh")
    tags = ";".join(f"tag-{n}" for n in range(DEVICES))
    wearers = folder / "wearers.csv"
    wearers.write_text(
        "wearer_id,national_id,name,birth_date,tag_device_ids,vendor_id\n"
        f"w-1,800101-1234560,홍길동,1980-01-01,{tags},demo\n"
    )
    with running_mesh(folder / "m") as started:
        imported = tandem("import", str(wearers), "--dir", str(started.folder))
        assert imported.returncode == 0, imported.stdout
        yield started


@pytest.fixture
async def log(mesh: RunningMesh) -> AsyncIterator[Client]:
    """A client that reads the log of the mesh."""
    now = mesh.now
    async with (
        server.channel(now.addresses["ingest"]) as channel,
        now.nats.bus_as("explain") as connected,
    ):
        yield Client(channel, connected)


async def positions(log: Client, device_id: str) -> list[tuple[str, int, float, bool]]:
    """Distinct (report id, fix time in ms, latitude, backfilled) of a device in the log, by time."""
    batches = [entry.positions for _, entry in await log.entries()]
    rows = {
        (batch.report_id[i], batch.fix_time_ms[i], batch.lat_e7[i] / 1e7, batch.backfilled)
        for batch in batches
        for i, of in enumerate(batch.device_id)
        if of == device_id
    }
    return sorted(rows, key=lambda row: row[1])


def csv_track(folder: Path, fixes: int, step_s: float = 1.0) -> Path:
    """A CSV file with a track northward."""
    path = folder / "track.csv"
    lines = (f"{START_S + n * step_s},{37.5 + n * 1e-5:.5f},127\n" for n in range(fixes))
    path.write_text("time,lat,lon\n" + "".join(lines))
    return path


@asynccontextmanager
async def running(mesh: RunningMesh, *arguments: str) -> AsyncIterator[Process]:
    """Runs a command during the block, and kills it at the end if it still runs."""
    process = await asyncio.create_subprocess_exec(
        *TANDEM, *arguments, "--dir", str(mesh.folder), stdout=PIPE, stderr=DEVNULL, env=environment()
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def ended(process: Process) -> tuple[int, str]:
    """Waits for a command's end. Returns its exit code and standard output."""
    async with asyncio.timeout(PATIENCE_S):
        stdout, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, stdout.decode()


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await true():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.05)


# ── send ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_track_is_in_the_log_once_and_in_order_if_ingest_is_killed(
    mesh: RunningMesh, log: Client, tmp_path: Path
) -> None:
    fixes = 60
    track = str(csv_track(tmp_path, fixes))

    async def begun() -> bool:
        return len(await positions(log, "tag-0")) >= 5

    async with running(mesh, "send", track, "--device", "tag-0", "--speed", "10") as sending:
        await until(begun)
        killed = mesh.kill("ingest")
        before = await positions(log, "tag-0")
        await mesh.wait_until_returned(killed)
        code, output = await ended(sending)
    assert len(before) < fixes, "it was killed in the middle"
    assert (code, output) == (0, f"{fixes} of {fixes} reports are in the log\n")
    rows = await positions(log, "tag-0")
    assert [round((lat - 37.5) * 1e5) for _, _, lat, _ in rows] == list(range(fixes))
    assert len({report_id for report_id, *_ in rows}) == fixes
    assert [moment_ms - rows[0][1] for _, moment_ms, _, _ in rows] == [100 * n for n in range(fixes)]
    assert rows[0][1] > START_S * 1000, "the times are of now"


async def test_commands_are_shown_and_acknowledged_until_ctrl_c(mesh: RunningMesh, log: Client, tmp_path: Path) -> None:
    track = str(csv_track(tmp_path, 5))
    desk = server.bearer(DESKS["probation"], mesh.now.dev_secret)
    command_ids = ("c-report-every", "c-vibrate", "c-locate")
    instructions = (
        command_pb2.Instruction(report_every=command_pb2.ReportEvery(interval_s=5, for_s=3_600)),
        command_pb2.Instruction(vibrate=command_pb2.Vibrate(duration_s=3)),
        command_pb2.Instruction(locate_now=command_pb2.LocateNow()),
    )
    async with (
        server.channel(mesh.now.addresses["ingest"]) as channel,
        running(mesh, "send", track, "--device", "tag-1", "--speed", "5", "--loop") as sending,
    ):
        commands = CommandServiceStub(channel)
        for command_id, instruction in zip(command_ids, instructions, strict=True):
            request = ingest_pb2.SendCommandRequest(
                command_id=command_id, device_id="tag-1", instruction=instruction, valid_for_s=60
            )
            await commands.SendCommand(request, metadata=desk, timeout=PATIENCE_S, wait_for_ready=True)

        async def received() -> bool:
            request = ingest_pb2.ListCommandsRequest(device_id="tag-1")
            listed = await commands.ListCommands(request, metadata=desk, timeout=PATIENCE_S)
            return [command.state for command in listed.commands] == [command_pb2.COMMAND_STATE_RECEIVED] * 3

        async def another_round() -> bool:
            return len(await positions(log, "tag-1")) > 5

        await until(received)
        await until(another_round)
        sending.send_signal(signal.SIGINT)
        code, output = await ended(sending)
    assert code == 0
    *shown, summary = output.splitlines()
    locate, often, vibrate = sorted(shown)
    assert locate == "command c-locate to tag-1: report the position now"
    assert re.fullmatch(r"command c-report-every to tag-1: report every 5 s for 3[56]\d\d s", often)
    assert vibrate == "command c-vibrate to tag-1: vibrate for 3 s"
    assert "; rounds: " in summary and summary.endswith("; commands acknowledged: 3")
    assert summary.startswith(f"{len(await positions(log, 'tag-1'))} of ")


async def test_reports_above_a_devices_rate_limit_wait(mesh: RunningMesh, log: Client, tmp_path: Path) -> None:
    fixes = 330
    track = str(csv_track(tmp_path, fixes, step_s=0.5))
    sent = tandem("send", track, "--device", "tag-2", "--speed", "0", "--dir", str(mesh.folder))
    assert sent.returncode == 0 and f"{fixes} of {fixes} reports are in the log; held up" in sent.stdout
    rows = await positions(log, "tag-2")
    assert len(rows) == fixes
    # The times keep their distances, and the last one is now.
    assert rows[-1][1] - rows[0][1] == 500 * (fixes - 1)


async def test_a_track_as_recorded_keeps_its_times_and_counts_once(
    mesh: RunningMesh, log: Client, tmp_path: Path
) -> None:
    arguments = ("send", str(csv_track(tmp_path, 20)), "--device", "tag-3", "--speed", "0", "--as-recorded")
    for _ in range(2):
        assert tandem(*arguments, "--backfill", "--dir", str(mesh.folder)).returncode == 0
    rows = await positions(log, "tag-3")
    assert [moment_ms for _, moment_ms, _, _ in rows] == [(START_S + n) * 1000 for n in range(20)]
    assert len({report_id for report_id, *_ in rows}) == 20
    assert all(backfilled for *_, backfilled in rows)


async def test_a_gpx_track_and_events_are_sent(mesh: RunningMesh, log: Client, tmp_path: Path) -> None:
    gpx, events = tmp_path / "t.gpx", tmp_path / "t.ndjson"
    gpx.write_text('<gpx version="1.1"><trk><trkseg>' + '<trkpt lat="37.5" lon="127"/>' * 3 + "</trkseg></trk></gpx>")
    event = {"kind": "equipment", "event": "STRAP_OPEN", "event_time": times.to_rfc3339(START_S * 1000)}
    position = {"fix_time": "2026-03-02T10:00:00Z", "lat_deg": 37.5, "lon_deg": 127}
    events.write_text("\n".join(json.dumps(line) for line in (event | {"report_id": "e-1"}, position)))
    walked = tandem("send", str(gpx), "--device", "tag-4", "--speed", "100", "--dir", str(mesh.folder))
    assert walked.returncode == 0 and "no point has a time" in walked.stdout
    reported = tandem("send", str(events), "--device", "tag-4", "--as-recorded", "--dir", str(mesh.folder))
    assert reported.returncode == 0 and "2 of 2 reports" in reported.stdout
    assert len(await positions(log, "tag-4")) == 4
    assert (await log.stored())["e-1"] == 1


def test_bad_lines_are_reported_and_the_others_are_sent(mesh: RunningMesh, tmp_path: Path) -> None:
    track = tmp_path / "t.csv"
    track.write_text(f"time,lat,lon\n{START_S},37.5,127\n{START_S},97.5,127\n{START_S},x,127\n{START_S},37.5,127\n")
    folder = ("--dir", str(mesh.folder))
    sent = tandem("send", str(track), "--device", "tag-5", *folder)
    assert sent.returncode == 2
    assert sent.stdout.splitlines() == [
        "line 3: lat: must be from -90 to 90",
        "line 4: lat: must be a number",
        "2 of 2 reports are in the log",
    ]
    assert "sending" in sent.stderr
    refused = tandem("send", str(track), "--device", "tag-nobody", *folder)
    assert refused.returncode == 1
    assert refused.stdout.splitlines()[2:] == [
        "refused (2): device_id: is no registered device",
        "0 of 2 reports are in the log; refused: 2",
    ]


@pytest.mark.parametrize(
    ("device", "first_time_s", "reason", "refused"),
    [
        ("tag-nobody", START_S, "device tag-nobody is no registered device", 1),
        ("tag-5", 4_000_000_000, "device tag-5: the first 20 reports were all refused, most by fix_time: is more than", 20),
    ],
)  # fmt: skip
def test_a_track_that_is_refused_from_its_start_ends_the_command(
    mesh: RunningMesh, tmp_path: Path, device: str, first_time_s: int, reason: str, refused: int
) -> None:
    track = tmp_path / "t.csv"
    # What ingest refuses is due at once, the rest within days.
    moments_s = [first_time_s + n / 100 for n in range(refused)] + [first_time_s + 3_600 * n for n in range(1, 100)]
    track.write_text("time,lat,lon\n" + "".join(f"{moment_s},37.5,127\n" for moment_s in moments_s))
    sent = tandem("send", str(track), "--device", device, "--as-recorded", "--dir", str(mesh.folder))
    assert sent.returncode == 1 and f"stopped: {reason}" in sent.stderr
    assert f"; refused: {refused}; not sent: 99" in sent.stdout.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "output"),
    [
        (("none.csv", "--device", "tag-0"), "none.csv: "),
        (("track.csv", "--device", "a b"), "--device: must be"),
        (("track.csv", "--device", "tag-0", "--speed", "nan"), "--speed: must be"),
        (("track.csv", "--device", "tag-0", "--speed", "-1"), "--speed: must be"),
        (("track.csv", "--device", "tag-0", "--loop", "--speed", "0"), "--loop excludes"),
        (("track.csv", "--device", "tag-0", "--loop", "--as-recorded"), "--loop excludes"),
        (("untimed.gpx", "--device", "tag-0", "--as-recorded"), "has no times"),
        (("track.csv", "--device", "tag-0"), "no mesh runs on"),
    ],
)
def test_wrong_arguments_of_send(arguments: tuple[str, ...], output: str, tmp_path: Path) -> None:
    csv_track(tmp_path, 2)
    (tmp_path / "untimed.gpx").write_text('<gpx><rte><rtept lat="37.5" lon="127"/></rte></gpx>')
    name, *rest = arguments
    outcome = tandem("send", str(tmp_path / name), *rest, "--dir", str(tmp_path / "m"))
    assert outcome.returncode == 2 and not outcome.stdout
    assert output in outcome.stderr and outcome.stderr.count("\n") == 1


# ── load ─────────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_a_load_loses_no_report_if_ingest_is_killed(mesh: RunningMesh, log: Client) -> None:
    rate, seconds = 300, 8
    options = ("--devices", str(LOAD_DEVICES), "--rate", str(rate), "--seconds", str(seconds), "--batch", "10")

    async def begun() -> bool:
        return len(await loaded()) > rate

    async def loaded() -> list[str]:
        return [
            report_id
            for report_id in await log.stored()
            if report_id.startswith("load-") and not report_id.endswith("-first")
        ]

    async with running(mesh, "load", *options, "--streams", "3", "--json") as loading:
        await until(begun)
        killed = mesh.kill("ingest")
        before = await loaded()
        await mesh.wait_until_returned(killed)
        code, output = await ended(loading)
    outcome = json.loads(output)
    assert len(before) < outcome["reports"], "it was killed in the middle"
    assert (code, outcome["refused"], outcome["lost"]) == (0, {}, 0)
    assert outcome["accepted"] == outcome["reports"] == rate * seconds == len(await loaded())
    assert outcome["streams_broken"] >= 3 and outcome["requests"] == rate * seconds / 10
    latency_ms = outcome["latency_ms"]
    assert list(latency_ms) == ["p50", "p90", "p99", "p99.9", "max"]
    assert sorted(latency_ms.values()) == list(latency_ms.values()) and latency_ms["p50"] > 0


async def test_a_backfill_load_spreads_over_the_hours_and_needs_no_registration(mesh: RunningMesh, log: Client) -> None:
    folder = ("--dir", str(mesh.folder))
    registering = tandem("load", "--devices", "3", "--rate", "10", "--seconds", "1", *folder)
    assert registering.returncode == 0 and "registering" in registering.stderr
    assert "refused" not in registering.stdout

    kept = ("--rate", "30", "--seconds", "2", "--batch", "5", "--backfill-hours", "3")
    repeated = tandem("load", "--devices", "3", *kept, "--registered", "synthetic-device", "--json", *folder)
    assert repeated.returncode == 0 and json.loads(repeated.stdout)["accepted"] == 60
    assert "registering" not in repeated.stderr
    moments_ms = [
        moment_ms for *_, moment_ms, _, backfilled in await positions(log, "synthetic-device-1") if backfilled
    ]
    assert len(moments_ms) == 20 and moments_ms[-1] - moments_ms[0] > 2.5 * 3_600_000


def test_a_refused_load_prints_the_reason(mesh: RunningMesh) -> None:
    options = ("--rate", "20", "--seconds", "1", "--batch", "4", "--dir", str(mesh.folder))
    unknown = tandem("load", "--devices", "5", "--registered", "nobody", *options)
    assert unknown.returncode == 1
    assert "refused: device_id: is no registered device" in unknown.stdout
    for devices, options_too in (("0", ()), ("1", ("--batch", "1001")), ("1", ("--rate", "1e6", "--seconds", "60"))):
        misused = tandem("load", "--devices", devices, "--rate", "1", *options_too, "--dir", str(mesh.folder))
        assert misused.returncode == 2 and misused.stderr.count("\n") == 1
