"""Peer of bench.ingest: XADD to a Valkey stream, with the append-only file synced every second, so a crash may lose a second."""

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
from services.common.failure import CommandFailed
from tests.support.common.ports import free_port

PACKAGE = "valkey-server"
CLIENTS = 3
_READY_WITHIN_S = 10.0
_LINES = 2
"""Lines of an answer: the length of the new entry's id, and the id."""


def program() -> str | None:
    """Path of the Valkey server; None where it isn't installed."""
    return shutil.which(PACKAGE)


def version(server: str) -> str:
    """Version of the Valkey server."""
    output = subprocess.run((server, "--version"), capture_output=True, text=True, check=True).stdout
    match = re.search(r"v=(\S+)", output)
    return match[1] if match else output.strip()


@contextmanager
def running(server: str, folder: Path) -> Iterator[int]:
    """Starts a separate Valkey server; yields its port."""
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
                raise CommandFailed(
                    f"{PACKAGE} didn't start: {log.read_text() if log.exists() else 'its log is empty'}"
                )
            time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


async def add(port: int, reports: Reports, tally: Tally) -> None:
    """Adds reports over one connection until the tally is over, a pipelined batch of XADD at a time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    prepared: dict[str, list[bytes]] = {}
    try:
        while not tally.over:
            batch = reports.next_columns()
            pieces = prepared.get(batch.device_ids[0])
            if pieces is None:
                pieces = prepared[batch.device_ids[0]] = _pieces(batch)
            writer.write(_common_words(batch).join(pieces))
            answers = b""
            while answers.count(b"\n") < _LINES * len(batch.device_ids):
                answers += await reader.read(1 << 16)
                if reader.at_eof() or answers.startswith(b"-") or b"\n-" in answers:
                    raise CommandFailed(f"Valkey rejected a report: {answers[-100:].decode()}")
            tally.reports += len(batch.device_ids)
    finally:
        writer.close()
        await writer.wait_closed()


def commands(batch: Columns) -> bytes:
    """XADD commands for the reports of a batch, in the wire protocol, where each word follows its length."""
    return _common_words(batch).join(_pieces(batch))


def _pieces(batch: Columns) -> list[bytes]:
    """Constant parts of the commands of these devices. The words that differ from batch to batch go between them."""
    pieces = [b""]
    for device_id, lat_deg, lon_deg in zip(batch.device_ids, batch.lat_deg, batch.lon_deg, strict=True):
        pieces[-1] += b"*15\r\n" + _words("XADD", "reports", "*", "d", device_id)
        pieces.append(_words("lat", str(lat_deg), "lon", str(lon_deg), "acc", str(ACCURACY_M)))
    return pieces


def _common_words(batch: Columns) -> bytes:
    return _words("r", batch.report_id, "t", str(batch.fix_time_s))


def _words(*words: str) -> bytes:
    return b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)
