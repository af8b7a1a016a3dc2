"""Peer of bench.ingest: a Valkey stream, XADD, with the append-only file synced each second. So up to a second of it may be lost."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.ingestion.reports import ACCURACY_M, Columns, Reports
from bench.ingestion.saturated import Tally
from services.cli.failure import CommandFailed
from tests.support.common.ports import free_port

PACKAGE = "valkey-server"
CLIENTS = 3
_READY_WITHIN_S = 10.0
_LINES = 2
"""Of an answer: the length of the new entry's id, and the id."""


def program() -> str | None:
    """The server's program; None where it isn't installed."""
    return shutil.which(PACKAGE)


def version(server: str) -> str:
    """Its version."""
    said = subprocess.run((server, "--version"), capture_output=True, text=True, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else said.strip()


@contextmanager
def running(server: str, folder: Path) -> Iterator[int]:
    """A server of our own; its port."""
    port, log = free_port(), folder / "log"
    folder.mkdir()
    settings = {"port": port, "bind": "127.0.0.1", "dir": folder, "save": "", "appendonly": "yes"}
    settings |= {"appendfsync": "everysec", "logfile": log}
    command = [server] + [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(command)
    try:
        until = time.monotonic() + _READY_WITHIN_S
        while not log.exists() or "Ready to accept" not in log.read_text():
            if process.poll() is not None or time.monotonic() > until:
                raise CommandFailed(f"{PACKAGE} didn't start: {log.read_text() if log.exists() else 'it said nothing'}")
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


async def add(port: int, reports: Reports, tally: Tally) -> None:
    """One of the clients: a batch of XADD, pipelined, and its answers."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    prepared: dict[str, list[bytes]] = {}
    try:
        while not tally.over:
            batch = reports.next_columns()
            pieces = prepared.get(batch.device_ids[0])
            if pieces is None:
                pieces = prepared[batch.device_ids[0]] = _pieces(batch)
            writer.write(_said(batch).join(pieces))
            answers = b""
            while answers.count(b"\n") < _LINES * len(batch.device_ids):
                answers += await reader.read(1 << 16)
                if reader.at_eof() or answers.startswith(b"-") or b"\n-" in answers:
                    raise CommandFailed(f"Valkey refused a report: {answers[-100:].decode()}")
            tally.reports += len(batch.device_ids)
    finally:
        writer.close()
        await writer.wait_closed()


def commands(batch: Columns) -> bytes:
    """XADD for each report of a batch, as the protocol has it: each word behind its length."""
    return _said(batch).join(_pieces(batch))


def _pieces(batch: Columns) -> list[bytes]:
    """What is the same each time that these devices report; between them goes what they say."""
    pieces = [b""]
    for device_id, lat_deg, lon_deg in zip(batch.device_ids, batch.lat_deg, batch.lon_deg, strict=True):
        pieces[-1] += b"*15\r\n" + _words("XADD", "reports", "*", "d", device_id)
        pieces.append(_words("lat", str(lat_deg), "lon", str(lon_deg), "acc", str(ACCURACY_M)))
    return pieces


def _said(batch: Columns) -> bytes:
    return _words("r", batch.report_id, "t", str(batch.fix_time_s))


def _words(*words: str) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
