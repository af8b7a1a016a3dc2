"""A process that a preloader forks is, to all who look, the one that `python -m` starts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.common import preloaded
from tests.support.common.mesh import environment
from tests.support.common.processes import Service

WITHIN_S = 60.0


def started(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = (sys.executable, "-m", module, *arguments)
    env = environment() | settings
    return subprocess.run(
        command, cwd=preloaded.ROOT, env=env, capture_output=True, text=True, timeout=WITHIN_S, check=False
    )


def forked(module: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return preloaded.run(module, arguments, environment() | settings, WITHIN_S)


@pytest.mark.parametrize(
    ("module", "arguments", "settings"),
    [
        ("services.cli", ("--help",), {"COLUMNS": "120"}),
        ("services.dispatch", ("--leg", "nobody"), {}),
        ("services.ingest", (), {"TANDEM_PORT": "nonsense"}),
    ],
)
def test_it_takes_and_says_and_ends_with_the_same(
    module: str, arguments: tuple[str, ...], settings: dict[str, str]
) -> None:
    expected, found = started(module, *arguments, **settings), forked(module, *arguments, **settings)
    assert (found.returncode, found.stdout) == (expected.returncode, expected.stdout)
    # Before it, a traceback names the frames of whoever started it.
    assert found.stderr.splitlines()[-3:] == expected.stderr.splitlines()[-3:]
    assert found.stdout or found.stderr


def test_it_is_killed_and_started_again_as_another(tmp_path: Path) -> None:
    # It waits for a server that there isn't.
    settings = {"TANDEM_PORT": "0", "TANDEM_NATS_URL": "nats://127.0.0.1:1", "TANDEM_DEV_SECRET": "secret"}
    service = Service("services.ingest", settings, tmp_path / "log")
    service.start()
    first = service.pid
    service.kill()
    service.start()
    assert service.runs and service.pid != first
    os.kill(service.pid, signal.SIGKILL)
    assert service.exit_code() == -signal.SIGKILL


def test_what_lasts_too_long_is_ended() -> None:
    settings = {"TANDEM_PORT": "0", "TANDEM_NATS_URL": "nats://127.0.0.1:1", "TANDEM_DEV_SECRET": "secret"}
    with pytest.raises(subprocess.TimeoutExpired):
        preloaded.run("services.ingest", (), environment() | settings, timeout_s=0.5)
