"""Misuse of a command prints one line with the error, and exits with 2."""

from __future__ import annotations

import json
import re
import socket
import time
from pathlib import Path

import pytest

from services.client.mesh import MeshStart, locked
from tests.support.common import ports
from tests.support.common.mesh import tandem


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("nonsense",), "No such command 'nonsense'."),
        (("up", "--partitions", "0"), "--partitions"),
        (("up", "--partitions", "many"), "--partitions"),
        (("up", "--exit"), "--exit needs --demo"),
        (
            ("device-token", "tag-1", "--revoke", "--keep-older-for-s", "60"),
            "--keep-older-for-s and --revoke exclude each other",
        ),
        (("device-token", "tag-1", "--keep-older-for-s", "604801"), "--keep-older-for-s"),
        (("backtest", "--scenario", "s.json"), "--reports"),
        (("backtest", "--scenario", "s", "--reports", "r", "--against", "b"), "--against needs --rules"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], expected: str) -> None:
    outcome = tandem(*arguments)
    assert outcome.returncode == 2 and not outcome.stdout
    assert expected in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("demo",), ("incidents",), ("explain", "alert-1")], ids=lambda command: command[0])
def test_commands_without_a_mesh_are_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    outcome = tandem(*command, "--dir", str(tmp_path))
    start = f"start one with `tandem up --dir {tmp_path}`"
    assert (outcome.returncode, outcome.stderr) == (2, f"no mesh runs on {tmp_path}: {start}\n")


@pytest.mark.parametrize(
    ("command", "effect"), [(("status",), ""), (("down",), ", so nothing was stopped")], ids=["status", "down"]
)
def test_a_command_in_another_folder_names_the_mesh_that_runs(
    command: tuple[str, ...], effect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    here, there = tmp_path / "here", tmp_path / "the re"
    with locked(there):
        outcome = tandem(*command, "--dir", str(here))
    assert (outcome.returncode, outcome.stdout) == (2, "")
    assert outcome.stderr == f"no mesh runs on {here}{effect}; one runs on {there}: add `--dir '{there}'`\n"
    assert "the re" not in tandem(*command, "--dir", str(here)).stderr, "it has ended"


def test_a_mesh_that_starts_says_so_with_what_it_waits_for(tmp_path: Path) -> None:
    with locked(tmp_path):
        begun = tandem("incidents", "--dir", str(tmp_path))
        MeshStart(time.time() - 12, ("registry", "field")).save(tmp_path)
        waiting = tandem("status", "--dir", str(tmp_path))
    assert (begun.returncode, waiting.returncode) == (1, 1)
    starting = f"the mesh on {tmp_path} is starting"
    assert begun.stderr == f"{starting}: repeat the command in some seconds\n"
    expected = re.escape(starting) + r" for \d+ s, and waits for registry, field: repeat the command in some seconds\n"
    assert re.fullmatch(expected, waiting.stderr), waiting.stderr
    assert "no mesh runs" in tandem("status", "--dir", str(tmp_path)).stderr


def test_a_folder_runs_one_mesh_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        outcome = tandem("up", "--dir", str(tmp_path))
    assert (outcome.returncode, outcome.stderr) == (2, f"a mesh runs on {tmp_path} already\n")


def test_a_used_port_is_named(tmp_path: Path) -> None:
    # Ports of this process's own block, so that no mesh of another test process takes them meanwhile.
    used = [ports.free_port() for _ in range(5)][-1]
    with socket.socket() as occupant:
        # As `tandem up` does: a port whose last connections are still closing counts as free.
        occupant.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        occupant.bind(("127.0.0.1", used))
        occupant.listen()
        outcome = tandem("up", "--dir", str(tmp_path), "--base-port", str(used - 4))
    assert outcome.returncode == 2 and f"port {used} is in use" in outcome.stderr


@pytest.mark.parametrize("command", ["backtest", "replay"])
def test_a_malformed_line_is_named_with_its_field(command: str, tmp_path: Path) -> None:
    scenario, reports = tmp_path / "scenario.json", tmp_path / "reports.ndjson"
    wearer = {"wearer_id": "w", "national_id": "900101-1000000", "name": "W", "birth_date": "1990-01-01"}
    scenario.write_text(json.dumps({"wearers": [wearer], "tags": [{"device_id": "t", "wearer_id": "w"}]}))
    good = {"device_id": "t", "report_id": "1", "fix_time": "2026-01-01T00:00:00Z", "lat_deg": 1, "lon_deg": 1}
    lines = [good | {"accuracy_m": 1}, good | {"accuracy_m": 1, "lat_deg": 91}]
    reports.write_text("".join(json.dumps(line) + "\n" for line in lines))
    outcome = tandem(command, "--scenario", str(scenario), "--reports", str(reports))
    assert outcome.returncode == 2 and not outcome.stdout
    assert outcome.stderr.startswith(f"{reports}: line 2: lat_deg: ")
