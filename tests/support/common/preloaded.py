"""Fast starts of `python -m MODULE`: a preloader process that has done the imports forks the new process."""

from __future__ import annotations

import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

ROOT = Path(__file__).parents[3]
ANSWER_BYTES = 1 << 10
LOADED_WITHIN_S = 180.0


_is_on = False


def turn_on() -> None:
    """Turns forking on for later starts, but only on Linux. On other systems, loaded libraries may not survive a fork.

    Benchmarks leave it off, because they measure normal starts.
    """
    global _is_on  # noqa: PLW0603
    _is_on = sys.platform == "linux"


class Process(Protocol):
    """The part of subprocess.Popen's interface that tests use."""

    pid: int

    def poll(self) -> int | None:
        """Exit code of the process, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end of the process and returns its exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""

    def send_signal(self, sig: int) -> None:
        """Sends a signal to the process, if it runs."""

    def kill(self) -> None:
        """Sends SIGKILL to the process, if it runs."""


def start(module: str, arguments: Sequence[str], env: Mapping[str, str], output: IO[Any], errors: IO[Any]) -> Process:
    """Starts `python -m module arguments` in the project's folder. `env` is its whole environment."""
    if not _is_on:
        command = (sys.executable, "-m", module, *arguments)
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=errors)
    return _preloader(module).fork(arguments, env, output, errors)


def run(
    module: str, arguments: Sequence[str], env: Mapping[str, str], timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m module arguments` to its end and returns its output. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = start(module, arguments, env, output, errors)
        try:
            code = process.wait(timeout_s)
        finally:
            process.kill()
            process.wait()
        for file in (output, errors):
            file.seek(0)
        return subprocess.CompletedProcess([module, *arguments], code, output.read(), errors.read())


class _Forked:
    """A process that a preloader has forked. The preloader reaps it only after its end, so that its process id stays its own."""

    def __init__(self, pid: int, preloader: _Preloader) -> None:
        self.pid = pid
        self._preloader = preloader
        self._ended = os.pidfd_open(pid)
        self._code: int | None = None

    def poll(self) -> int | None:
        """See Process."""
        return self._wait(0)

    def wait(self, timeout: float | None = None) -> int:
        """See Process."""
        code = self._wait(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(self._preloader.module, timeout or 0)
        return code

    def _wait(self, timeout_s: float | None) -> int | None:
        if self._code is None:
            poll = select.poll()
            poll.register(self._ended, select.POLLIN)
            if poll.poll(None if timeout_s is None else 1000 * timeout_s):
                self._code = self._preloader.ask({"wait": self.pid})["code"]
                os.close(self._ended)
        return self._code

    def send_signal(self, sig: int) -> None:
        """See Process."""
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        """See Process."""
        self.send_signal(signal.SIGKILL)


class _Preloader:
    """A running preloader, which ends together with this process."""

    def __init__(self, module: str) -> None:
        self.module = module
        self._lock = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")}
        with theirs:
            # The preloader lives as long as this process, so no code waits for its end.
            self._process = subprocess.Popen(
                (sys.executable, "-m", "tests.support.common.preloader", module, str(theirs.fileno())),
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self._socket.settimeout(LOADED_WITHIN_S)
        assert self._socket.recv(ANSWER_BYTES), f"{module} can't be loaded"

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> dict[str, Any]:
        """Sends a request with open files to the preloader and returns its answer."""
        with self._lock:
            socket.send_fds(self._socket, [json.dumps(request).encode()], files)
            answer = self._socket.recv(ANSWER_BYTES)
        assert answer, f"the preloader of {self.module} has ended"
        fields: dict[str, Any] = json.loads(answer)
        return fields

    def fork(self, arguments: Sequence[str], env: Mapping[str, str], output: IO[Any], errors: IO[Any]) -> _Forked:
        """Forks a new process with these arguments, environment and output files."""
        request = {"arguments": list(arguments), "environment": dict(env), "folder": str(ROOT)}
        return _Forked(self.ask(request, [output.fileno(), errors.fileno()])["pid"], self)


@functools.cache
def _preloader(module: str) -> _Preloader:
    return _Preloader(module)
