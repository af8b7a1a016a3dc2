"""Sources of a live page. A source that ends is read again, and the page says which sources aren't connected."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable

import grpc.aio

from services.common.observability.telemetry import logger
from services.console.domain.people import Role

RETRY_DELAY_S = 0.5
CONNECTED_AFTER_S = 1.0
UNABLE_AFTER_S = 10.0


class Sources:
    """Connections of one role's page to its sources."""

    def __init__(self, role: Role, names: Iterable[str], notify: Callable[[], None]) -> None:
        self._role, self._notify = role, notify
        self._away: dict[str, str] = dict.fromkeys(names, "STARTING")
        """Reason why each source isn't connected; empty for a connected source."""
        self._away_since_s = dict.fromkeys(self._away, time.monotonic())

    async def keep_running(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        """Restarts the reading of a source whenever it ends. A silent stream counts as connected after CONNECTED_AFTER_S."""
        while True:
            reason = "ended"
            connected_timer = asyncio.get_running_loop().call_later(CONNECTED_AFTER_S, self.connected, name)
            try:
                await work()
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            connected_timer.cancel()
            self._set(name, reason)
            await asyncio.sleep(RETRY_DELAY_S)

    def connected(self, name: str) -> None:
        """Notes that a source answers."""
        self._set(name, "")

    def away(self) -> dict[str, str]:
        """Returns the sources that aren't connected, with the reasons."""
        return {name: reason for name, reason in self._away.items() if reason}

    def unable(self, *, without: Collection[str] = ()) -> str:
        """Returns the sources that couldn't be read for UNABLE_AFTER_S, except for those in `without`, or an empty text."""
        long_before_s = time.monotonic() - UNABLE_AFTER_S
        names = [name for name in self.away() if name not in without and self._away_since_s[name] < long_before_s]
        return f"{', '.join(names)} can't be read" if names else ""

    def _set(self, name: str, reason: str) -> None:
        if self._away[name] != reason:
            logger().info("feed", role=self._role.value, what=name, away=reason)
            if not self._away[name]:
                self._away_since_s[name] = time.monotonic()
            self._away[name] = reason
            self._notify()
