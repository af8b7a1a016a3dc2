"""Detect dead processes: a process without heartbeats is dead if it is also idle, or silent for very long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECK_S = 0.5
SILENT_AFTER_S = 3.0
"""An idle process is dead after this much silence, seconds: it was stopped, or its threads are deadlocked."""
IDLE_FOR_S = 1.5
"""A silent process counts as idle after this long without activity, seconds: three checks, as a working process may wait briefly."""
STARVED_AFTER_S = 20.0
"""A process that isn't idle, or whose activity is unknown, is dead after this much silence, seconds. On a busy machine it may get
the processor or the disk late."""
STARTING_S = 30.0
"""An idle process may take this long to its first heartbeat, seconds. A busy one may take longer, as it may recover a large store."""


def is_dead(silent_s: float, idle_s: float, has_begun: bool) -> bool:
    """Whether a process that has been silent and idle this long is dead. Pure."""
    if not has_begun:
        return silent_s >= STARTING_S and idle_s >= IDLE_FOR_S
    return silent_s >= STARVED_AFTER_S or (silent_s >= SILENT_AFTER_S and idle_s >= IDLE_FOR_S)


class Activity:
    """Activity of a process, from Linux's /proc. On other systems a process always counts as active."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._ticks = -1
        self._active_s = time.monotonic()

    def idle_s(self) -> float:
        """Seconds for which every check found no runnable thread, no thread waiting for a disk and no used processor time."""
        ticks, busy = 0, False
        try:
            for task in self._tasks.iterdir():
                # The fields start after the name, which may contain anything: 1st state, 12th user time, 13th system time.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                busy |= fields[0] in "RD"
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, IndexError):
            busy = True  # not Linux, or a thread that has just ended
        if busy or ticks != self._ticks:
            self._ticks, self._active_s = ticks, time.monotonic()
        return time.monotonic() - self._active_s


class Silence:
    """Silence of a process: the time since its last heartbeat, without time in which the observing process itself didn't run."""

    def __init__(self) -> None:
        self._heard_s = self._checked_s = time.monotonic()
        self.has_begun = False
        """Whether the process has sent a heartbeat."""

    def heard(self) -> None:
        """Records a heartbeat."""
        self.has_begun = True
        self._heard_s = time.monotonic()

    def check(self) -> float:
        """Seconds since the last heartbeat. Call it every 0.5 s: after a much longer pause it counts from zero."""
        now_s = time.monotonic()
        if now_s - self._checked_s > SILENT_AFTER_S / 2:
            self._heard_s = now_s
        self._checked_s = now_s
        return now_s - self._heard_s


class Beats:
    """The pipe through which a supervisor receives a child's heartbeats."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        """File descriptor for the child to write to."""
        os.set_blocking(self._reading, False)
        self.silence = Silence()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Receives heartbeats during the block, and closes the pipe at its end."""
        loop = asyncio.get_running_loop()
        loop.add_reader(self._reading, self._read)
        try:
            yield
        finally:
            loop.remove_reader(self._reading)
            os.close(self._reading)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            if os.read(self._reading, 4096):
                self.silence.heard()
            else:  # the child has ended, which `process.wait` reports
                asyncio.get_running_loop().remove_reader(self._reading)


async def until_dead(pid: int, silence: Silence) -> float:
    """Waits until a process is dead. Returns how long it has been silent, seconds."""
    activity = Activity(pid)
    while True:
        await asyncio.sleep(CHECK_S)
        silent_s = silence.check()
        if is_dead(silent_s, activity.idle_s(), silence.has_begun):
            return silent_s
