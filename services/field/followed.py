"""Whether field follows a leg's news, and the log lines of each change."""

from __future__ import annotations

import time
from typing import NamedTuple

import grpc

from services.common.observability.telemetry import logger

STARTING = "STARTING"
"""Reason before the first try."""
START_S = 60.0
"""Time after field's own start in which a leg that isn't up yet is no error, seconds. The processes of a mesh start together, and a
busy machine takes more than half a minute for all of them."""
WORKED_S = 10.0
"""Time after which a stream counts as having worked, seconds. A leg ends each connection after some minutes, so the end of a stream
that worked is no failure: only the next try shows whether the leg is away."""
REOPEN_S, RETRY_S = 0.1, 1.0
"""Delays before a stream that worked is opened again, and before other tries, seconds."""


class FollowEvents(NamedTuple):
    """Names of the log events about one kind of news."""

    awaited: str
    not_followed: str
    followed: str


NOTICES = FollowEvents("notices_awaited", "notices_not_followed", "notices_followed")
OFFERS = FollowEvents("offers_awaited", "offers_not_followed", "offers_followed")


class FollowedNews:
    """The news that field follows at one leg."""

    def __init__(self, events: FollowEvents, **fields: str) -> None:
        self._events, self._fields = events, fields
        self.away = STARTING
        """Reason why the news isn't followed; empty while it is."""
        self._starts_until_s = time.monotonic() + START_S
        """End of the start, monotonic clock."""
        self._logged: tuple[str, str] | None = None
        """Event and reason of the last line about a failure; None while the news is followed."""
        self._found_s: float | None = None
        """When the stream that is open now began to work, monotonic clock; None if none is open."""

    def lost(self, reason: str) -> float:
        """Notes that a stream has ended, or couldn't be opened. Returns the delay before the next try, seconds. Logs each new reason
        once, unless the stream had worked."""
        now_s, found_s, self._found_s = time.monotonic(), self._found_s, None
        if found_s is not None and now_s >= found_s + WORKED_S:
            return REOPEN_S
        # Any other code than UNAVAILABLE, such as PERMISSION_DENIED, doesn't end by waiting.
        starts = reason == grpc.StatusCode.UNAVAILABLE.name and now_s < self._starts_until_s
        line = (self._events.awaited if starts else self._events.not_followed, reason)
        self.away = reason
        if line != self._logged:
            self._logged = line
            write = logger().info if starts else logger().error
            write(line[0], reason=reason, **self._fields)
        return RETRY_S

    def found(self) -> None:
        """Notes that the leg has sent something. The start of the mesh is over for it."""
        if self._found_s is None:
            self._found_s = time.monotonic()
        if self.away:
            logger().info(self._events.followed, **self._fields)
        self.away, self._logged, self._starts_until_s = "", None, 0.0
