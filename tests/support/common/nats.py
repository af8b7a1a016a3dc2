"""A real nats-server for tests, on free ports, that can be killed and restarted on the same store."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from services.common.messaging import permissions
from services.local import nats_server
from tests.support.common.ports import free_port

STREAM_BYTES = 64 << 20
"""Size of each stream of a test, which the server reserves on the disk."""
TESTER = permissions.NatsUser("tester", (">",), (">",))
SERVER_PARTITIONS = 5
"""Number of partitions for which the server's users have permissions."""
LISTENING_WITHIN_S = 90.0


class TestServer:
    """A nats-server process with its store."""

    __test__ = False

    def __init__(self, folder: Path, certificates: Path | None = None) -> None:
        self._port = free_port()
        self._command, server = nats_server.configure_server(
            folder,
            self._port,
            free_port(),
            partitions=SERVER_PARTITIONS,
            more=[TESTER],
            certificates=certificates,
        )
        self._process: subprocess.Popen[bytes] | None = None
        self.url = server.url_as(TESTER.name)
        """URL for the test itself, which may do everything."""
        self.url_as = server.url_as
        """Returns the URL for a user of the flow table."""
        self.bus_as = server.bus_as
        self.monitor_url = server.monitor_url

    @property
    def pid(self) -> int:
        """Process id of the running server."""
        assert self._process
        return self._process.pid

    def start(self) -> None:
        """Starts the server. Clients retry until they can connect."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def wait_until_listening(self) -> None:
        """Returns once the server accepts connections. An earlier client would retry only a quarter of a second later."""
        until = time.monotonic() + LISTENING_WITHIN_S
        while True:
            with suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", self._port)):
                return
            assert self._process and self._process.poll() is None and time.monotonic() < until
            time.sleep(0.005)

    def freeze(self) -> None:
        """Sends SIGSTOP: connections stay open, but nothing is stored or answered. A `kill` then loses the messages sent since."""
        assert self._process
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Sends SIGCONT: the server continues as if nothing had happened."""
        assert self._process
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """Sends SIGKILL and waits for the end of the process."""
        assert self._process
        self._process.kill()
        self._process.wait()
        self._process = None

    async def restart_after(self, seconds: float) -> None:
        """Kills the server now and restarts it later on the same store."""
        self.kill()
        await asyncio.sleep(seconds)
        self.start()


@contextmanager
def running_server(folder: Path) -> Iterator[TestServer]:
    """A running server, killed at the end."""
    server = TestServer(folder)
    server.start()
    try:
        server.wait_until_listening()
        yield server
    finally:
        if server._process:
            server.kill()
