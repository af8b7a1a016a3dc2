"""The health of a process: whether it is alive, by its heartbeats, and whether it is ready, by its readers and what else it needs.

A supervisor reads the heartbeats from a pipe, and a kubelet asks /livez; either restarts a dead process. A thread sends them, which
needs little CPU time and no event loop, so a process with a long backlog or on a busy machine still beats. A stopped process doesn't
beat, and neither does one whose event loop has hung for 15 s.

An open connection doesn't make a reader ready. It is ready once the server has its consumer and it has caught up with its stream, and
it stays ready while the server's heartbeats arrive and it finishes its messages.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

# ── heartbeats ────────────────────────────────────────────────────────────────────────────────────────────────────────

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


# ── readiness ─────────────────────────────────────────────────────────────────────────────────────────────────────────

SILENT_AFTER_S = 5.0
"""Time without a message or heartbeat after which a reader isn't ready, seconds. Heartbeats come twice a second."""
STUCK_AFTER_S = 10.0
"""Time on the same messages after which a reader isn't ready, seconds."""


class ReaderHealth:
    """Health of a reader of a stream, updated by `services.common.messaging.pull`."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Name of the stream, for people."""
        self._began_s: float | None = None
        """Time at which the reader began, monotonic, seconds. None while no code reads."""
        self._heard_s: float | None = None
        """Time of the consumer's last message or heartbeat, monotonic, seconds. None before the first."""
        self._working_since_s: float | None = None
        """Time at which work on the current messages began, monotonic, seconds. None while the reader waits for messages."""
        self._has_caught_up = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Marks the stream as being read until the block ends."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = self._heard_s = None
            self._has_caught_up = False

    def heard(self) -> None:
        """Notes that the server has sent a message or a heartbeat."""
        self._heard_s = time.monotonic()

    def caught_up(self) -> None:
        """Notes that no more messages were waiting in the stream."""
        self._has_caught_up = True

    def note_heartbeat(self) -> None:
        """Notes a heartbeat, which the server sends only while no message waits."""
        self.heard()
        self.caught_up()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Marks the reader as working on messages until the block ends."""
        self._working_since_s = time.monotonic()
        try:
            yield
        finally:
            self._working_since_s = None
            self.heard()  # heartbeats that arrived during the work weren't read

    def unable(self) -> str:
        """Reason why the reader isn't ready, or an empty text."""
        now_s = time.monotonic()
        if self._began_s is None:
            return f"{self.name} isn't being read"
        if self._working_since_s is not None:
            age_s = now_s - self._working_since_s
            return (
                f"{self.name}: the same messages have been worked on for {age_s:.0f} s" if age_s > STUCK_AFTER_S else ""
            )
        silent_s = now_s - (self._heard_s or self._began_s)
        if silent_s > SILENT_AFTER_S:
            return f"{self.name} hasn't been read for {silent_s:.0f} s"
        if self._heard_s is None:
            return f"{self.name} isn't being read yet"
        return "" if self._has_caught_up else f"the reader of {self.name} is still catching up"

    def degraded(self) -> str:
        """Reason why a replaceable reader isn't ready, or an empty text.

        Another process may read instead. So the text is empty while this process doesn't read, or began less than 5 s ago.
        """
        if self._began_s is None or time.monotonic() - self._began_s < SILENT_AFTER_S:
            return ""
        return self.unable()


class Readiness:
    """The checks that decide whether a process is ready: required ones and optional ones."""

    def __init__(self) -> None:
        self._needs: list[Callable[[], str]] = []
        self._wants: list[Callable[[], str]] = []

    def need(self, unable: Callable[[], str]) -> None:
        """Adds a required check. While it returns a reason, the process isn't ready."""
        self._needs.append(unable)

    def want(self, unable: Callable[[], str]) -> None:
        """Adds an optional check. While it returns a reason, the process is degraded."""
        self._wants.append(unable)

    def reader(self, name: str) -> ReaderHealth:
        """Adds a reader without which the process can't do its work, and returns the reader's health."""
        health = ReaderHealth(name)
        self.need(health.unable)
        return health

    def optional_reader(self, name: str) -> ReaderHealth:
        """Adds a reader whose work can wait or can be done by another process, and returns the reader's health."""
        health = ReaderHealth(name)
        self.want(health.degraded)
        return health

    def unable(self) -> str:
        """Reason why the process isn't ready, or an empty text."""
        return next(filter(None, (reason() for reason in self._needs)), "")

    def degraded(self) -> str:
        """Reasons why the process is degraded, separated by semicolons, or an empty text."""
        return "; ".join(filter(None, (reason() for reason in self._wants)))
