"""When a process that gives no sign of life is dead: it is silent and idle, or silent for very long."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CHECK_S = 0.5
SILENT_AFTER_S = 3.0
"""Silence of a process that is idle: it was stopped, or its threads wait for one another."""
IDLE_FOR_S = 1.5
"""How long a silent process must be idle: three looks, as one that works may wait for something at any instant."""
STARVED_AFTER_S = 20.0
"""Silence of a process that runs, waits for the processor or for a disk, or of which the system doesn't say: on a busy machine its
turn comes late."""
STARTING_S = 30.0
"""How long a process may take to its first sign of life. One that isn't idle may take longer: a server may have much to recover."""


def is_dead(silent_s: float, idle_s: float, has_begun: bool) -> bool:
    """Whether a process is given up that has been silent and idle for so long. Pure."""
    if not has_begun:
        return silent_s >= STARTING_S and idle_s >= IDLE_FOR_S
    return silent_s >= STARVED_AFTER_S or (silent_s >= SILENT_AFTER_S and idle_s >= IDLE_FOR_S)


class Activity:
    """Whether a process does anything, by what Linux says of its threads; elsewhere it always seems to."""

    def __init__(self, pid: int) -> None:
        self._tasks = Path(f"/proc/{pid}/task")
        self._ticks = -1
        self._active_s = time.monotonic()

    def idle_s(self) -> float:
        """How long no look has found a thread that runs, wants to or waits for a disk, and no processor time was used."""
        ticks, busy = 0, False
        try:
            for task in self._tasks.iterdir():
                # Behind the name, which may hold anything: the state first, user and system time as 12th and 13th.
                fields = (task / "stat").read_text().rpartition(")")[2].split()
                busy |= fields[0] in "RD"
                ticks += int(fields[11]) + int(fields[12])
        except (OSError, IndexError):
            busy = True  # no Linux, or a thread that has just ended
        if busy or ticks != self._ticks:
            self._ticks, self._active_s = ticks, time.monotonic()
        return time.monotonic() - self._active_s


class Silence:
    """How long a process has given no sign of life, as far as this process was awake to hear it."""

    def __init__(self) -> None:
        self._heard_s = self._checked_s = time.monotonic()
        self.has_begun = False
        """It has given a sign."""

    def heard(self) -> None:
        """A sign of life."""
        self.has_begun = True
        self._heard_s = time.monotonic()

    def check(self) -> float:
        """Seconds since the last beat. Call it every 0.5 s: after a much longer pause it starts counting from zero."""
        now_s = time.monotonic()
        if now_s - self._checked_s > SILENT_AFTER_S / 2:
            self._heard_s = now_s
        self._checked_s = now_s
        return now_s - self._heard_s


class Beats:
    """The supervisor's end of the pipe to which a child writes its beats."""

    def __init__(self) -> None:
        self._reading, self.writing = os.pipe()
        """The end for the child."""
        os.set_blocking(self._reading, False)
        self.silence = Silence()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hears beats meanwhile; the pipe is closed at the end."""
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
            else:  # its last writer has ended; `process.wait` tells of it
                asyncio.get_running_loop().remove_reader(self._reading)


async def until_dead(pid: int, silence: Silence) -> float:
    """Returns how long a process has been silent once it is to be given up."""
    activity = Activity(pid)
    while True:
        await asyncio.sleep(CHECK_S)
        silent_s = silence.check()
        if is_dead(silent_s, activity.idle_s(), silence.has_begun):
            return silent_s
