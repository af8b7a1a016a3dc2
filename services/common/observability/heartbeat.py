"""Signs of life of this process, for who restarts it: a supervisor that reads a pipe, or a kubelet that asks /livez.

They come from a thread, which needs little of the processor and none of the event loop: a process that folds a long backlog or hardly
gets the processor goes on giving them, and one that was stopped doesn't. They end too where the event loop has hung for 15 s.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

PIPE = "TANDEM_HEARTBEAT_FD"
"""Environment variable that names the file descriptor of a supervisor's pipe; without it nobody reads beats."""
BEAT_S = 0.5
LOOP_HUNG_AFTER_S = 15.0
"""An event loop that hasn't turned for so long hangs. Whatever occupies ours for longer than a second is a defect, but a slow disk
or a starved machine may do so as well."""
_BEAT = b"."


class Heart:
    """What is known of the life of this process."""

    def __init__(self) -> None:
        self._turned_s: float | None = None
        """When the event loop last turned; None while none is watched."""

    @contextmanager
    def watching_loop(self) -> Iterator[None]:
        """Watches the running event loop meanwhile."""
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
        """How long ago the event loop last turned; 0 while none is watched."""
        turned_s = self._turned_s
        return 0.0 if turned_s is None else time.monotonic() - turned_s

    def beats(self) -> bool:
        """Whether the process lives: its event loop doesn't hang."""
        return self.loop_age_s() < LOOP_HUNG_AFTER_S


HEART = Heart()
"""Of this process, which has one event loop."""


def start() -> None:
    """Writes beats to the supervisor's pipe from now on, where there is one. Call it first of all: a start may take long."""
    named = os.environ.pop(PIPE, "")
    if named:
        pipe = int(named)
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        threading.Thread(target=_beat, args=(pipe,), name="heartbeat", daemon=True).start()


def _beat(pipe: int) -> None:
    while True:
        if HEART.beats():
            with suppress(BlockingIOError, BrokenPipeError):  # the supervisor stands still, or is gone
                os.write(pipe, _BEAT)
        time.sleep(BEAT_S)
