"""Checks of a machine before and while a mesh runs on it: versions, ports, disk, clock and certificates."""

from __future__ import annotations

import ctypes
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from importlib import metadata
from pathlib import Path
from typing import Any

from cryptography import x509

from services.common import build
from services.common.certificates import AUTHORITY, CERT, spiffe_id
from services.common.errors import FailedPrecondition
from services.common.messaging import flow
from services.local import nats_server, processes

LEAST_PYTHON = (3, 11)
LOW_BYTES = 5 << 30
"""Free space of a disk below which a mesh that has its streams already may soon refuse reports."""
CLOCK_TOLERANCE_S = 1.0
"""Difference of two clocks that is no fault: a decision counts in seconds."""
SOON_DAYS = 14.0
"""Remaining lifetime of a certificate below which it should be renewed."""
_TIME_ERROR = 5
"""Answer of Linux's adjtimex for a clock that nothing keeps synchronous."""


class CheckVerdict(StrEnum):
    """Outcome of a check."""

    GOOD = "good"
    WARNING = "warning"
    BAD = "BAD"


@dataclass(frozen=True, slots=True)
class CheckFinding:
    """What a check found, and what to do about it."""

    subject: str
    verdict: CheckVerdict
    text: str


def versions() -> Iterator[CheckFinding]:
    """Python, Tandem's packages and nats-server, against the versions that the release was tested with."""
    python = ".".join(map(str, sys.version_info[:3]))
    least = ".".join(map(str, LEAST_PYTHON))
    if sys.version_info < LEAST_PYTHON:
        yield CheckFinding("versions", CheckVerdict.BAD, f"Python {python} is older than {least}")
    else:
        yield CheckFinding("versions", CheckVerdict.GOOD, f"Python {python}, tandem {build.software()}")
    pinned, found = _pinned_nats_server(), nats_server_version()
    if not found:
        yield CheckFinding("versions", CheckVerdict.BAD, "no nats-server: run `make setup`, or set NATS_SERVER_BIN")
    elif pinned and found != pinned:
        text = f"nats-server {found}; tested with {pinned}: unset NATS_SERVER_BIN, or run `make setup`"
        yield CheckFinding("versions", CheckVerdict.WARNING, text)
    else:
        yield CheckFinding("versions", CheckVerdict.GOOD, f"nats-server {found}")


def nats_server_version() -> str:
    """Version of the nats-server that `tandem up` would start, such as 2.15.1; empty if there is none that runs."""
    try:
        shown = subprocess.run(  # the binary is our own, or that of the user's environment
            (nats_server.server_binary(), "--version"), capture_output=True, text=True, timeout=10, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
    found = re.search(r"v(\d+\.\d+\.\d+\S*)", shown)
    return found[1] if found else ""


def _pinned_nats_server() -> str:
    for requirement in metadata.requires("tandem") or ():
        if found := re.match(r"nats-server-bin==([\d.]+)", requirement):
            return found[1]
    return ""


def free_ports(base_port: int) -> CheckFinding:
    """Whether the ports are free that a mesh needs from `base_port` on."""
    used = processes.used_port(base_port)
    if used is None:
        return CheckFinding("ports", CheckVerdict.GOOD, f"those that a mesh needs from {base_port} on are free")
    text = f"{used} is in use: end that program, or start by `tandem up --base-port 0`, which takes free ports"
    return CheckFinding("ports", CheckVerdict.BAD, text)


def answering_ports(addresses: Mapping[str, str]) -> Iterator[CheckFinding]:
    """Whether each process of a running mesh accepts connections."""
    silent = []
    for name, address in addresses.items():
        host, _, port = address.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=2.0).close()
        except OSError:
            silent.append(f"{name} ({address})")
    if silent:
        text = f"no connection to {', '.join(silent)}: see `tandem status` and `tandem logs`"
        yield CheckFinding("ports", CheckVerdict.BAD, text)
    else:
        yield CheckFinding("ports", CheckVerdict.GOOD, f"all {len(addresses)} processes accept connections")


def disk(folder: Path) -> CheckFinding:
    """Whether the disk of a mesh's folder has room for its streams."""
    there = next(parent for parent in (folder, *folder.resolve().parents) if parent.is_dir())
    free = shutil.disk_usage(there).free
    shown = f"{free / (1 << 30):,.1f} GiB free at {there}"
    if (folder / "nats" / "store").exists():
        if free < LOW_BYTES:
            return CheckFinding("disk", CheckVerdict.WARNING, f"{shown}: make room, as a full disk refuses reports")
        return CheckFinding("disk", CheckVerdict.GOOD, shown)
    # Each partition of the log has a stream of its own; one partition is the default. One stream holds the device routes.
    needed = (len(flow.STREAMS) + 1) * nats_server.STREAM_BYTES
    if free < needed:
        text = (
            f"{shown}; the streams of a new mesh reserve up to {needed >> 30} GiB: make room, or choose another --dir"
        )
        return CheckFinding("disk", CheckVerdict.BAD, text)
    return CheckFinding("disk", CheckVerdict.GOOD, shown)


def clock(server: Mapping[str, Any] | None) -> Iterator[CheckFinding]:
    """Whether something keeps the machine's clock synchronous, and whether nats-server's clock agrees (its `varz`)."""
    synchronous = _is_synchronous()
    if synchronous is None:
        yield CheckFinding(
            "clock", CheckVerdict.WARNING, "this system doesn't tell whether its clock is synchronous: see to NTP"
        )
    elif not synchronous:
        text = "nothing keeps it synchronous: start an NTP client, such as chrony, as reports are judged by its time"
        yield CheckFinding("clock", CheckVerdict.WARNING, text)
    else:
        yield CheckFinding("clock", CheckVerdict.GOOD, "it is kept synchronous")
    if server is not None:
        apart_s = abs(time.time() - datetime.fromisoformat(str(server["now"])).timestamp())
        if apart_s > CLOCK_TOLERANCE_S:
            yield CheckFinding(
                "clock", CheckVerdict.BAD, f"nats-server's clock is {apart_s:.1f} s away from this machine's"
            )
        else:
            yield CheckFinding("clock", CheckVerdict.GOOD, "nats-server's clock agrees with this machine's")


def _is_synchronous() -> bool | None:
    """Linux's own answer, for which no program and no right is needed; None on another system."""
    if not sys.platform.startswith("linux"):
        return None
    timex = ctypes.create_string_buffer(512)  # zeros ask without setting anything; the structure is smaller
    answer = ctypes.CDLL(None).adjtimex(timex)
    return None if answer < 0 else answer != _TIME_ERROR


def certificates(folder: Path) -> Iterator[CheckFinding]:
    """How long the certificates in a folder of `tandem certs` are valid, and how to renew those that end soon."""
    ends: dict[Path, float] = {}
    for path in sorted((*folder.glob(f"*/{CERT}"), folder / AUTHORITY)):
        if path.exists():
            try:
                leaf = x509.load_pem_x509_certificates(path.read_bytes())[0]
            except ValueError:
                text = f"{path} isn't a certificate: {_renewal(path, folder)}"
                yield CheckFinding("certificates", CheckVerdict.BAD, text)
                continue
            ends[path] = (leaf.not_valid_after_utc - datetime.now(UTC)).total_seconds() / 86_400
    if not ends:
        yield CheckFinding(
            "certificates", CheckVerdict.GOOD, f"none in {folder}: callers use development tokens, on loopback only"
        )
        return
    ending = {path: days for path, days in ends.items() if days < SOON_DAYS}
    for path, days in ending.items():
        verdict = CheckVerdict.BAD if days <= 0 else CheckVerdict.WARNING
        left = f"expired {-days:.1f} days ago" if days <= 0 else f"{days:.1f} days left"
        yield CheckFinding("certificates", verdict, f"{_name(path)}: {left}; {_renewal(path, folder)}")
    if not ending:
        first = min(ends, key=lambda path: ends[path])
        text = f"{len(ends)}; the first to expire, {_name(first)}, has {ends[first]:.1f} days left"
        yield CheckFinding("certificates", CheckVerdict.GOOD, text)


def _name(path: Path) -> str:
    """Name of a certificate for people: that of its folder, such as moj-desk-seoul."""
    return "the authority" if path.name == AUTHORITY else path.parent.name


def _renewal(path: Path, folder: Path) -> str:
    """How to renew a certificate of a folder. Services read replaced files by themselves, nats-server at SIGHUP."""
    if path.name == AUTHORITY:
        return f"stop the mesh, move {folder} away, and start it: callers need new certificates, too"
    try:
        own = spiffe_id(path)
    except FailedPrecondition:
        return f"run `tandem certs --dir {folder}`"
    reload = ", then `kill -HUP` the process `nats` of `tandem status`" if own == nats_server.SERVER_IDENTITY else ""
    return f"run `tandem certs --dir {folder} {own}`{reload}"
