"""The bus closes each socket that it opened, also if the server hangs, and connects once more after each error.

Python reports an open socket in some later test, and a server keeps it.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import urlparse

import pytest
from structlog.testing import capture_logs

from services.common.certificates import Files, client_context
from services.common.messaging import bus as buses
from services.common.messaging.bus import ConnectionClosed, ResettingTransport
from services.common.observability import outages
from services.common.observability.outages import Outages
from services.local import authority as authorities
from tests.support.common.certificates import Authority
from tests.support.common.ports import free_port
from tests.support.serving import serving

WITHIN_S = 10.0
UNREAD = bytes(64 << 20)
"""More data than the system keeps for a connection whose server reads nothing."""
SERVER = "spiffe://tandem/service/nats"


class SilentServer:
    """A server that accepts connections and never greets."""

    def __init__(self) -> None:
        self.port = free_port()
        self.accepted = asyncio.Semaphore(0)
        self.ended = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        """Reads a connection to its end."""
        self.accepted.release()
        await reader.read()
        self.ended.release()


@asynccontextmanager
async def silent_server() -> AsyncIterator[SilentServer]:
    server = SilentServer()
    async with serving(server.serve, "127.0.0.1", server.port):
        yield server


async def test_a_connect_that_is_cancelled_leaves_no_socket() -> None:
    async def connect(url: str) -> None:
        async with buses.connect(url, "test"):
            raise AssertionError("the server never greets")

    async with silent_server() as server, asyncio.timeout(WITHIN_S):
        connecting = asyncio.create_task(connect(f"nats://127.0.0.1:{server.port}"))
        await server.accepted.acquire()
        connecting.cancel()
        await asyncio.wait([connecting])
        await server.ended.acquire()


async def test_a_new_connection_of_a_transport_closes_the_one_before() -> None:
    async with silent_server() as server, asyncio.timeout(WITHIN_S):
        transport, where = ResettingTransport(), urlparse(f"nats://127.0.0.1:{server.port}")  # type: ignore[no-untyped-call]
        await transport.connect(where, buffer_size=1024, connect_timeout=5)
        await transport.connect(where, buffer_size=1024, connect_timeout=5)
        await server.ended.acquire()
        transport.close()
        await server.ended.acquire()


def issued(folder: Path) -> Files:
    """Certificate files of a server and client."""
    authority = Authority("test")
    identity = authority.service(SERVER)
    made = authorities.Identity(identity.key, identity.cert)
    return authorities.write(folder, SERVER, made, trusted=authority.cert)


@asynccontextmanager
async def deaf_server(files: Files | None) -> AsyncIterator[int]:
    """Port of a server that reads nothing, with TLS if there are files."""
    context = None

    async def ignore(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert isinstance(writer.transport, asyncio.Transport)
        writer.transport.pause_reading()
        await asyncio.Event().wait()

    if files:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(files.cert, files.key)
    port = free_port()
    async with serving(ignore, "127.0.0.1", port, context):
        yield port


@pytest.mark.parametrize("has_tls", [False, True])
async def test_the_closing_of_a_connection_waits_for_no_server_that_hangs(tmp_path: Path, has_tls: bool) -> None:
    # The client connects to another server only after this.
    files = issued(tmp_path) if has_tls else None
    async with deaf_server(files) as port, asyncio.timeout(WITHIN_S):
        transport = ResettingTransport()  # type: ignore[no-untyped-call]
        await transport.connect(urlparse(f"nats://127.0.0.1:{port}"), buffer_size=1024, connect_timeout=5)
        if files:
            await transport.connect_tls("localhost", client_context(files), buffer_size=1024, connect_timeout=5)
        else:
            transport.write(UNREAD)
        assert transport._io_writer
        socket = transport._io_writer.get_extra_info("socket")
        transport.close()
        await transport.wait_closed()
        assert socket.fileno() == -1


class SlowServer:
    """A server that demands TLS and answers no handshake."""

    def __init__(self) -> None:
        self.port = free_port()
        self.greeted = asyncio.Semaphore(0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greets a client, and reads to the end of the connection."""
        writer.write(b"INFO " + json.dumps({"tls_required": True}).encode() + b"\r\n")
        self.greeted.release()
        while await reader.read(1024):
            pass


async def test_a_client_connects_once_more_after_a_handshake_that_took_too_long(tmp_path: Path) -> None:
    async def connect() -> None:
        async with buses.connect(f"tls://localhost:{server.port}", "test", issued(tmp_path)):
            raise AssertionError("the server answers no handshake")

    server = SlowServer()
    async with serving(server.serve, "localhost", server.port), asyncio.timeout(WITHIN_S):
        connecting = asyncio.create_task(connect())
        await server.greeted.acquire()
        await server.greeted.acquire()
        connecting.cancel()
        await asyncio.wait([connecting])


class RefusingServer:
    """A server that reports an error to its first client after the greeting, and greets all others."""

    def __init__(self) -> None:
        self.port = free_port()
        self.connected = asyncio.Semaphore(0)
        self.errors = ["Authorization Violation"]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Greets a client, and answers its first subscription with the error or nothing."""
        writer.write(b"INFO " + json.dumps({"max_payload": 1 << 20, "headers": True}).encode() + b"\r\n")
        while line := await reader.readline():
            if line.startswith(b"PING"):
                writer.write(b"PONG\r\n")
            elif line.startswith(b"SUB"):
                if self.errors:
                    writer.write(f"-ERR '{self.errors.pop()}'\r\n".encode())
                else:
                    self.connected.release()


async def test_a_client_connects_once_more_after_the_server_refused_it() -> None:
    # nats-server refuses a connected user whom its new configuration doesn't know.
    server = RefusingServer()
    with capture_logs() as logged:
        async with (
            serving(server.serve, "127.0.0.1", server.port),
            asyncio.timeout(WITHIN_S),
            buses.connect(f"nats://127.0.0.1:{server.port}", "test") as bus,
        ):
            await server.connected.acquire()
            assert not bus.client.is_closed
    assert [line["reason"] for line in logged if line["event"] == "nats_error"] == ["authorization violation"]


async def test_each_reason_of_failing_attempts_is_one_line_until_the_client_is_connected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    failures = asyncio.Semaphore(0)
    failed = Outages.failed

    def note(outages: Outages, fields: Mapping[str, object], reason: str, level: int) -> None:
        failed(outages, fields, reason, level)
        failures.release()

    monkeypatch.setattr(Outages, "failed", note)
    monkeypatch.setattr(outages, "INTERVAL_S", 2 * WITHIN_S)
    monkeypatch.setattr(buses, "PATIENCE_S", 2 * WITHIN_S)
    server = RefusingServer()
    server.errors.clear()
    with capture_logs() as logged:
        async with AsyncExitStack() as before, asyncio.timeout(WITHIN_S):
            await before.enter_async_context(serving(server.serve, "127.0.0.1", server.port))
            async with buses.connect(f"nats://127.0.0.1:{server.port}", "test"):
                await server.connected.acquire()
                await before.aclose()
                for _ in range(6):
                    await failures.acquire()
                async with serving(server.serve, "127.0.0.1", server.port):
                    await server.connected.acquire()
    events = [line["event"] for line in logged]
    outage = logged[: events.index("nats_reconnected")]
    reasons = [line["reason"] for line in outage if line["event"] == "nats_error"]
    assert reasons and len(set(reasons)) == len(reasons) < 6
    warnings = [line["event"] for line in outage if line["log_level"] == "warning"]
    assert warnings == ["nats_disconnected"], "one cause is one warning"
    assert logged[len(outage)]["failures"] >= 6


@pytest.mark.parametrize(("patience_s", "level"), [(2 * WITHIN_S, "info"), (0.0, "warning")])
async def test_a_server_that_starts_after_its_client_is_no_warning_and_one_that_stays_away_is(
    monkeypatch: pytest.MonkeyPatch, patience_s: float, level: str
) -> None:
    failed, note = asyncio.Event(), Outages.failed

    def noted(outages: Outages, fields: Mapping[str, object], reason: str, level: int) -> None:
        note(outages, fields, reason, level)
        failed.set()

    monkeypatch.setattr(Outages, "failed", noted)
    monkeypatch.setattr(buses, "PATIENCE_S", patience_s)
    monkeypatch.setattr(outages, "INTERVAL_S", 2 * WITHIN_S)
    server = RefusingServer()
    server.errors.clear()

    async def connect() -> None:
        async with buses.connect(f"nats://127.0.0.1:{server.port}", "test"):
            pass

    with capture_logs() as logged:
        async with asyncio.timeout(WITHIN_S):
            connecting = asyncio.create_task(connect())
            await failed.wait()
            async with serving(server.serve, "127.0.0.1", server.port):
                await connecting
    assert [(line["event"], line["log_level"]) for line in logged] == [
        ("nats_error", level),
        ("nats_reconnected", "info"),
    ]


async def test_a_write_to_a_lost_connection_is_dropped_or_an_error_of_connections() -> None:
    """Python 3.13.0 fails on several byte strings by an AttributeError, 3.13.5 by a TypeError."""
    server = SilentServer()
    transport = ResettingTransport()  # type: ignore[no-untyped-call]
    async with serving(server.serve, "127.0.0.1", server.port):
        await transport.connect(urlparse(f"nats://127.0.0.1:{server.port}"), buffer_size=1 << 10, connect_timeout=10)
        transport.close()
        await transport.wait_closed()
        with suppress(ConnectionClosed):
            transport.write(b"PING\r\n")
        with suppress(ConnectionClosed):
            transport.writelines([b"PING\r\n"])
