"""Whether field follows a leg's news, and the log lines of each change."""

from __future__ import annotations

import time
from typing import NamedTuple

import grpc

from services.common.observability.telemetry import logger

STARTING = "STARTING"
"""Reason before the first try."""
START_S = 60.0
"""Time after field's own start in which a leg that isn't up yet is no error, seconds. The processes of a mesh start together, and a busy
machine takes more than half a minute for all of them."""


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

    def lost(self, reason: str) -> None:
        """Notes that the news can't be followed. Logs each new reason once."""
        # Any other code than UNAVAILABLE, such as PERMISSION_DENIED, doesn't end by waiting.
        starts = reason == grpc.StatusCode.UNAVAILABLE.name and time.monotonic() < self._starts_until_s
        line = (self._events.awaited if starts else self._events.not_followed, reason)
        self.away = reason
        if line == self._logged:
            return
        self._logged = line
        write = logger().info if starts else logger().error
        write(line[0], reason=reason, **self._fields)

    def found(self) -> None:
        """Notes that the news is followed. The start of the mesh is over for it."""
        if self.away:
            logger().info(self._events.followed, **self._fields)
        self.away, self._logged, self._starts_until_s = "", None, 0.0
