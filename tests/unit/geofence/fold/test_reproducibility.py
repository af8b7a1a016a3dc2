"""One log gives one result, whatever lies between two checkpoints and whichever version of Python folds it.

The logs are those of all scenarios, and of days of real tracks (GeoLife). Every output counts to the last bit, and so does the
state at the end.
"""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from services.cli.simulate.backtest import Backtest
from services.client.scenario import Scenario
from services.geofence.domain import codec, fold
from services.geofence.domain.alerts import Alert, Output, Request
from services.geofence.domain.entries import Body, Case, Demand, Entry, Positions, Ring, Target
from services.geofence.domain.geometry import PERSON
from services.geofence.domain.state import State
from tests.support.geofence import geolife, scenarios
from tests.support.geofence.fold_digests import digest

ROOT = Path(__file__).parents[4]
OTHERS = ("python3.12", "python3.13")
SPACINGS = (0, 1, 7)
TURNED_EVERY = 13
KEPT_IN_ORDER = {"tracks", "silences", "equipment_reports", "late_evidence", "notices"}
SESSIONS = 6
RINGS = (Ring(1_000_000, Demand.WARN), Ring(500_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))
BATCHES = (1, 2, 5)
Log = list[Entry]


class Recorded(Backtest):
    """A back-test that records the entries of the log."""

    def __init__(self, records: Scenario) -> None:
        super().__init__(records)
        self.entries: Log = []

    def _enter(self, stamp_ms: int, body: Body) -> Iterator[dict[str, Any]]:
        self.entries.append(Entry(self.state.sequence + 1, stamp_ms, body))
        return super()._enter(stamp_ms, body)


def log_of(path: Path) -> Log:
    """The log of a scenario. Its first entry demands this fold version."""
    scenario = scenarios.load(path)
    recorded = Recorded(scenario.records)
    list(recorded.begin(scenario.lines))
    for line in scenario.lines:
        list(recorded.arrive(line))
    return recorded.entries


def real_log(session: geolife.Session, batch: int) -> Log:
    """The log of two people who met, with reports in batches of a given size."""
    rows = geolife.merged(*geolife.session_tracks(session))
    first_ms = round(rows[0][1].epoch_s * 1000)
    person = Target("she", True, (geolife.PROTECTED_DEVICE_ID,), PERSON)
    case = Case("c", 1, "o", "w", (geolife.WEARER_DEVICE_ID,), (person,), RINGS, first_ms - 1000, first_ms + 86_400_000)
    entries = [Entry(1, first_ms, case)]
    for first in range(0, len(rows), batch):
        part = rows[first : first + batch]
        times_ms = [round(fix.epoch_s * 1000) for _, fix in part]
        body = Positions(
            [device_id for device_id, _ in part],
            [f"r{first + i}" for i in range(len(part))],
            times_ms,
            [round(fix.lat_deg * 1e7) for _, fix in part],
            [round(fix.lon_deg * 1e7) for _, fix in part],
            [5_000] * len(part),
            0,
        )
        entries.append(Entry(len(entries) + 1, max(times_ms) + 300, body))
    return entries


@pytest.fixture(scope="module")
def logs_by_scenario() -> dict[str, Log]:
    return {path.stem: log_of(path) for path in scenarios.files()}


@pytest.fixture(scope="module")
def logs(logs_by_scenario: dict[str, Log]) -> list[Log]:
    return list(logs_by_scenario.values())


@pytest.fixture(scope="module")
def real_logs() -> list[Log]:
    geolife.require_geolife()
    sessions = sorted(geolife.load_sessions(), key=lambda session: session.t1_s - session.t0_s)[:SESSIONS]
    return [real_log(session, batch) for session in sessions for batch in BATCHES]


def folded(log: Log) -> list[Output]:
    """All outputs of a log."""
    state = State(0, "log")
    return [output for entry in log for output in fold.step(state, entry)]


def check_spacings(logs: list[Log]) -> None:
    for log in logs:
        assert {digest(log, spacing) for spacing in SPACINGS} == {digest(log, 0)}


def turn_maps(value: Any, name: str = "") -> None:
    """Turns the order of all maps of a state round, but of those that a checkpoint holds as lists."""
    if name in KEPT_IN_ORDER:
        return
    if isinstance(value, dict):
        for key, item in list(value.items()):
            turn_maps(item, str(key))
        items = list(reversed(value.items()))
        value.clear()
        value.update(items)
    elif is_dataclass(value):
        for field in fields(value):
            turn_maps(getattr(value, field.name), field.name)


def check_other_python(logs: list[Log], program: str, folder: Path) -> None:
    executable = shutil.which(program)
    # A version manager may put a name on PATH for a version that isn't active, so the name alone proves nothing.
    if not executable or subprocess.run((executable, "-c", ""), capture_output=True, check=False).returncode:
        pytest.skip(f"there is no {program} on PATH")
    (folder / "logs").write_bytes(pickle.dumps(logs, protocol=4))
    command = (executable, "-m", "tests.support.geofence.fold_digests", str(folder / "logs"), "0", "7")
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    here = [digest(log, 0) for log in logs]
    assert [line.split() for line in done.stdout.splitlines()] == [[expected, expected] for expected in here]


def test_checkpoints_anywhere_change_nothing(logs: list[Log]) -> None:
    assert sum(map(len, logs)) > 1000
    check_spacings(logs)


def test_checkpoints_anywhere_change_nothing_on_real_tracks(real_logs: list[Log]) -> None:
    check_spacings(real_logs)


def test_the_order_of_maps_that_a_checkpoint_loses_decides_nothing(logs: list[Log]) -> None:
    for log in logs:
        state, outputs = State(0, "log"), list[Output]()
        for number, entry in enumerate(log):
            if number % TURNED_EVERY == 0:
                state = codec.decode(codec.encode(state))
                turn_maps(state)
            outputs += fold.step(state, entry)
        assert outputs == folded(log)


@pytest.mark.parametrize("program", OTHERS)
def test_another_python_gives_the_same_digest(logs: list[Log], program: str, tmp_path: Path) -> None:
    check_other_python(logs, program, tmp_path)


@pytest.mark.parametrize("program", OTHERS)
def test_another_python_gives_the_same_digest_on_real_tracks(
    real_logs: list[Log], program: str, tmp_path: Path
) -> None:
    check_other_python(real_logs, program, tmp_path)


def test_the_logs_hold_requests_notices_and_contacts(logs: list[Log]) -> None:
    outputs = [output for log in logs for output in folded(log)]
    alerts = [output for output in outputs if isinstance(output, Alert)]
    assert sum(isinstance(output, Request) for output in outputs) > 300
    assert sum(alert.notice is not None for alert in alerts) > 10
    assert sum(alert.contact is not None for alert in alerts) > 10


def test_a_missing_report_changes_the_digest(logs: list[Log]) -> None:
    longest = max(logs, key=len)
    assert digest(longest[:-1], 0) != digest(longest, 0)


def test_the_digest_does_not_depend_on_the_hash_seed(logs: list[Log], tmp_path: Path) -> None:
    (tmp_path / "logs").write_bytes(pickle.dumps(logs, protocol=4))
    command = (sys.executable, "-m", "tests.support.geofence.fold_digests", str(tmp_path / "logs"), "0")
    digests = {
        subprocess.run(
            command, cwd=ROOT, env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert digests == {"".join(f"{digest(log, 0)}\n" for log in logs)}
