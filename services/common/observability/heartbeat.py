"""Heartbeats of this process, for a supervisor that reads a pipe or a kubelet that calls /livez. Either restarts a dead process.

A thread sends the heartbeats. The thread needs little CPU time and no event loop, so that a process with a long backlog or on a busy
machine still beats. A stopped process doesn't beat, and neither does a process after its event loop has hung for 15 s.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIPE = "TANDEM_HEARTBEAT_FD"
"""Environment variable with the file descriptor of the supervisor's pipe. If it isn't set, no beats are written."""
BEAT_S = 0.5
"""Interval of heartbeats, seconds."""
LOOP_HUNG_AFTER_S = 15.0
"""Time without a turn after which the event loop counts as hung, seconds. Any work that blocks the loop for longer than a second is a
defect, but a slow disk or an overloaded machine can block it too."""
_BEAT = b"."


class Heart:
    """Liveness of this process, from the turns of its event loop."""

    def __init__(self) -> None:
        self._turned_s: float | None = None
        """Time of the event loop's last turn, monotonic, seconds. None while no loop is watched."""

    @contextmanager
    def watching_loop(self) -> Iterator[None]:
        """Watches the running event loop until the block ends."""
        loop = asyncio.get_running_loop()
        timer: asyncio.Handle

        def turn() -> None:
            nonlocal timer
            self._turned_s = time.monotonic()
            timer = loop.call_later(BEAT_S, turn)

        timer = loop.call_soon(turn)
        try:
            yield
        finally:
            timer.cancel()
            self._turned_s = None

    def loop_age_s(self) -> float:
        """Time since the event loop's last turn, seconds. 0 while no loop is watched."""
        turned_s = self._turned_s
        return 0.0 if turned_s is None else time.monotonic() - turned_s

    def beats(self) -> bool:
        """Whether the process is alive, that is, its event loop hasn't hung."""
        return self.loop_age_s() < LOOP_HUNG_AFTER_S


HEART = Heart()
"""Liveness of this process, which has one event loop."""


def start() -> None:
    """Starts writing heartbeats to the supervisor's pipe, if there is one. Call it before anything else, because a start may take
    long."""
    named = os.environ.pop(PIPE, "")
    if named:
        pipe = int(named)
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        threading.Thread(target=_beat, args=(pipe,), name="heartbeat", daemon=True).start()


def _beat(pipe: int) -> None:
    while True:
        if HEART.beats():
            with suppress(BlockingIOError, BrokenPipeError):  # the supervisor is stopped, or has ended
                os.write(pipe, _BEAT)
        time.sleep(BEAT_S)
