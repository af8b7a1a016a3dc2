"""A whole mesh for tests: `tandem up` as a separate process, whose children can be killed one by one."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from services.client import mesh
from services.client.mesh import MeshConnection
from tests.support.common import preloaded

PATIENCE_S = 180.0
TANDEM = (sys.executable, "-m", "services.cli")


def environment() -> dict[str, str]:
    """Environment of this process without the settings of a mesh."""
    return {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}


def tandem(*arguments: str, timeout_s: float = PATIENCE_S) -> subprocess.CompletedProcess[str]:
    """Runs a `tandem` command to its end."""
    return preloaded.run("services.cli", arguments, environment(), timeout_s=timeout_s)


def is_alive(pid: int) -> bool:
    """Whether a process runs. A zombie counts as dead."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not (stat.exists() and stat.read_text().rpartition(")")[2].split()[0] == "Z")


class RunningMesh:
    """A running `tandem up`."""

    def __init__(self, folder: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self._output = folder.with_suffix(".out")
        with self._output.open("ab") as output:
            self.process = subprocess.Popen(
                (*TANDEM, "up", "--dir", str(folder), "--base-port", "0", *arguments),
                stdout=output,
                stderr=output,
                env=environment() | dict(settings or {}),
            )

    @property
    def now(self) -> MeshConnection:
        """Current content of mesh.json."""
        return mesh.load(self.folder)

    @property
    def output(self) -> str:
        """Output of `tandem up` so far."""
        return self._output.read_text()

    def wait_until_up(self) -> None:
        """Returns when all services are healthy."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.folder / "mesh.json").exists():
            assert self.process.poll() is None, self._output.read_text()
            assert time.monotonic() < deadline, self._output.read_text()
            time.sleep(0.05)

    def kill(self, *names: str) -> dict[str, int]:
        """Sends SIGKILL to processes of the mesh and returns the process ids that they had."""
        pids = {name: self.now.pids[name] for name in names}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        return pids

    async def wait_until_returned(self, killed: dict[str, int]) -> None:
        """Returns when each killed process runs again under a new process id."""
        async with asyncio.timeout(PATIENCE_S):
            while any(self.now.pids.get(name, pid) == pid for name, pid in killed.items()):  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        self.process.terminate()
        return self.process.wait(PATIENCE_S)


@contextmanager
def running_mesh(folder: Path, *arguments: str, settings: Mapping[str, str] | None = None) -> Iterator[RunningMesh]:
    """A healthy mesh, stopped at the end."""
    running = RunningMesh(folder, *arguments, settings=settings)
    try:
        running.wait_until_up()
        yield running
    finally:
        if running.process.poll() is None:
            running.stop()
