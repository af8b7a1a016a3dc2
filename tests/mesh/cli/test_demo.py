"""`tandem up` with a whole mesh, and the demo and replays on it."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import stat
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from services.local import processes
from tests.support.common.mesh import PATIENCE_S, RunningMesh, is_alive, running_mesh, tandem
from tests.support.geofence import geolife

RATE = 60
OF_SILENCE = {"SILENT", "HEARD_AGAIN", "UNKNOWN_NEAR", "PROTECTED_DEVICE_LOST"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningMesh]:
    with running_mesh(
        tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", str(RATE), "--service-area", "world"
    ) as running:
        yield running


def test_mesh_json_lists_all_processes_and_is_readable_by_its_owner_only(mesh: RunningMesh) -> None:
    path = mesh.folder / "mesh.json"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    names = {service.name for service in processes.SERVICES}
    assert set(mesh.now.addresses) == names and set(mesh.now.pids) == names | {
        "nats",
        processes.CONSOLE_PROCESS.name,
        processes.FIELD_PROCESS.name,
    }
    assert all(is_alive(pid) for pid in mesh.now.pids.values())
    assert (mesh.now.clock.rate, mesh.now.partitions) == (RATE, 1)


def test_the_demo_ends_with_both_legs_acknowledged(mesh: RunningMesh) -> None:
    outcome = tandem("demo", "--dir", str(mesh.folder), "--json")
    assert outcome.returncode == 0, outcome.stderr
    output = json.loads(outcome.stdout)
    assert set(output) == {"match_ms", "incidents"} and output["match_ms"] > 0
    (incident,) = output["incidents"]
    assert set(incident) == {"incident_id", "order_ids", "opened_at", "exercise", "legs", "warnings"}
    assert {leg["agency"] for leg in incident["legs"]} == {"probation", "police"}
    fields = {"agency", "destination", "state", "report_to_published_ms", "acknowledged_at"}
    for leg in incident["legs"]:
        assert set(leg) == fields and leg["state"] == "STOOD_DOWN" and leg["acknowledged_at"]
        assert leg["report_to_published_ms"] > 0
    (warning,) = incident["warnings"]
    assert warning["acknowledged_at"]

    listed = json.loads(tandem("incidents", "--dir", str(mesh.folder), "--json").stdout)
    (same,) = [other for other in listed["incidents"] if other["incident_id"] == incident["incident_id"]]
    # At this rate a receipt of the warning's end may arrive between the two commands.
    assert {**same, "warnings": []} == {**incident, "warnings": []}


def test_every_warning_of_the_demo_is_received_before_the_mesh_stops(tmp_path: Path) -> None:
    database = tmp_path / "m" / "data" / "dispatch-warning" / "warning.sqlite3"
    unsettled = "select count(*) from messages where receipt_due_ms is not null or state = 'waiting'"
    with running_mesh(tmp_path / "m", "--demo", "--clock-rate", "4") as played:
        deadline = time.monotonic() + PATIENCE_S
        # The last notice is sent 20 s of mesh time after the previous one, when the demo's steps are over.
        while "The mesh runs" not in played.output or _rows(database, unsettled) != [(0,)]:
            assert time.monotonic() < deadline, played.output
            time.sleep(0.2)
        assert _rows(database, "select flag from told") == [(0,)]
        assert _rows(database, "select count(*) from covered_alerts where not acknowledged") == [(0,)]
        assert _rows(database, "select count(*) from covered_alerts") > [(3,)], "of the rings round her and her home"


def _rows(database: Path, query: str) -> list[Any]:
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


def test_a_replay_at_a_rate_other_than_the_meshs_is_refused(mesh: RunningMesh, tmp_path: Path) -> None:
    scenario, reports = _approach(tmp_path)
    outcome = tandem(
        "replay", "--scenario", scenario, "--reports", reports, "--clock-rate", "2", "--dir", str(mesh.folder)
    )
    assert outcome.returncode == 2 and f"runs at clock rate {RATE}" in outcome.stderr


def test_a_replay_gives_the_alerts_of_the_back_test(mesh: RunningMesh, tmp_path: Path) -> None:
    scenario, reports = _approach(tmp_path)
    files = ("--scenario", scenario, "--reports", reports)
    expected = [json.loads(line) for line in tandem("backtest", *files).stdout.splitlines()]
    assert {alert["kind"] for alert in expected} == {"RING_ENTERED", "CONTACT_PREDICTED", "RING_CLEARED"}
    expected = [alert for alert in expected if alert["kind"].startswith("RING_")]
    # The second run updates the first run's records, and its reports get new ids.
    for _ in range(2):
        outcome = tandem("replay", *files, "--clock-rate", str(RATE), "--json", "--dir", str(mesh.folder))
        assert outcome.returncode == 0, outcome.stderr
        output = json.loads(outcome.stdout)
        assert [_essence(alert) for alert in _of_rings(output)] == [_essence(alert) for alert in expected]
        (incident,) = _incidents_of_rings(output)
        assert all(leg["acknowledged_at"] for leg in incident["legs"])
        assert incident["opened_at"].startswith("2008-10-24T11:")


def test_a_replay_of_real_tracks_finds_the_approach_that_a_grid_misses(mesh: RunningMesh, tmp_path: Path) -> None:
    geolife.require_geolife()
    from_s, to_s = (geolife.parse_rfc3339(f"2008-10-24T11:{minute}:00Z") for minute in (20, 24))
    wearer, protected = (geolife.window(geolife.load_track(who), from_s, to_s) for who in ("002", "006"))
    scenario, reports = tmp_path / "scenario.json", tmp_path / "reports.ndjson"
    scenario.write_text(json.dumps(geolife.scenario(from_s, to_s)))
    reports.write_text("".join(f"{line}\n" for line in geolife.report_lines(wearer, protected)))
    files = ("--scenario", str(scenario), "--reports", str(reports))
    expected = [json.loads(line) for line in tandem("backtest", *files).stdout.splitlines()]
    expected = [alert for alert in expected if alert["kind"].startswith("RING_")]
    outcome = tandem("replay", *files, "--clock-rate", str(RATE), "--json", "--dir", str(mesh.folder))
    assert outcome.returncode == 0, outcome.stderr
    output = json.loads(outcome.stdout)
    assert [_essence(alert) for alert in _of_rings(output)] == [_essence(alert) for alert in expected]
    for replayed, tested in zip(_of_rings(output), expected, strict=True):
        assert abs(geolife.parse_rfc3339(replayed["at"]) - geolife.parse_rfc3339(tested["at"])) < 1
    (cleared,) = [alert for alert in output["episodes"] if (alert["kind"], alert["ring_m"]) == ("RING_CLEARED", 100)]
    assert abs(cleared["min_distance_m"] - 17.39) < 0.5
    (incident,) = _incidents_of_rings(output)
    assert {leg["agency"] for leg in incident["legs"]} == {"probation", "police"}
    assert all(leg["acknowledged_at"] for leg in incident["legs"])


def test_a_replay_puts_tags_and_devices_from_the_reports_file(mesh: RunningMesh, tmp_path: Path) -> None:
    scenario, reports = _approach(tmp_path)
    given = [
        {"kind": "tag", "device_id": "replay-tag-2", "wearer_id": "replay-wearer"},
        {"kind": "device", "device_id": "replay-phone", "person_id": "replay-person"},
    ]
    at = {"received_at": "2008-10-24T11:18:00Z"}
    lines = (
        Path(reports).read_text().replace("replay-tag", "replay-tag-2").replace('"report_id": "', '"report_id": "2-')
    )
    Path(reports).write_text("".join(json.dumps(record | at) + "\n" for record in given) + lines)
    content = json.loads(Path(scenario).read_text())
    content["protected_persons"] = [{"person_id": "replay-person", "name": "Test person"}]
    Path(scenario).write_text(json.dumps(content))
    files = ("--scenario", scenario, "--reports", reports)
    expected = [json.loads(line) for line in tandem("backtest", *files).stdout.splitlines()]
    outcome = tandem("replay", *files, "--clock-rate", str(RATE), "--json", "--dir", str(mesh.folder))
    assert outcome.returncode == 0, outcome.stderr
    replayed = [_essence(alert) for alert in _of_rings(json.loads(outcome.stdout))]
    assert ("RING_ENTERED", "replay-home", 100.0, "RESPOND") in replayed
    assert replayed == [_essence(alert) for alert in expected if alert["kind"] in ("RING_ENTERED", "RING_CLEARED")]


def _of_rings(output: dict[str, Any]) -> list[dict[str, Any]]:
    """The ring alerts. Other alerts may come of silence: between two runs, or if the machine is slow for 3 s, all devices are silent
    for minutes of mesh time."""
    return [alert for alert in output["episodes"] if alert["kind"].startswith("RING_")]


def _incidents_of_rings(output: dict[str, Any]) -> list[dict[str, Any]]:
    """The incidents with a ring alert. Checks that only silence between two runs has opened others."""
    ids = {alert["incident_id"] for alert in _of_rings(output)}
    assert {alert["kind"] for alert in output["episodes"] if alert["incident_id"] not in {"", *ids}} <= OF_SILENCE
    return [incident for incident in output["incidents"] if incident["incident_id"] in ids]


def _essence(alert: dict[str, Any]) -> tuple[object, ...]:
    """The fields of an alert that don't depend on the millisecond of a report's arrival."""
    return (alert["kind"], alert["target_id"], alert["ring_m"], alert["demand"])


def _approach(folder: Path) -> tuple[str, str]:
    """A walk past a home on a day in 2008: from 1.5 km away to 50 m, and back to 1.5 km."""
    scenario, reports = folder / "scenario.json", folder / "reports.ndjson"
    person = {"national_id": "900101-1234567", "name": "Test wearer", "birth_date": "1990-01-01"}
    home = {"place_id": "replay-home", "circle": {"lat_deg": 37.5, "lon_deg": 127.0, "radius_m": 20}}
    order = {
        "order_id": "replay-order",
        "respondent": person,
        "places": [home],
        "rings": [{"radius_m": 1000, "action": "NOTIFY"}, {"radius_m": 100, "action": "RESPOND"}],
        "valid_from": "2008-10-01T00:00:00Z",
        "valid_until": "2008-12-01T00:00:00Z",
    }
    content = {
        "wearers": [person | {"wearer_id": "replay-wearer"}],
        "tags": [{"device_id": "replay-tag", "wearer_id": "replay-wearer"}],
        "orders": [order],
    }
    scenario.write_text(json.dumps(content))
    distances_m = [1500, 900, 500, 50, 500, 900, 1500, 1500, 1500, 1500, 1500]
    lines = [
        {
            "device_id": "replay-tag",
            "report_id": str(n),
            "fix_time": f"2008-10-24T11:{20 + n // 2:02d}:{n % 2 * 30:02d}Z",
            "lat_deg": 37.5 + distance_m / 111_195,
            "lon_deg": 127.0,
            "accuracy_m": 1,
        }
        for n, distance_m in enumerate(distances_m)
    ]
    reports.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(scenario), str(reports)


def test_a_folder_keeps_its_secret_and_log_metadata_and_no_process_outlives_up(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    with running_mesh(folder) as first:
        before = first.now
        assert first.stop() == 0
    assert not any(is_alive(pid) for pid in before.pids.values())
    assert not (folder / "mesh.json").exists()

    refused = tandem("up", "--dir", str(folder), "--base-port", "0", "--clock-rate", "2")
    assert refused.returncode == 2 and "clock rate 1" in refused.stderr
    refused = tandem("up", "--dir", str(folder), "--base-port", "0", "--partitions", "3")
    assert refused.returncode == 2 and "1 partitions" in refused.stderr

    with running_mesh(folder) as second:
        after = second.now
        assert (after.dev_secret, after.clock) == (before.dev_secret, before.clock)
        os.kill(second.process.pid, signal.SIGKILL)
        second.process.wait()
        deadline = time.monotonic() + PATIENCE_S
        while any(is_alive(pid) for pid in after.pids.values()):
            assert time.monotonic() < deadline
            time.sleep(0.05)
