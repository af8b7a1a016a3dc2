"""Supervised processes are restarted when they die, end in bounded time, and never outlive their supervisor."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.local import supervisor as supervision
from services.local.supervisor import SILENT_AFTER_S, Program, child_guard, supervisor
from tests.support.common.mesh import environment, is_alive

PATIENCE_S = 90.0
SLEEPER = (sys.executable, "-c", "import time; time.sleep(600)")
PARENT = """
import asyncio, sys
from pathlib import Path
from services.local.supervisor import Program, child_guard, supervisor

async def main():
    async with child_guard() as guard, supervisor(guard, lambda line: None) as supervised:
        for name in ("a", "b"):
            sleeper = (sys.executable, "-c", "import time; time.sleep(600)")
            supervised.start(Program(name, sleeper, {}, Path(sys.argv[1])))
        while len(supervised.pids) < 2:
            await asyncio.sleep(0.01)
        print(*supervised.pids.values(), flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0.02)


async def test_a_killed_process_is_restarted_and_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    async with child_guard() as guard, supervisor(guard, lines.append) as supervised:
        supervised.start(Program("sleeper", SLEEPER, environment(), tmp_path / "log"))
        await until(lambda: "sleeper" in supervised.pids)
        for _ in range(2):
            pid = supervised.pids["sleeper"]
            os.kill(pid, signal.SIGKILL)
            await until(lambda pid=pid: supervised.pids.get("sleeper", pid) != pid)  # type: ignore[misc]
        last = supervised.pids["sleeper"]
        assert is_alive(last)
    assert lines == ["sleeper ended by SIGKILL; restarting it"] * 2
    assert not is_alive(last) and not supervised.pids


async def test_a_stopped_process_is_restarted(tmp_path: Path) -> None:
    async with child_guard() as guard, supervisor(guard, lambda line: None) as supervised:
        supervised.start(Program("sleeper", SLEEPER, environment(), tmp_path / "log"))
        await until(lambda: "sleeper" in supervised.pids)
        for number in (signal.SIGCONT, signal.SIGSTOP):  # the first ends by SIGTERM, the second can't
            pid = supervised.pids["sleeper"]
            os.kill(pid, number)
            await supervised.restart("sleeper")
            assert not is_alive(pid)
            await until(lambda pid=pid: supervised.pids.get("sleeper", pid) != pid)  # type: ignore[misc]


async def test_a_failing_process_is_restarted_with_growing_delays(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with child_guard() as guard, supervisor(guard, lambda line: None) as supervised:
        fail = (sys.executable, "-S", "-c", "print('tried', flush=True); raise SystemExit(3)")
        supervised.start(Program("failing", fail, environment(), log))
        await until(lambda: log.exists() and log.read_text().count("tried") >= 3)
        await asyncio.sleep(1.0)
        # At a constant 0.1 s this would be ten more.
        assert log.read_text().count("tried") <= 6


async def test_children_die_with_a_killed_parent(tmp_path: Path) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path / "log"), stdout=asyncio.subprocess.PIPE, env=environment()
    )
    assert parent.stdout
    pids = [int(pid) for pid in (await asyncio.wait_for(parent.stdout.readline(), PATIENCE_S)).split()]
    assert len(pids) == 2 and all(is_alive(pid) for pid in pids)
    parent.kill()
    await parent.wait()
    await until(lambda: not any(is_alive(pid) for pid in pids))


BEATER = """
from services.common.observability import health
import time
health.start()
time.sleep(1.0)
print("beaten", flush=True)
time.sleep(600)
"""


async def test_a_process_without_heartbeats_is_killed_and_reported(tmp_path: Path) -> None:
    lines: list[str] = []
    async with child_guard() as guard, supervisor(guard, lines.append) as supervised:
        beater = (sys.executable, "-c", BEATER)
        supervised.start(Program("beater", beater, environment(), tmp_path / "log", beats=True))
        await until(lambda: "beater" in supervised.pids)
        pid = supervised.pids["beater"]
        await asyncio.sleep(SILENT_AFTER_S + 2)
        assert supervised.pids == {"beater": pid}, "as long as it beats it is left alone"
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: supervised.pids.get("beater", pid) != pid)
    assert "no heartbeat" in lines[0] and lines[1:] == ["beater ended by SIGKILL; restarting it"]


async def test_a_process_that_is_asked_to_end_is_not_reported_as_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervision, "STOP_S", SILENT_AFTER_S + 2)
    lines: list[str] = []
    log = tmp_path / "log"
    async with child_guard() as guard, supervisor(guard, lines.append) as supervised:
        beater = (sys.executable, "-c", BEATER)
        supervised.start(Program("beater", beater, environment(), log, beats=True))
        await until(lambda: log.exists() and "beaten" in log.read_text())
        # As idle as an interpreter that waits for its threads to end.
        os.kill(supervised.pids["beater"], signal.SIGSTOP)
    assert lines == []


def session_niceness(pid: int) -> str:
    """Niceness of a process's session as Linux shows it; empty where it has none."""
    shown = Path(f"/proc/{pid}/autogroup")
    return shown.read_text().strip().partition(" ")[2] if shown.exists() else ""


async def test_a_less_urgent_process_and_its_session_give_way(tmp_path: Path) -> None:
    async with child_guard() as guard, supervisor(guard, lambda line: None) as supervised:
        for name, niceness in (("urgent", 0), ("recorder", 7)):
            program = Program(name, SLEEPER, environment(), log=tmp_path / "log", niceness=niceness)
            supervised.start(program)
        await until(lambda: len(supervised.pids) == 2)
        urgent, recorder = supervised.pids["urgent"], supervised.pids["recorder"]
        own = os.getpriority(os.PRIO_PROCESS, 0)
        await until(lambda: os.getpriority(os.PRIO_PROCESS, recorder) == min(own + 7, 19))
        assert os.getpriority(os.PRIO_PROCESS, urgent) == own
        await until(lambda: session_niceness(recorder) in ("", "nice 7"))
        assert session_niceness(urgent) in ("", "nice 0")
