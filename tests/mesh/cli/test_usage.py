"""Asked wrongly, the command says what is wrong in one line and exits with 2."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from services.cli.stack import processes
from services.cli.stack.mesh import locked
from tests.support.common.mesh import tandem


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nonsense",), "No such command 'nonsense'."),
        (("up", "--partitions", "0"), "--partitions"),
        (("up", "--partitions", "many"), "--partitions"),
        (("up", "--exit"), "--exit goes with --demo"),
        (
            ("device-token", "tag-1", "--revoke", "--keep-older-for-s", "60"),
            "--keep-older-for-s doesn't go with --revoke",
        ),
        (("device-token", "tag-1", "--keep-older-for-s", "604801"), "--keep-older-for-s"),
        (("backtest", "--scenario", "s.json"), "--reports"),
        (("backtest", "--scenario", "s", "--reports", "r", "--against", "b"), "--against needs --rules"),
    ],
)
def test_wrong_arguments(arguments: tuple[str, ...], said: str) -> None:
    outcome = tandem(*arguments)
    assert outcome.returncode == 2 and not outcome.stdout
    assert said in outcome.stderr and outcome.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [("demo",), ("incidents",), ("explain", "alert-1")], ids=lambda one: one[0])
def test_without_a_mesh(command: tuple[str, ...], tmp_path: Path) -> None:
    outcome = tandem(*command, "--dir", str(tmp_path))
    assert (outcome.returncode, outcome.stderr) == (2, f"no mesh runs on {tmp_path}: start one with `tandem up`\n")


def test_a_folder_takes_one_mesh_at_a_time(tmp_path: Path) -> None:
    with locked(tmp_path):
        outcome = tandem("up", "--dir", str(tmp_path))
    assert (outcome.returncode, outcome.stderr) == (2, f"a mesh runs on {tmp_path} already\n")


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    base_port = processes.free_base_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", base_port + 4))
        taken.listen()
        outcome = tandem("up", "--dir", str(tmp_path), "--base-port", str(base_port))
    assert outcome.returncode == 2 and f"port {base_port + 4} is in use" in outcome.stderr


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
