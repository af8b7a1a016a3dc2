"""News for the pages of phones: follows notices and offers at the legs, and wakes the pages and phones that they are for.

A page that is open waits for news. A phone whose page isn't open is woken by web push.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import grpc
import grpc.aio

from services.common import times
from services.common.clock import MeshClock
from services.common.errors import RetryableError
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.field.credentials import unit_device_id
from services.field.mesh import FieldMesh, UnitLegs
from services.field.metrics import FieldMetrics
from services.field.push import PushAddresses, PushClient, PushOutcome
from tandem.dispatch.v1 import phone_notice_pb2, unit_duty_pb2

PUSH_RETRY = Backoff(2.0, 30.0)
"""Delays before a push message is tried again, seconds."""
PUSH_CONCURRENCY = 64
"""Concurrent push messages. A phone has at most one, and between two tries it holds no place."""
CLEAN_INTERVAL_MS = 60_000
"""Interval at which expired news is forgotten, milliseconds of mesh time."""
HUSH_MS = 60_000
"""Time after a silent call for help in which its phone is woken for nothing, milliseconds of mesh time. After it the warning leg knows
of the call, and says of each notice whether the phone may be woken."""
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
        self._hushed: dict[str, int] = {}
        """Devices that are woken for nothing now, with the end of that, mesh time."""
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
            self._hushed = {id_: end_ms for id_, end_ms in self._hushed.items() if end_ms > now_ms}
        if (device_id, news_id) in self._pushed or self._hushed.get(device_id, 0) > now_ms:
            return
        self._pushed[device_id, news_id] = expires_ms
        is_woken = device_id in self._due
        self._due[device_id] = max(expires_ms, self._due.get(device_id, 0))
        if is_woken:
            self._not_covered.add(device_id)
        else:
            tasks.create_task(self._wake(device_id))

    def stop_pushing(self, device_id: str) -> None:
        """Ends the tries to wake a phone. A message that its push service has accepted can't be taken back."""
        if device_id in self._due:
            self._due[device_id] = 0

    def hush(self, device_id: str) -> None:
        """Ends the tries to wake a phone, and wakes it for nothing for HUSH_MS: its person has called for help in silence."""
        self.stop_pushing(device_id)
        self._hushed[device_id] = self._clock.now_ms() + HUSH_MS

    async def _wake(self, device_id: str) -> None:
        """Sends a push message until the push service takes it, the address has ended, or the news has expired.

        A push service that doesn't accept field's proof of itself is tried on: somebody may mend the key, the clock or the contact.
        The phone may ask as soon as a message has reached it, which is before the push service answers here. News that comes in between
        needs a message of its own.
        """
        tries = 0
        try:
            while self._left_ms(device_id) > 0:
                async with self._lane:
                    self._not_covered.discard(device_id)
                    outcome = await self._send(device_id)
                if outcome in (PushOutcome.LATER, PushOutcome.UNAUTHORIZED):
                    await asyncio.sleep(PUSH_RETRY.delay_s(tries))
                    tries += 1
                elif device_id in self._not_covered:
                    tries = 0
                else:
                    return
            if self._due[device_id]:
                logger().warning("push_given_up", device_id=device_id)
        finally:
            self._not_covered.discard(device_id)
            del self._due[device_id]

    def _left_ms(self, device_id: str) -> int:
        """Time for which a phone is still to be woken, milliseconds of mesh time; 0 or less once it isn't."""
        return self._due[device_id] - self._clock.now_ms()

    def _note_authorization(self, host: str, outcome: PushOutcome) -> None:
        """Logs once that a push service refuses field, and that it accepts field again."""
        if outcome is PushOutcome.UNAUTHORIZED and host not in self._unauthorized:
            self._unauthorized.add(host)
            logger().error("push_unauthorized", service=host)
        elif outcome is PushOutcome.SENT and host in self._unauthorized:
            self._unauthorized.discard(host)
            logger().info("push_authorized", service=host)

    async def _send(self, device_id: str) -> PushOutcome:
        try:
            address = await self._addresses.of(device_id)
            if address is None:
                return PushOutcome.GONE
            # Asked only now: her silent call may have come while this message waited for its place or for the address.
            if (left_ms := self._left_ms(device_id)) <= 0:
                return PushOutcome.LATER
            outcome = await self._push.send(address, max(1, left_ms // 1000))
            if outcome in (PushOutcome.GONE, PushOutcome.REFUSED):
                await self._addresses.delete(address)
                logger().warning("push_address_ended", device_id=device_id, outcome=outcome.value)
        except RetryableError:
            return PushOutcome.LATER
        self._note_authorization(urlsplit(address.endpoint).netloc, outcome)
        self._metrics.push.labels(outcome.value).inc()
        return outcome


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
        now_s = time.monotonic()
        found_s = self._found_s
        self._found_s = None
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
        self.away = ""
        self._logged = None
        self._starts_until_s = 0.0


class NoticeNews(PageWaker):
    """Wakes those who wait for a device's notices."""

    def __init__(
        self, mesh: FieldMesh, addresses: PushAddresses, push: PushClient, *, clock: MeshClock, metrics: FieldMetrics
    ) -> None:
        super().__init__(addresses, push, clock=clock, metrics=metrics)
        self._mesh, self._followed = mesh, FollowedNews(NOTICES)

    @property
    def away(self) -> str:
        """Reason why the warning leg isn't followed; empty while it is."""
        return self._followed.away

    async def run(self) -> None:
        """Follows the warning leg until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                reason = "ended"
                try:
                    await self._follow(tasks)
                except grpc.aio.AioRpcError as error:
                    reason = error.code().name
                await asyncio.sleep(self._followed.lost(reason))

    async def _follow(self, tasks: asyncio.TaskGroup) -> None:
        request = phone_notice_pb2.WatchPhoneNoticesRequest()
        async for due in self._mesh.notices.WatchPhoneNotices(request, metadata=self._mesh.to_warning):
            self._followed.found()
            if not due.notice_id:
                continue
            self.wake(due.device_id)
            if due.in_app_only:
                self.stop_pushing(due.device_id)
                continue
            sending_id = f"{due.notice_id}.{due.repetition}"
            self.push_about(tasks, due.device_id, sending_id, expires_ms=times.from_timestamp(due.expires_at))


OFFER_MS = 30_000
"""Time for which a phone is woken for an offer, milliseconds of mesh time. An offer to a unit is open for so long."""
MAX_INCIDENTS = 10_000
"""Incidents of which the units are remembered for each leg. The one that changed longest ago is dropped first."""


class UnitNews(PageWaker):
    """Wakes those who wait for the news of a unit."""

    def __init__(
        self, legs: UnitLegs, addresses: PushAddresses, push: PushClient, *, clock: MeshClock, metrics: FieldMetrics
    ) -> None:
        super().__init__(addresses, push, clock=clock, metrics=metrics)
        self._legs, self._now_ms = legs, clock.now_ms
        self._units: dict[tuple[str, str], dict[str, frozenset[str]]] = {}
        """Units that are asked or have it, by assignment, for each leg and incident."""
        self.followed = {name: FollowedNews(OFFERS, leg=name) for name in legs}
        """The offers of each leg."""

    def not_followed(self) -> str:
        """Legs whose offers wake no page, with the reason of each; empty if there is none."""
        away = [f"the {name} leg's ({news.away})" for name, news in self.followed.items() if news.away]
        return f"offers can't be followed: {', '.join(away)}" if away else ""

    async def run(self) -> None:
        """Follows the legs until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for name in self._legs:
                tasks.create_task(self._run(tasks, name))

    async def _run(self, tasks: asyncio.TaskGroup, name: str) -> None:
        while True:
            reason = "ended"
            try:
                await self._follow(tasks, name)
            except grpc.aio.AioRpcError as error:
                reason = error.code().name
            await asyncio.sleep(self.followed[name].lost(reason))

    async def _follow(self, tasks: asyncio.TaskGroup, name: str) -> None:
        leg = self._legs[name]
        async for change in leg.stub.WatchUnits(unit_duty_pb2.WatchUnitsRequest(), metadata=leg.metadata):
            self.followed[name].found()
            if change.incident_id:
                self._apply(tasks, name, change)

    def _apply(self, tasks: asyncio.TaskGroup, name: str, change: unit_duty_pb2.WatchUnitsResponse) -> None:
        units = self._units.pop((name, change.incident_id), {})
        concerned = frozenset(unit.unit_id for unit in change.units)
        woken = concerned.union(*units.values())  # also those that are asked no more
        if change.assignment_id:
            units[change.assignment_id] = concerned
        if any(units.values()):
            self._units[name, change.incident_id] = units
        if len(self._units) > MAX_INCIDENTS * len(self._legs):
            del self._units[next(iter(self._units))]
        for unit_id in woken:
            self.wake(unit_device_id(name, unit_id))
        for unit in change.units:
            if unit.is_offer:
                news_id = f"{change.assignment_id}/{unit.offer_number}"
                self.push_about(
                    tasks, unit_device_id(name, unit.unit_id), news_id, expires_ms=self._now_ms() + OFFER_MS
                )
