"""Wakes the pages that wait for news, and the phones whose page isn't open, by web push."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc.errors import RetryableError
from services.field.metrics import FieldMetrics
from services.field.push.messages import PushClient, PushOutcome
from services.field.push.store import PushAddresses

PUSH_RETRY = Backoff(2.0, 30.0)
"""Delays before a push message is tried again, seconds."""
PUSH_CONCURRENCY = 64
"""Concurrent push messages. A phone has at most one, and between two tries it holds no place."""
CLEAN_INTERVAL_MS = 60_000
"""Interval at which expired news is forgotten, milliseconds of mesh time."""
MAX_WAIT_S = 25.0
"""Maximum time for which a page's request waits for news, seconds: less than mobile networks keep an idle connection."""
MAX_WAITING = 4
"""Number of requests of one device's pages that wait at the same time. A further one ends the earliest. Otherwise one phone could leave
hundreds open, and a notice to it would make as many calls to the warning leg at once."""


def digest_of(content: Any) -> str:
    """Digest of the JSON content that a page knows."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


class PageWaker:
    """Wakes those who wait for the news of a device. A device is a protected person's, or the page of a unit."""

    def __init__(self, addresses: PushAddresses, push: PushClient, *, clock: MeshClock, metrics: FieldMetrics) -> None:
        self._addresses, self._push = addresses, push
        self._clock, self._metrics = clock, metrics
        self._waiting: defaultdict[str, deque[asyncio.Event]] = defaultdict(deque)
        """Events of the waiting requests by device, the earliest first."""
        self._pushed: dict[tuple[str, str], int] = {}
        """News that was pushed or is being pushed, by device and id, with the end of each, mesh time."""
        self._due: dict[str, int] = {}
        """Devices whose phone is being woken, with the end of the newest news, mesh time."""
        self._not_covered: set[str] = set()
        """Devices with news that came after the message on its way had been sent."""
        self._cleaned_ms = 0
        self._unauthorized: set[str] = set()
        """Hosts of the push services that don't accept field's proof of itself."""
        self._lane = asyncio.Semaphore(PUSH_CONCURRENCY)

    async def wait(self, device_id: str, within_s: float) -> None:
        """Waits for news of a device, at most `within_s` seconds."""
        event, waiting = asyncio.Event(), self._waiting[device_id]
        if len(waiting) >= MAX_WAITING:
            waiting.popleft().set()
        waiting.append(event)
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(within_s):
                    await event.wait()
        finally:
            if event in waiting:
                waiting.remove(event)
            if not waiting and self._waiting.get(device_id) is waiting:
                del self._waiting[device_id]

    async def content(
        self, device_id: str, read: Callable[[], Awaitable[dict[str, Any]]], query: Mapping[str, str]
    ) -> dict[str, Any]:
        """The content that `read` gives: at once if the page doesn't know it yet, else with the next news of a device.

        The page's query has the digest of the content that it knows (`known`), and whether it waits for news (`wait=1`).
        """
        if query.get("wait", "") != "1":
            return await read()
        news = asyncio.ensure_future(self.wait(device_id, MAX_WAIT_S))
        await asyncio.sleep(0)  # from here on no news is missed
        try:
            content = await read()
            if content["digest"] == query.get("known", ""):
                await news
                content = await read()
        finally:
            news.cancel()
        return content

    def wake(self, device_id: str) -> None:
        """Wakes the pages that wait for a device's news."""
        for event in self._waiting.get(device_id, ()):
            event.set()

    def push_about(self, tasks: asyncio.TaskGroup, device_id: str, news_id: str, *, expires_ms: int) -> None:
        """Begins to wake a phone. If it is being woken, the next message does for this news, too."""
        now_ms = self._clock.now_ms()
        if now_ms > self._cleaned_ms + CLEAN_INTERVAL_MS:
            self._cleaned_ms = now_ms
            self._pushed = {key: end_ms for key, end_ms in self._pushed.items() if end_ms > now_ms}
        if (device_id, news_id) in self._pushed:
            return
        self._pushed[device_id, news_id] = expires_ms
        is_woken = device_id in self._due
        self._due[device_id] = max(expires_ms, self._due.get(device_id, 0))
        if is_woken:
            self._not_covered.add(device_id)
        else:
            tasks.create_task(self._wake(device_id))

    async def _wake(self, device_id: str) -> None:
        """Sends a push message until the push service takes it, the address has ended, or the news has expired.

        A push service that doesn't accept field's proof of itself is tried on: somebody may mend the key, the clock or the contact.
        The phone may ask as soon as a message has reached it, which is before the push service answers here. News that comes in between
        needs a message of its own.
        """
        tries = 0
        try:
            while (left_ms := self._due[device_id] - self._clock.now_ms()) > 0:
                async with self._lane:
                    self._not_covered.discard(device_id)
                    outcome = await self._send(device_id, max(1, left_ms // 1000))
                if outcome in (PushOutcome.LATER, PushOutcome.UNAUTHORIZED):
                    await asyncio.sleep(PUSH_RETRY.delay_s(tries))
                    tries += 1
                elif device_id in self._not_covered:
                    tries = 0
                else:
                    return
            logger().warning("push_given_up", device_id=device_id)
        finally:
            self._not_covered.discard(device_id)
            del self._due[device_id]

    def _note_authorization(self, host: str, outcome: PushOutcome) -> None:
        """Logs once that a push service refuses field, and that it accepts field again."""
        if outcome is PushOutcome.UNAUTHORIZED and host not in self._unauthorized:
            self._unauthorized.add(host)
            logger().error("push_unauthorized", service=host)
        elif outcome is PushOutcome.SENT and host in self._unauthorized:
            self._unauthorized.discard(host)
            logger().info("push_authorized", service=host)

    async def _send(self, device_id: str, ttl_s: int) -> PushOutcome:
        try:
            address = await self._addresses.of(device_id)
            if address is None:
                return PushOutcome.GONE
            outcome = await self._push.send(address, ttl_s)
            if outcome in (PushOutcome.GONE, PushOutcome.REFUSED):
                await self._addresses.delete(address)
                logger().warning("push_address_ended", device_id=device_id, outcome=outcome.value)
        except RetryableError:
            return PushOutcome.LATER
        self._note_authorization(urlsplit(address.endpoint).netloc, outcome)
        self._metrics.push.labels(outcome.value).inc()
        return outcome
