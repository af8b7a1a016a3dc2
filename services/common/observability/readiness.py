"""Whether a process can do its work: its readers read, and whatever else it lives on works.

A connection is no proof. A reader works once the server has its consumer and it has caught up with its stream, and for as long as the
server's heartbeats come and what arrived is worked off.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SILENT_AFTER_S = 5.0
"""A reader that has heard nothing of the server for so long doesn't read; heartbeats come twice a second."""
STUCK_AFTER_S = 10.0
"""A reader that has worked on the same messages for so long doesn't decide."""


class ReaderHealth:
    """How one reader of a stream fares; `services.common.messaging.pull` keeps it up to date."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Of what it reads, for people."""
        self._began_s: float | None = None
        """Since when it tries to read; None while nobody reads."""
        self._heard_s: float | None = None
        """When the server last gave a sign of its consumer."""
        self._working_since_s: float | None = None
        self._has_caught_up = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Somebody reads meanwhile."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = self._heard_s = None
            self._has_caught_up = False

    def heard(self) -> None:
        """The server has sent a message or a heartbeat."""
        self._heard_s = time.monotonic()

    def caught_up(self) -> None:
        """Nothing more was waiting."""
        self._has_caught_up = True

    @contextmanager
    def working(self) -> Iterator[None]:
        """Messages are being worked off meanwhile."""
        self._working_since_s = time.monotonic()
        try:
            yield
        finally:
            self._working_since_s = None
            self.heard()  # heartbeats that came meanwhile were not looked at

    def unable(self) -> str:
        """Why it doesn't read, or nothing."""
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
        return "" if self._has_caught_up else f"{self.name} is being caught up with"

    def degraded(self) -> str:
        """Why it doesn't read, where another process may do so instead: nothing while nobody reads here, or has only begun to."""
        if self._began_s is None or time.monotonic() - self._began_s < SILENT_AFTER_S:
            return ""
        return self.unable()


class Readiness:
    """What a process needs for its work, and what it can do without for a while."""

    def __init__(self) -> None:
        self._needs: list[Callable[[], str]] = []
        self._wants: list[Callable[[], str]] = []

    def need(self, unable: Callable[[], str]) -> None:
        """The process can't do its work while this gives a reason."""
        self._needs.append(unable)

    def want(self, unable: Callable[[], str]) -> None:
        """The process works less well while this gives a reason."""
        self._wants.append(unable)

    def reader(self, name: str) -> ReaderHealth:
        """The health of a reader without which the process can't do its work."""
        health = ReaderHealth(name)
        self.need(health.unable)
        return health

    def lesser_reader(self, name: str) -> ReaderHealth:
        """The health of a reader whose work can wait, or that another process may be."""
        health = ReaderHealth(name)
        self.want(health.degraded)
        return health

    def unable(self) -> str:
        """Why the process can't do its work, or nothing."""
        return next(filter(None, (reason() for reason in self._needs)), "")

    def degraded(self) -> str:
        """What of its work has to wait, or nothing."""
        return "; ".join(filter(None, (reason() for reason in self._wants)))
