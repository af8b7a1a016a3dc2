"""The commands with which one looks after a running mesh, on one mesh that has played the demo."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess
from typing import NamedTuple

import pytest

from services.client import mesh as meshes
from services.common.failure import CommandFailed
from services.local import processes
from tests.support.common import preloaded
from tests.support.common.mesh import PATIENCE_S, TANDEM, RunningMesh, environment, tandem
from tests.support.common.ports import free_port

EXAMPLES = Path(__file__).parents[3] / "examples"
GROUNDS = ("--legal-basis", "STALKING_9_1_3_2", "--reviewer", "kim")


class StartedMesh(NamedTuple):
    """A running mesh, and what commands were refused with while it started."""

    mesh: RunningMesh
    refusals: list[str]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartedMesh]:
    running = RunningMesh(tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", "20")
    refusals: list[str] = []
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            assert running.process.poll() is None and time.monotonic() < deadline, running.output
            try:
                meshes.load(running.folder)
                break
            except CommandFailed as refused:
                refusals.append(refused.message)
            time.sleep(0.05)
        yield StartedMesh(running, refusals)
    finally:
        if running.process.poll() is None:
            running.stop()


@pytest.fixture(scope="module")
def mesh(started: StartedMesh) -> RunningMesh:
    return started.mesh


@pytest.fixture(scope="module")
def incident_id(mesh: RunningMesh) -> str:
    """Incident of a demo."""
    played = tandem("demo", "--dir", str(mesh.folder), "--json")
    assert played.returncode == 0, played.stderr
    assert "The demo takes about" in played.stderr and "her phone has confirmed all" in played.stderr
    assert not re.search(r"(wearer|person|order)-[0-9a-f]{6}", played.stderr)  # people, not ids
    found: str = json.loads(played.stdout)["incidents"][-1]["incident_id"]
    return found


def at_80(mesh: RunningMesh, *arguments: str) -> CompletedProcess[str]:
    """Runs a command as in a terminal of 80 columns."""
    return preloaded.run(
        "services.cli",
        (*arguments, "--dir", str(mesh.folder)),
        environment() | {"COLUMNS": "80"},
        timeout_s=PATIENCE_S,
    )


def test_a_command_during_the_start_says_for_what_the_mesh_waits(started: StartedMesh) -> None:
    phases = [refusal for refusal in started.refusals if "waits for" in refusal]
    assert phases and all(f"the mesh on {started.mesh.folder} is starting for " in phase for phase in phases)
    assert any("waits for nats:" in phase for phase in phases), phases
    assert any("dispatch-police" in phase for phase in phases), phases


def test_status_names_each_process_and_the_console(mesh: RunningMesh) -> None:
    shown = json.loads(tandem("status", "--dir", str(mesh.folder), "--json").stdout)
    assert {process["name"] for process in shown["processes"]} == {
        "nats",
        *(service.name for service in (*processes.SERVICES, processes.FIELD_PROCESS, processes.CONSOLE_PROCESS)),
    }
    assert all(process["pid"] for process in shown["processes"])
    assert shown["console_url"] == mesh.now.console_url


def test_status_fails_while_a_process_hangs(mesh: RunningMesh) -> None:
    pid = mesh.now.pids["dispatch-police"]
    os.kill(pid, signal.SIGSTOP)  # `up` kills it after seconds, and starts it again
    shown = json.loads(tandem("status", "--dir", str(mesh.folder), "--json").stdout)
    assert not shown["is_ready"]
    (police,) = [process for process in shown["processes"] if process["name"] == "dispatch-police"]
    assert not police["is_ready"] and police["answer"]
    deadline = time.monotonic() + PATIENCE_S
    while tandem("status", "--dir", str(mesh.folder)).returncode:
        assert time.monotonic() < deadline


def test_incidents_of_a_silent_leg_are_missing_and_the_leg_is_named(
    mesh: RunningMesh, incident_id: str, tmp_path: Path
) -> None:
    folder = tmp_path / "mesh"
    with meshes.locked(folder):
        replace(mesh.now, addresses={**mesh.now.addresses, "dispatch-police": f"127.0.0.1:{free_port()}"}).save(folder)
        shown = tandem("incidents", "--dir", str(folder), "--json")
    listed = json.loads(shown.stdout)
    (incident,) = [each for each in listed["incidents"] if each["incident_id"] == incident_id]
    assert {leg["agency"] for leg in incident["legs"]} == {"probation"}
    assert listed["legs_without_answer"] == ["police"] and shown.returncode == 1
    assert shown.stderr == "no answer from police: its part is missing above; telephone its desk\n"


def test_ended_incidents_are_not_listed_as_open(mesh: RunningMesh, incident_id: str) -> None:
    everything = tandem("incidents", "--dir", str(mesh.folder)).stdout
    shown = tandem("incidents", "--open", "--dir", str(mesh.folder))
    assert incident_id in everything and incident_id not in shown.stdout and shown.returncode == 0


def test_what_the_demo_did_is_readable_at_80_columns(mesh: RunningMesh, incident_id: str) -> None:
    order_id = json.loads(tandem("incidents", "--dir", str(mesh.folder), "--json").stdout)["incidents"][0]["order_ids"][
        0
    ]
    for command in (("incidents",), ("trace", incident_id), ("explain", incident_id)):
        shown = at_80(mesh, *command)
        assert shown.returncode == 0, shown.stderr
        assert max(map(len, shown.stdout.splitlines())) <= 80, shown.stdout
        for whole in {"incidents": (incident_id, order_id), "trace": (incident_id,), "explain": ("RING_ENTERED",)}[
            command[0]
        ]:
            assert whole in shown.stdout


def test_explain_lists_the_alerts_of_an_incident_and_explains_each(mesh: RunningMesh, incident_id: str) -> None:
    listed = json.loads(tandem("explain", incident_id, "--dir", str(mesh.folder), "--json").stdout)["alerts"]
    entered = [alert for alert in listed if (alert["kind"], alert["ring_m"]) == ("RING_ENTERED", 100.0)]
    assert entered and entered[0]["demand"] == "RESPOND"
    shown = at_80(mesh, "explain", incident_id).stdout
    assert all(alert["alert_id"] in shown for alert in listed)
    explained = tandem("explain", entered[0]["alert_id"], "--dir", str(mesh.folder))
    assert explained.returncode == 0 and "the same again, byte for byte" in explained.stdout
    unknown = tandem("explain", "incident-0000", "--dir", str(mesh.folder))
    assert (
        unknown.returncode == 1
        and unknown.stderr == "ALERTS holds no alert of incident-0000; alerts are kept for 30 days\n"
    )


def test_open_prints_the_page_of_an_incident(mesh: RunningMesh, incident_id: str) -> None:
    opened = tandem("open", incident_id, "--print", "--dir", str(mesh.folder))
    assert opened.stdout == f"{mesh.now.console_url}/incidents/{incident_id}\n"
    assert tandem("open", "--print", "--dir", str(mesh.folder)).stdout == f"{mesh.now.console_url}\n"


@pytest.mark.parametrize("options", [("--print",), ()], ids=["print", "browser"])
def test_open_of_an_unknown_incident_fails(mesh: RunningMesh, options: tuple[str, ...]) -> None:
    opened = tandem("open", "incident-0000", *options, "--dir", str(mesh.folder))
    listed = f"`tandem incidents --dir {mesh.folder}` lists those that there are"
    assert (opened.returncode, opened.stdout, opened.stderr) == (2, "", f"no incident incident-0000: {listed}\n")


def test_open_works_while_a_leg_is_away(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = tmp_path / "mesh"
    with meshes.locked(folder):
        replace(mesh.now, addresses={**mesh.now.addresses, "dispatch-police": f"127.0.0.1:{free_port()}"}).save(folder)
        opened = tandem("open", "incident-0000", "--print", "--dir", str(folder))
    assert (opened.returncode, opened.stdout) == (0, f"{mesh.now.console_url}/incidents/incident-0000\n")
    assert opened.stderr == "no answer from police, and no other leg knows incident-0000\n"


def test_up_names_its_folder_in_the_commands_that_it_hints_at(mesh: RunningMesh) -> None:
    assert f"tandem down --dir {mesh.folder}`" in mesh.output
    assert f"tandem status --dir {mesh.folder}`" in mesh.output


def test_logs_are_merged_by_time_and_of_one_process(mesh: RunningMesh, incident_id: str) -> None:
    merged = tandem("logs", "--dir", str(mesh.folder), "-n", "200", "--json").stdout.splitlines()
    stamps = [fields["timestamp"] for line in merged if line.startswith("{") for fields in [json.loads(line)]]
    assert stamps == sorted(stamps) and len(merged) <= 200
    only = tandem("logs", "registry", "--dir", str(mesh.folder), "-n", "1000").stdout
    assert "order_matched" in only and "{" not in only.splitlines()[0]


def test_followed_logs_show_new_lines(mesh: RunningMesh, tmp_path: Path) -> None:
    # A shell that runs the tests in the background has them ignore SIGINT, and the command would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    path, output = mesh.folder / "logs" / "up.log", tmp_path / "output"
    command = (*TANDEM, "logs", "up", "-f", "-n", "0", "--json", "--dir", str(mesh.folder))
    with output.open("w") as shown, subprocess.Popen(command, stdout=shown, env=environment()) as following:
        try:
            # Lines are added until one is shown, as nothing says when the command has begun to follow.
            deadline = time.monotonic() + PATIENCE_S
            while "added" not in output.read_text():
                assert following.poll() is None and time.monotonic() < deadline
                with path.open("a") as log:
                    log.write('{"event": "added", "level": "info"}\n')
                time.sleep(0.1)
        finally:
            following.send_signal(signal.SIGINT)
    assert following.returncode == 0


def test_streams_and_dead_letters_are_listed(mesh: RunningMesh, incident_id: str) -> None:
    shown = json.loads(tandem("streams", "show", "--dir", str(mesh.folder), "--json").stdout)["streams"]
    streams = {stream["stream"]: stream for stream in shown}
    assert streams["ALERTS"]["messages"] > 0 and not streams["PROBE"]["refuses_when_full"]
    assert {reader["reader"].rpartition("-")[0] for reader in streams["ALERTS"]["readers"]} >= {
        *("dispatch-probation", "dispatch-police", "dispatch-warning"),
    }
    letters = json.loads(tandem("dead-letters", "--dir", str(mesh.folder), "--json").stdout)
    assert letters["total"] == len(letters["dead_letters"])
    none = tandem("dead-letters", "--by", "probation-peers", "--dir", str(mesh.folder))
    assert none.stdout == "there are no dead letters of probation-peers\n"


def test_a_stream_is_enlarged_and_never_made_smaller(mesh: RunningMesh) -> None:
    folder = ("--dir", str(mesh.folder))
    enlarged = tandem("streams", "enlarge", "LOG_0", "--max-gib", "2", *folder)
    assert enlarged.stdout == "LOG_0: 1.0 GiB at most before, 2.0 GiB now\n", enlarged.stderr
    smaller = tandem("streams", "enlarge", "LOG_0", "--max-gib", "1", *folder)
    assert smaller.returncode == 2
    assert smaller.stderr == "--max-gib: must be more than the size at most, which is 2.0 GiB now\n"
    unknown = tandem("streams", "enlarge", "LOG_9", "--max-gib", "2", *folder)
    assert unknown.stderr == "LOG_9: the server has no such stream (see `tandem streams show`)\n"
    shown = json.loads(tandem("streams", "show", *folder, "--json").stdout)["streams"]
    assert {stream["max_bytes"] for stream in shown if stream["stream"] == "LOG_0"} == {2 << 30}


def test_tables_of_both_encodings_are_imported_and_a_record_is_read_back(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = ("--dir", str(mesh.folder))
    for table in ("wearers-cp949.csv", "orders.csv", "devices.csv"):
        imported = tandem("import", str(EXAMPLES / table), *folder)
        assert imported.returncode == 0, imported.stdout + imported.stderr
        assert ("read as CP949" in imported.stdout) is ("cp949" in table)
    unchanged = tandem("import", str(EXAMPLES / "wearers.csv"), *folder)
    assert "4 unchanged" in unchanged.stdout

    read = tandem("get", "wearer", "W-101", *GROUNDS, *folder)
    assert read.returncode == 0, read.stderr
    record = json.loads(read.stdout)
    assert record["name"] == "홍길동"
    file = tmp_path / "wearer.json"
    file.write_text(json.dumps(record | {"source_version": 2, "phone": "010-0000-0999"}))
    assert tandem("put", "wearer", str(file), *folder).stdout == "stored\n"
    assert json.loads(tandem("get", "wearer", "W-101", *GROUNDS, *folder).stdout)["phone"] == "010-0000-0999"
    order = json.loads(tandem("get", "order", "O-101", *GROUNDS, *folder).stdout)
    assert (order["wearer_id"], order["persons"]["P-101"]) == ("W-101", ["phone-101"])


def test_a_wrong_record_or_ground_is_refused_in_one_line(mesh: RunningMesh, tmp_path: Path) -> None:
    folder = ("--dir", str(mesh.folder))
    file = tmp_path / "device.json"
    file.write_text(json.dumps({"device_id": "phone-9", "person_id": "nobody", "source_version": 1}))
    refused = tandem("put", "device", str(file), *folder)
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "no such protected person" in refused.stderr
    for given, expected in (
        (
            ("--legal-basis", "X", "--reviewer", "kim"),
            "a reading needs --legal-basis: isn't in the list of articles (one of ",
        ),
        (
            ("--legal-basis", "TAG_16_2", "--reviewer", "Kim!"),
            "a reading needs --reviewer: a name of a-z, 0-9 and - (example: kim)",
        ),
    ):
        refused = tandem("get", "wearer", "W-1", *given, *folder)
        assert refused.returncode == 2 and refused.stderr.startswith(expected) and refused.stderr.count("\n") == 1
    missing = tandem("get", "person", "P-nobody", *GROUNDS, *folder)
    assert missing.returncode == 2 and missing.stderr.startswith("NOT_FOUND: ") and missing.stderr.count("\n") == 1


def test_a_drill_by_desks_says_what_it_waits_for(mesh: RunningMesh) -> None:
    with subprocess.Popen(
        (*TANDEM, "drill", "--by-desks", "--dir", str(mesh.folder)),
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env=environment(),
        text=True,
    ) as drill:
        assert drill.stderr is not None
        said = []
        for line in drill.stderr:
            said.append(line)
            # The desks' offers don't wait for the stream of alerts, so either may come first.
            if all(any(each.startswith(first) for each in said) for first in ("alert seen", "police offered")):
                drill.terminate()
                said += drill.stderr
                break
    assert said[0] == "drill 1 of 1: people at the desks answer; each step may take 10 min\n"
    assert any(re.fullmatch(r"alert seen, \d+\.\d s after the report\n", line) for line in said)
    assert said[-1] == "stopped; the records of the drill were ended\n" and drill.returncode == 1


def test_the_doctor_checks_a_running_mesh(mesh: RunningMesh) -> None:
    shown = json.loads(tandem("doctor", "--dir", str(mesh.folder), "--json").stdout)["findings"]
    assert {finding["subject"] for finding in shown} == {"versions", "ports", "disk", "clock", "certificates"}
    assert [finding["verdict"] for finding in shown if finding["subject"] == "ports"] == ["good"]
    assert any("nats-server's clock agrees" in finding["text"] for finding in shown)


def test_statistics_are_of_a_period_and_one_without_incidents_says_so(mesh: RunningMesh, incident_id: str) -> None:
    folder = ("--dir", str(mesh.folder))
    deadline = time.monotonic() + PATIENCE_S
    while (counted := json.loads(tandem("statistics", *folder, "--json").stdout)).get("behind"):
        assert time.monotonic() < deadline
    assert int(counted["incidents"]) >= 1 and {row["leg"] for row in counted["response_times"]} >= {"POLICE", "WARNING"}
    shown = at_80(mesh, "statistics")
    assert shown.returncode == 0 and max(map(len, shown.stdout.splitlines())) <= 80, shown.stdout + shown.stderr
    assert "acceptance" in shown.stdout and "wearer" in shown.stdout
    period = ("--from", "2020-01-01T00:00:00Z", "--until", "2020-02-01T00:00:00Z")
    # The mesh goes on, so any answer may say that some steps aren't counted yet.
    while "counted yet" in (empty := tandem("statistics", *folder, *period)).stdout:
        assert time.monotonic() < deadline
    assert (empty.returncode, empty.stdout) == (0, "0 incidents from 2020-01-01 00:00 to 2020-02-01 00:00 UTC\n")
    for options, says in (
        (("--leg", "warning"), '--leg: "warning" is not police or probation'),
        ((*period[:2], "--until", "2019-01-01T00:00:00Z"), "--until must be after --from"),
        (("--from", "2000-01-01T00:00:00Z"), "at most 3660 days"),
    ):
        refused = tandem("statistics", *folder, *options)
        assert refused.returncode and says in refused.stderr and "Traceback" not in refused.stderr, refused.stderr


def test_down_stops_the_mesh_and_the_data_stay(tmp_path: Path, mesh: RunningMesh) -> None:
    stopped = tandem("down", "--dir", str(mesh.folder))
    assert (stopped.returncode, stopped.stdout) == (0, f"the mesh on {mesh.folder} has stopped; its data are kept\n")
    assert mesh.process.wait(PATIENCE_S) == 0 and meshes.owner(mesh.folder) is None
    assert (mesh.folder / "data" / "registry" / "registry.sqlite3").exists()
    repeated = tandem("down", "--dir", str(mesh.folder))
    assert (repeated.returncode, repeated.stdout) == (0, f"no mesh runs on {mesh.folder}\n")
