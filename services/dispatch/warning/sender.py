"""Sends each due message over every gateway and to every device of the person, and each repetition of an instruction.

Each channel is retried on its own until it accepts the sending or the sending expires. The instruction lasts, and its next repetition
tries each channel again. Each attempt over a gateway unseals the person's contact, which is never stored unsealed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import assert_never

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, retried
from services.dispatch.metrics import WarningMetrics
from services.dispatch.warning import translate
from services.dispatch.warning.channels import Channel, RemovedGateway
from services.dispatch.warning.domain import ChannelId, ChannelKind
from services.dispatch.warning.opening import MessageOpener, NoticeOpener
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
"""Time for which due messages and outcomes of attempts are collected into one transaction, seconds."""
CLOSE_S = 2.0
"""Time for which the outcomes of the last attempts may still be stored when the leg stops, seconds."""


class AttemptLane:
    """The attempts that run now: at most LANE_CONCURRENCY, and at most one per key."""

    def __init__(self, woken: asyncio.Event, *, makes_due: bool = False) -> None:
        self._woken, self._makes_due = woken, makes_due
        """`woken` is set at the end of an attempt if it makes a sending due, or if another one didn't fit meanwhile."""
        self._under_way: set[Hashable] = set()
        self._turned_away = False

    @property
    def busy(self) -> bool:
        """Whether an attempt is running."""
        return bool(self._under_way)

    def begin(self, tasks: asyncio.TaskGroup, key: Hashable, work: Callable[[], Coroutine[None, None, object]]) -> None:
        """Begins an attempt. An attempt whose key is running, or that doesn't fit, isn't started: the caller tries it again."""
        if key in self._under_way:
            return
        if len(self._under_way) >= LANE_CONCURRENCY:
            self._turned_away = True
            return
        self._under_way.add(key)

        async def finish() -> None:
            try:
                await work()
            finally:
                self._under_way.discard(key)
                if self._turned_away or self._makes_due:
                    self._turned_away = False
                    self._woken.set()

        tasks.create_task(finish())


class Outcomes:
    """Outcomes of attempts, which the sender stores with its next look for due messages."""

    def __init__(self, woken: asyncio.Event) -> None:
        self._woken = woken
        """Set by each outcome."""
        self._unstored: list[tuple[TriedSending, asyncio.Future[None]]] = []

    @property
    def unstored(self) -> list[TriedSending]:
        """The outcomes that aren't on disk, in their order."""
        return [tried for tried, _ in self._unstored]

    async def store(self, tried: TriedSending) -> None:
        """Returns once an outcome is on disk."""
        stored = asyncio.get_running_loop().create_future()
        self._unstored.append((tried, stored))
        self._woken.set()
        await stored

    def stored(self, count: int) -> None:
        """Notes that the first `count` outcomes are on disk."""
        now_stored, self._unstored = self._unstored[:count], self._unstored[count:]
        for _, stored in now_stored:
            if not stored.done():  # its attempt may be cancelled
                stored.set_result(None)


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
        self._store = store
        self._clock = clock
        self._opener = opener
        self._metrics = metrics
        self._notices = notices
        self._woken = asyncio.Event()
        self._opening = AttemptLane(self._woken, makes_due=True)
        self._opening_notices = AttemptLane(self._woken, makes_due=True)
        self._gateways = {name: _Outlet(gateway, AttemptLane(self._woken)) for name, gateway in gateways.items()}
        self._devices = _Outlet(devices, AttemptLane(self._woken))
        self._removed = _Outlet(RemovedGateway(), AttemptLane(self._woken))
        self._outcomes = Outcomes(self._woken)
        self._accepted: DueWork | None = None
        """Messages that became due since the last look, if all of them can be opened at once."""

    def wake(self, accepted: DueWork | None = None) -> None:
        """Wakes the sender, because a message may be due. `accepted` are all waiting messages that are due, if the caller knows
        them."""
        is_known = accepted is not None and accepted.messages and all(map(_opens_at_once, accepted.messages))
        self._accepted = accepted if is_known else None
        self._woken.set()

    async def run(self) -> None:
        """Sends messages until cancelled."""
        try:
            await self._send()
        finally:
            await self._store_last()

    async def _send(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._woken.clear()
                now_ms = self._clock.now_ms()
                due = await self._due(now_ms)
                for sending, message in await self._open_due(tasks, due):
                    outlet = self._outlet(sending.channel)
                    work = partial(self._try, outlet.channel, sending, message)
                    outlet.lane.begin(tasks, (sending.message_id, sending.channel, sending.repetition), work)
                self._accepted = None  # read before these messages were opened
                await self._sleep(now_ms, due.next_ms)
                await asyncio.sleep(COALESCE_S)

    async def _due(self, now_ms: int) -> DueWork:
        """The due messages and sendings. Stores the outcomes of attempts in the same transaction; just accepted messages need none."""
        accepted, self._accepted = self._accepted, None
        tried = self._outcomes.unstored
        if accepted and not tried:
            return accepted
        due = await retried(partial(self._store.due, now_ms, tried))
        self._outcomes.stored(len(tried))
        await asyncio.sleep(0)  # these attempts end, so that no lane is busy with them
        return due

    async def _store_last(self) -> None:
        """Stores the last outcomes, at most for CLOSE_S. A message whose outcome is lost is sent a second time."""
        if tried := self._outcomes.unstored:
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await retried(partial(self._store.due, self._clock.now_ms(), tried))

    async def _open_due(self, tasks: asyncio.TaskGroup, due: DueWork) -> Sequence[DueSending]:
        """Opens due messages in one transaction, and repeats instructions in another. Returns the sendings that are due then.

        A message that states a distance is opened in a task: its distance may be late. So is a notice of the Ministry, which waits for
        its row in the ledger.
        """
        at_once = []
        for message in due.messages:
            if message.ground:
                self._opening_notices.begin(tasks, message.message_id, partial(self._notices.open, message))
            elif _opens_at_once(message):
                at_once.append(message)
            else:
                work = partial(self._opener.open, [message], due.contacts)
                self._opening.begin(tasks, message.message_id, work)
        sendings = await self._opener.open(at_once, due.contacts) if at_once else due.sendings
        return await self._opener.repeat(due.repeats, due.contacts) if due.repeats else sendings

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
            if not sending.repetition:
                self._metrics.handed_over_s.labels(way).observe((now_ms - message.due_ms) / 1000)
            logger().info("warning_handed_over", **fields)
        self._metrics.tries.labels(way, "failed" if reason else "handed over").inc()


def _opens_at_once(message: MessageRow) -> bool:
    """Whether a message is worded from its row alone: it is no notice of the Ministry, and states no distance."""
    has_figure = bool(message.instruction) and translate.instruction_from_json(message.instruction).figure is not None
    return not message.ground and not has_figure
