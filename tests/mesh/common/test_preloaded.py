"""A process that a preloader forks behaves like one that `python -m` starts."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.common import preloaded
from tests.support.common.mesh import environment
from tests.support.common.processes import Service

WITHIN_S = 60.0
_TIMESTAMP = re.compile(r', "timestamp": "[^"]*"')


def started(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", module, *arguments)
    env = environment() | settings
    return subprocess.run(
        command, cwd=preloaded.ROOT, env=env, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def forked(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run(module, arguments, environment() | settings, timeout_s=WITHIN_S)


@pytest.mark.parametrize(
    ("module", "arguments", "settings"),
    [
        ("services.cli", ("--help",), {"COLUMNS": "120"}),
        ("services.dispatch", ("--leg", "nobody"), {}),
        ("services.ingest", (), {"TANDEM_PORT": "nonsense"}),
    ],
)
def test_a_forked_process_has_the_same_output_and_exit_code(
    module: str, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    expected, actual = started(module, *arguments, **settings), forked(module, *arguments, **settings)
    assert (actual.returncode, actual.stdout) == (expected.returncode, expected.stdout)
    # Earlier lines of a traceback show the frames of the starting process, which differ, as does the time of a log line.
    last = [_TIMESTAMP.sub("", "\n".join(done.stderr.splitlines()[-3:])) for done in (actual, expected)]
    assert last[0] == last[1]
    assert actual.stdout or actual.stderr


def test_a_killed_process_restarts_under_another_id(tmp_path: Path) -> None:
    # The process waits for a server that doesn't exist.
    settings = {"TANDEM_PORT": "0", "TANDEM_NATS_URL": "nats://127.0.0.1:1", "TANDEM_DEV_SECRET": "secret"}
    service = Service("services.ingest", settings, tmp_path / "log")
    service.start()
    first = service.pid
    service.kill()
    service.start()
    assert service.runs and service.pid != first
    os.kill(service.pid, signal.SIGKILL)
    assert service.exit_code() == -signal.SIGKILL


def test_a_process_that_takes_too_long_is_ended() -> None:
    settings = {"TANDEM_PORT": "0", "TANDEM_NATS_URL": "nats://127.0.0.1:1", "TANDEM_DEV_SECRET": "secret"}
    with pytest.raises(subprocess.TimeoutExpired):
        preloaded.run("services.ingest", (), environment() | settings, timeout_s=0.5)
