"""A service of the mesh as a separate process, which a test can kill and restart."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.common import preloaded
from tests.support.common.preloaded import Process

READY_WITHIN_S = 90.0
# By default, a client that connects too early would retry only after a second.
_CONNECTS_SOON = [
    (f"grpc.{which}_reconnect_backoff_ms", ms) for which, ms in (("initial", 50), ("min", 1_000), ("max", 50))
]


class Service:
    """Process of `python -m <module> <arguments>` with these settings, which logs to a file."""

    def __init__(self, module: str, env: Mapping[str, str], log: Path, arguments: Sequence[str] = ()) -> None:
        self._module = module
        self._arguments = arguments
        self._env = {name: value for name, value in os.environ.items() if not name.startswith("TANDEM_")} | dict(env)
        self._log = log
        self._started_at_byte = 0
        self._process: Process | None = None

    @property
    def pid(self) -> int:
        """Process id of the running service."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Starts the process. Call `ready` to wait until it serves."""
        with self._log.open("ab") as log:
            self._started_at_byte = log.tell()
            self._process = preloaded.start(self._module, self._arguments, self._env, output=log, errors=log)

    async def ready(self, address: str) -> None:
        """Returns once the service says SERVING at this address. Fails with its log if it ends or takes too long."""
        until = time.monotonic() + READY_WITHIN_S
        async with grpc.aio.insecure_channel(address, _CONNECTS_SOON) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while time.monotonic() < until and self._process and self._process.poll() is None:
                try:
                    answer = await stub.Check(  # type: ignore[attr-defined]
                        health_pb2.HealthCheckRequest(), timeout=2, wait_for_ready=True
                    )
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return
                except grpc.aio.AioRpcError:
                    pass
                await asyncio.sleep(0.05)
        raise AssertionError(f"{self._module} isn't ready:\n{self.log()}")

    @property
    def runs(self) -> bool:
        """Whether the process was started and hasn't ended."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end of the process, if it runs."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def stop(self) -> int:
        """Sends SIGTERM and returns the exit code."""
        assert self._process
        self._process.send_signal(signal.SIGTERM)
        return self.exit_code()

    def exit_code(self) -> int:
        """Waits for the end of the process and returns its exit code."""
        assert self._process
        code = self._process.wait(timeout=READY_WITHIN_S)
        self._process = None
        return code

    def log(self) -> str:
        """The service's log so far."""
        return self._log.read_text()

    async def logged(self, event: str) -> None:
        """Returns once the service has logged an event since its last start. Fails with its log if that takes too long."""
        until = time.monotonic() + READY_WITHIN_S
        while event.encode() not in self._log.read_bytes()[self._started_at_byte :]:
            assert time.monotonic() < until, f"{self._module} hasn't logged {event}:\n{self.log()}"
            await asyncio.sleep(0.05)


@contextmanager
def spawn(module: str, env: Mapping[str, str], log: Path) -> Iterator[Service]:
    """A started service, killed at the end."""
    service = Service(module, env, log)
    service.start()
    try:
        yield service
    finally:
        service.kill()
