"""A process without heartbeats counts as dead or only as busy."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.local import supervisor
from services.local.supervisor import SILENT_AFTER_S, STARTING_S, STARVED_AFTER_S, Activity, Silence, is_dead

BUSY = "while True: pass"
SLEEPS = "import time; time.sleep(600)"


@pytest.mark.parametrize(
    ("silent_s", "idle_s", "has_begun", "dead"),
    [
        (SILENT_AFTER_S, SILENT_AFTER_S, True, True),
        (SILENT_AFTER_S - 0.1, SILENT_AFTER_S, True, False),
        (SILENT_AFTER_S, 0.5, True, False),  # a working process may wait at any instant
        (STARVED_AFTER_S - 0.1, 0.0, True, False),
        (STARVED_AFTER_S, 0.0, True, True),
        (STARTING_S - 0.1, STARTING_S, False, False),
        (STARTING_S, STARTING_S, False, True),
        (10 * STARTING_S, 0.0, False, False),  # the process recovers a large store
    ],
)
def test_an_idle_process_is_dead_sooner_than_a_busy_one(
    silent_s: float, idle_s: float, has_begun: bool, dead: bool
) -> None:
    assert is_dead(silent_s, idle_s, has_begun) is dead


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen((sys.executable, "-c", BUSY)) as process:
        yield process
        process.kill()


def idle_for(activity: Activity, within_s: float = 10.0) -> bool:
    """Whether the process is idle for 0.3 s at some time within `within_s`."""
    until_s = time.monotonic() + within_s
    while time.monotonic() < until_s:
        if activity.idle_s() > 0.3:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="needs Linux's /proc")
def test_a_busy_process_is_idle_once_it_is_stopped(busy: subprocess.Popen[bytes]) -> None:
    activity = Activity(busy.pid)
    assert not idle_for(activity, within_s=1.0)
    busy.send_signal(signal.SIGSTOP)
    assert idle_for(activity)


def test_a_process_of_unknown_activity_counts_as_busy() -> None:
    activity = Activity(2**31 - 1)
    time.sleep(0.1)
    assert activity.idle_s() < 0.05


def test_silence_counts_from_zero_after_the_observer_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr("services.local.supervisor.time.monotonic", lambda: now_s)
    silence = Silence()
    silence.heard()
    for _ in range(3):
        now_s += supervisor.CHECK_S
        silence.check()
    now_s += supervisor.CHECK_S
    assert silence.check() == 4 * supervisor.CHECK_S
    now_s += 60.0  # the whole machine was asleep
    assert silence.check() == 0.0
