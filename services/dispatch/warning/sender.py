"""Sends each due message over every gateway and to every device of the person.

Each channel is retried on its own until it accepts the message or the message expires. Each attempt over a gateway unseals the
person's contact, which is never stored unsealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.dispatch.notices.opening import NoticeOpener
from services.dispatch.warning.channels import Channel, RemovedGateway
from services.dispatch.warning.domain import ChannelId, ChannelKind, Notice
from services.dispatch.warning.metrics import WarningMetrics
from services.dispatch.warning.opening import MessageOpener
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import (
    GIVEN_UP,
    HANDED_OVER,
    OPEN,
    DueSending,
    DueWork,
    MessageRow,
    Sending,
    TriedSending,
)

RETRY = Backoff(1.0, 10.0)
"""Delays between attempts to hand a message over, seconds of mesh time. They are short, as a message should be read within 10 s."""
MAX_SLEEP_S = 1.0
"""Maximum sleep between two checks for due messages, seconds of wall time."""
LANE_CONCURRENCY = 64
"""Concurrent attempts per lane. A hanging gateway delays only its own lane."""
COALESCE_S = 0.01
"""Time for which due messages, or outcomes of attempts, are collected into one transaction, seconds."""
CLOSE_S = 2.0
"""Time for which the outcomes of the last attempts may still be stored when the leg stops, seconds."""


class AttemptLane:
    """The attempts that run now: at most LANE_CONCURRENCY, and at most one per key."""

    def __init__(self, woken: asyncio.Event) -> None:
        self._woken = woken
        """Set at the end of each attempt."""
        self._under_way: set[Hashable] = set()

    @property
    def busy(self) -> bool:
        """Whether an attempt is running."""
        return bool(self._under_way)

    def begin(self, tasks: asyncio.TaskGroup, key: Hashable, work: Callable[[], Coroutine[None, None, object]]) -> None:
        """Begins an attempt. An attempt whose key is running, or that doesn't fit, isn't started: the caller tries it again."""
        if key in self._under_way or len(self._under_way) >= LANE_CONCURRENCY:
            return
        self._under_way.add(key)

        async def finish() -> None:
            try:
                await work()
            finally:
                self._under_way.discard(key)
                self._woken.set()

        tasks.create_task(finish())


class OutcomeWriter:
    """Stores the outcomes of attempts. Attempts that end at about the same time share a transaction."""

    def __init__(self, store: WarningStore) -> None:
        self._store = store
        self._outcomes: list[TriedSending] = []
        self._storing: asyncio.Task[None] | None = None
        """The transaction that collects outcomes; None if none does."""
        self._under_way: set[asyncio.Task[None]] = set()

    async def store(self, tried: TriedSending) -> None:
        """Stores an outcome. Returns once the outcome is on disk."""
        self._outcomes.append(tried)
        if self._storing is None or self._storing.done():
            self._storing = asyncio.create_task(self._store_outcomes())
            self._under_way.add(self._storing)
            self._storing.add_done_callback(self._under_way.discard)
        await asyncio.shield(self._storing)

    async def close(self) -> None:
        """Waits for the outcomes that are being stored, at most CLOSE_S. A message whose outcome is lost is sent a second time."""
        if self._under_way:
            _, late = await asyncio.wait(self._under_way, timeout=CLOSE_S)
            for storing in late:
                storing.cancel()

    async def _store_outcomes(self) -> None:
        await asyncio.sleep(COALESCE_S)
        outcomes, self._outcomes, self._storing = self._outcomes, [], None
        await retried(partial(self._store.tried, outcomes))


@dataclass(frozen=True, slots=True)
class _Outlet:
    """A channel with its lane. Each gateway has its own lane, and all devices share one."""

    channel: Channel
    lane: AttemptLane


class WarningSender:
    """Sends the warnings of one leg."""

    def __init__(
        self,
        store: WarningStore,
        clock: MeshClock,
        opener: MessageOpener,
        *,
        notices: NoticeOpener,
        gateways: Mapping[str, Channel],
        devices: Channel,
        metrics: WarningMetrics,
    ) -> None:
        self._store, self._clock, self._opener, self._metrics = store, clock, opener, metrics
        self._notices = notices
        self._woken = asyncio.Event()
        self._opening, self._opening_notices = AttemptLane(self._woken), AttemptLane(self._woken)
        self._gateways = {name: _Outlet(gateway, AttemptLane(self._woken)) for name, gateway in gateways.items()}
        self._devices = _Outlet(devices, AttemptLane(self._woken))
        self._removed = _Outlet(RemovedGateway(), AttemptLane(self._woken))
        self._outcomes = OutcomeWriter(store)

    def wake(self) -> None:
        """Wakes the sender, because a message may be due."""
        self._woken.set()

    async def run(self) -> None:
        """Sends messages until cancelled."""
        try:
            await self._send()
        finally:
            await self._outcomes.close()

    async def _send(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                now_ms = self._clock.now_ms()
                due = await retried(partial(self._store.due, now_ms))
                for sending, message in await self._open_due(tasks, due):
                    outlet = self._outlet(sending.channel)
                    work = partial(self._try, outlet.channel, sending, message)
                    outlet.lane.begin(tasks, (sending.message_id, sending.channel), work)
                await self._sleep(now_ms, due.next_ms)
                await asyncio.sleep(COALESCE_S)

    async def _open_due(self, tasks: asyncio.TaskGroup, due: DueWork) -> Sequence[DueSending]:
        """Opens due messages in one transaction, and returns the sendings that are due then. A message that states a distance is opened
        in a task: its distance may be late. So is a notice of the Ministry, which waits for its row in the ledger."""
        at_once = []
        for message in due.messages:
            if message.ground:
                self._opening_notices.begin(tasks, message.message_id, partial(self._notices.open, message))
            elif Notice(message.notice) is Notice.CHANGED:
                work = partial(self._opener.open, [message], due.contacts)
                self._opening.begin(tasks, message.message_id, work)
            else:
                at_once.append(message)
        return await self._opener.open(at_once, due.contacts) if at_once else due.sendings

    def _outlet(self, channel: ChannelId) -> _Outlet:
        match channel.kind:
            case ChannelKind.GATEWAY:
                return self._gateways.get(channel.name, self._removed)
            case ChannelKind.DEVICE:
                return self._devices
            case _:
                assert_never(channel.kind)

    async def _sleep(self, now_ms: int, next_ms: int | None) -> None:
        sleep_s = MAX_SLEEP_S if next_ms is None else self._clock.wall_s(max(0, next_ms - now_ms))
        outlets = (*self._gateways.values(), self._devices, self._removed)
        if self._opening.busy or self._opening_notices.busy or any(outlet.lane.busy for outlet in outlets):
            sleep_s = MAX_SLEEP_S  # each running attempt wakes this loop when it ends
        try:
            async with asyncio.timeout(min(max(sleep_s, 0.01), MAX_SLEEP_S)):
                await self._woken.wait()
        except TimeoutError:
            return

    async def _try(self, channel: Channel, sending: Sending, message: MessageRow) -> None:
        way = sending.channel.kind.value
        fields = {"message_id": message.message_id, "way": str(sending.channel), "tries": sending.tries + 1}
        now_ms = self._clock.now_ms()
        if now_ms >= sending.expires_ms:
            await self._outcomes.store(TriedSending(sending, GIVEN_UP, now_ms))
            self._metrics.tries.labels(way, "given up").inc()
            logger().critical("warning_given_up", **fields)
            return
        reason = await channel.hand_over(sending, message)
        now_ms = self._clock.now_ms()
        if reason:
            wait_ms = round(1000 * RETRY.delay_s(sending.tries))
            await self._outcomes.store(TriedSending(sending, OPEN, now_ms + wait_ms))
            logger().warning("warning_failed", reason=reason, **fields)
        else:
            await self._outcomes.store(TriedSending(sending, HANDED_OVER, now_ms))
            self._metrics.handed_over_s.labels(way).observe((now_ms - message.due_ms) / 1000)
            logger().info("warning_handed_over", **fields)
        self._metrics.tries.labels(way, "failed" if reason else "handed over").inc()
