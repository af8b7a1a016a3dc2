"""The machine of a benchmark: its description, the fsync time of its disk, and the CPU time and memory of processes."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from services.local import nats_server

_PROC = Path("/proc")
_FSYNCS = 200
_BLOCK = bytes(4096)
_BUSY_LOOP = (
    "import os\nparent = os.getppid()\nwhile os.getppid() == parent:\n    for _ in range(1_000_000):\n        pass\n"
)
_CALIBRATIONS, _CALIBRATION_STEPS = 9, 500_000
_PACKAGES = ("grpcio", "protobuf", "nats-py", "uvloop", "sqlalchemy")


def describe(folder: Path) -> dict[str, str | int]:
    """Processor, cores, memory, system, and the file system that holds `folder`."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)),
        "kernel": f"{platform.system()} {platform.release()}",
        "filesystem": _filesystem(folder),
        "python": platform.python_version(),
    }


def versions() -> dict[str, str]:
    """Versions of the programs and packages that affect the figures."""
    output = subprocess.run(
        (nats_server.server_binary(), "--version"), capture_output=True, text=True, check=True
    ).stdout
    programs = {"nats-server": output.split()[-1].removeprefix("v"), "sqlite": sqlite3.sqlite_version}
    return programs | {name: importlib.metadata.version(name) for name in _PACKAGES}


def fsync_ms(folder: Path) -> float:
    """Median time to append 4 KiB to a file in `folder` and make it durable, milliseconds."""
    path = folder / "fsync.probe"
    durations_s = []
    with path.open("wb", buffering=0) as file:
        for _ in range(_FSYNCS):
            began = time.perf_counter()
            file.write(_BLOCK)
            os.fsync(file.fileno())
            durations_s.append(time.perf_counter() - began)
    path.unlink()
    return statistics.median(durations_s) * 1000


def calibration_ms() -> float:
    """Processor time of a fixed loop on this machine, milliseconds: the median of 9 turns.

    Figures of two runs are comparable only where this is alike: other work on the same cores makes each instruction slower.
    """
    durations_s = []
    for _ in range(_CALIBRATIONS):
        began = time.process_time()
        total = 0
        for n in range(_CALIBRATION_STEPS):
            total += n & 7
        durations_s.append(time.process_time() - began)
    return statistics.median(durations_s) * 1000


@contextmanager
def busy_loops(count: int) -> Iterator[None]:
    """Keeps this many cores busy by other processes, which end with this one."""
    loops = [subprocess.Popen((sys.executable, "-c", _BUSY_LOOP)) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time since an unspecified moment; the difference of two readings is a measurement."""

    by_process: Mapping[str, float]
    """Seconds of CPU time by the process's name."""
    idle: float
    """Idle seconds, summed over all cores."""
    total: float
    """Seconds, summed over all cores."""

    @property
    def others(self) -> float:
        """CPU seconds of all other processes; a large value means a disturbed measurement."""
        return max(self.total - self.idle - sum(self.by_process.values()), 0.0)

    def since(self, before: Usage) -> Usage:
        """Usage between an earlier reading and this one."""
        used = {name: s - before.by_process[name] for name, s in self.by_process.items() if name in before.by_process}
        return Usage(used, self.idle - before.idle, self.total - before.total)


def usage(pids: Mapping[str, int]) -> Usage:
    """Processor time of these processes and of the machine; empty where the system has no /proc.

    A process's time includes that of its children that have ended, such as the writers of checkpoints.
    """
    if not (_PROC / "stat").exists():
        return Usage({}, 0.0, 0.0)
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    ticks = [int(field) for field in (_PROC / "stat").read_text().splitlines()[0].split()[1:9]]
    by_process = {}
    for name, pid in pids.items():
        # Split after the last ")", which ends the command's name; the name itself may hold any character. Field 0 is the state.
        fields = (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
        by_process[name] = sum(map(int, fields[11:15])) * tick_s
    return Usage(by_process, (ticks[3] + ticks[4]) * tick_s, sum(ticks) * tick_s)


def resident_mib(pid: int | str = "self") -> float | None:
    """Resident memory of a process, by default this one, MiB; None where the system has no /proc."""
    status = _PROC / str(pid) / "status"
    if not status.exists():
        return None
    return int(status.read_text().partition("VmRSS:")[2].split()[0]) / 1024


def disk_mib(folder: Path) -> float:
    """Space that the files in a folder take on the disk, MiB. Files that vanish meanwhile don't count."""
    blocks = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(FileNotFoundError):
                blocks += (Path(path) / name).stat(follow_symlinks=False).st_blocks
    return blocks * 512 / (1 << 20)


def _cpu_model() -> str:
    cpuinfo = _PROC / "cpuinfo"
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _filesystem(folder: Path) -> str:
    mounts = _PROC / "mounts"
    if not mounts.exists():
        return "unknown"
    mounted = [line.split()[1:3] for line in mounts.read_text().splitlines()]
    within = [(point, kind) for point, kind in mounted if folder.resolve().is_relative_to(point)]
    return max(within, key=lambda mount: len(mount[0]))[1] if within else "unknown"
