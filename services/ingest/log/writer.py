"""Into the log: what arrives while a publish is under way becomes the next message.

A caller waits until its reports are stored; the publish itself belongs to the writer, so a caller that goes away doesn't break it.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias, TypeVar

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability import trace_ids, tracing
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError, StoreFull
from services.ingest import metrics, translate
from services.ingest.domain import EquipmentEvent, Positions
from tandem.common.v1 import log_pb2

MAX_MESSAGE = 2_000
"""Most positions in one message: at up to 160 bytes each it stays well below the server's 1 MB."""
UNABLE_AFTER_S = 10.0
"""How long live reports may wait before ingest says that it can't do its work."""
GIVE_UP_AFTER_S = 8.0
"""How long an unknown outcome is tried again before the caller is told to send again."""

T = TypeVar("T")
Contexts: TypeAlias = Sequence[tuple[int, str]]
"""How many reports came in which W3C context, in their order."""


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    size: int
    received_wall_us: int
    since_s: float
    contexts: Contexts
    stored: asyncio.Future[None]


@dataclass(frozen=True, slots=True)
class _Message:
    data: bytes
    msg_id: str
    reports: int
    headers: Mapping[str, str]


class _Line(Generic[T]):
    """One kind of entry on its way. Senders take turns, so that none has to wait behind all of another's."""

    def __init__(
        self,
        store: Callable[[_Message], Awaitable[None]],
        encode: Callable[[Sequence[T], int], log_pb2.LogEntry],
        most: int,
        in_flight: int,
        per_s: float | None = None,
        msg_id_of: Callable[[T], str] | None = None,
    ) -> None:
        self._store, self._encode, self._most, self._in_flight = store, encode, most, in_flight
        self._per_s, self._msg_id_of = per_s, msg_id_of
        self._queues: dict[str, deque[_Waiting[T]]] = {}
        self._wake = asyncio.Event()
        self._next_s = 0.0

    def put(
        self, sender: str, item: T, size: int, received_wall_us: int, contexts: Contexts | None = None
    ) -> asyncio.Future[None]:
        """Done once the item is stored. Fails with StoreFull or Unavailable (perhaps stored: send again).

        `contexts` says how many of its reports came in which W3C context, where that isn't this task's.
        """
        stored: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        contexts = ((size, tracing.carried()),) if contexts is None else contexts
        waiting = _Waiting(item, size, received_wall_us, time.monotonic(), contexts, stored)
        self._queues.setdefault(sender, deque()).append(waiting)
        self._wake.set()
        return stored

    def oldest_s(self) -> float:
        """For how long the oldest item has been waiting to be sent."""
        return time.monotonic() - min((queue[0].since_s for queue in self._queues.values()), default=time.monotonic())

    async def run(self) -> None:
        """Publishes for ever, a few messages at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._in_flight):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            while not self._queues:
                self._wake.clear()
                await self._wake.wait()
            if self._per_s is not None:
                await asyncio.sleep(max(0.0, self._next_s - time.monotonic()))
            taken = self._take()
            if not taken:
                continue  # another worker was faster
            size = sum(one.size for one in taken)
            if self._per_s is not None:
                self._next_s = max(self._next_s, time.monotonic()) + size / self._per_s
            entry = self._encode([one.item for one in taken], min(one.received_wall_us for one in taken))
            msg_id = self._msg_id_of(taken[0].item) if self._msg_id_of else uuid.uuid4().hex
            try:
                await self._store(_Message(entry.SerializeToString(), msg_id, size, _headers(taken)))
            except RetryableError as error:
                taken += self._give_up()
                reports = sum(one.size for one in taken)
                logger().warning("reports_not_stored", reports=reports, reason=error.reason)
                _finish(taken, error)
            else:
                _finish(taken, None)

    def _take(self) -> list[_Waiting[T]]:
        """The next message's items, in turn from each sender that has any: even parts of the message, of reports and not of items."""
        taken: list[_Waiting[T]] = []
        total = 0
        part = max(1, self._most // max(1, len(self._queues)))
        while self._queues:
            sender = next(iter(self._queues))
            queue = self._queues.pop(sender)
            turn_ends = total + part
            while queue and total < turn_ends and (not taken or total + queue[0].size <= self._most):
                taken.append(queue.popleft())
                total += taken[-1].size
            if queue:
                self._queues[sender] = queue  # behind the others
                if total < turn_ends:
                    break  # its next item doesn't fit
        return taken

    def _give_up(self) -> list[_Waiting[T]]:
        """What has waited in vain as long as what was just given up: it isn't tried one after the other for minutes."""
        given_up: list[_Waiting[T]] = []
        until_s = time.monotonic() - GIVE_UP_AFTER_S
        for sender, queue in list(self._queues.items()):
            while queue and queue[0].since_s < until_s:
                given_up.append(queue.popleft())
            if not queue:
                del self._queues[sender]
        return given_up


def _headers(taken: Sequence[_Waiting[T]]) -> Mapping[str, str]:
    senders = trace_ids.senders_header([pair for one in taken for pair in one.contexts])
    return {trace_ids.SENDERS: senders} if senders else {}


def _finish(taken: Sequence[_Waiting[T]], error: RetryableError | None) -> None:
    for one in taken:
        if not one.stored.done():
            if error is None:
                one.stored.set_result(None)
            else:
                one.stored.set_exception(error)


class LogWriter:
    """Writes to one partition of the log."""

    def __init__(self, bus: Bus, partition: int, backfill_per_s: float) -> None:
        self._bus = bus
        self._subject = flow.log_subject(partition, "report")
        # Two: with more of them messages and answers get smaller, which costs more than the wait for the disk.
        self._live = _Line(self._publish, _live_entry, MAX_MESSAGE, in_flight=2)
        # One message at a time and so many a second: however much was buffered, it never delays what is live.
        self._backfill = _Line(self._publish, _backfill_entry, MAX_MESSAGE, in_flight=1, per_s=backfill_per_s)
        self._heard = _Line(self._publish, translate.heard_entry, MAX_MESSAGE, in_flight=1)
        # An entry each: what a device says of itself is rare, and a panic waits for nothing.
        self._equipment = _Line(self._publish, _equipment_entry, 1, in_flight=16, msg_id_of=_event_id)

    async def run(self) -> None:
        """Publishes for ever."""
        async with asyncio.TaskGroup() as tasks:
            for line in (self._live, self._backfill, self._heard, self._equipment):
                tasks.create_task(line.run())

    def positions(
        self,
        sender: str,
        positions: Positions,
        received_wall_us: int,
        contexts: Contexts | None = None,
        backfill: bool = False,
    ) -> asyncio.Future[None]:
        """Done once the positions are stored. Fails with StoreFull or Unavailable (perhaps stored: send again).

        `contexts` as in `_Line.put`.
        """
        line = self._backfill if backfill else self._live
        return line.put(sender, positions, len(positions), received_wall_us, contexts)

    def heard(self, sender: str, device_id: str, report_id: str, received_wall_us: int) -> asyncio.Future[None]:
        """The same for a device whose clock is too far ahead."""
        return self._heard.put(sender, (device_id, report_id), 1, received_wall_us)

    def equipment(self, sender: str, event: EquipmentEvent, received_wall_us: int) -> asyncio.Future[None]:
        """The same for an equipment event."""
        return self._equipment.put(sender, event, 1, received_wall_us)

    def lag_s(self) -> float:
        """For how long the oldest live report or event has been waiting to be sent."""
        return max(self._live.oldest_s(), self._heard.oldest_s(), self._equipment.oldest_s())

    def unable(self) -> str:
        """Why live reports don't come into the log, or nothing."""
        lag_s = self.lag_s()
        return f"live reports have been waiting for {lag_s:.0f} s" if lag_s > UNABLE_AFTER_S else ""

    def backfill_lag_s(self) -> float:
        """For how long the oldest buffered report has been waiting to be sent."""
        return self._backfill.oldest_s()

    async def _publish(self, message: _Message) -> None:
        began_s = time.monotonic()
        deadline_s = began_s + GIVE_UP_AFTER_S
        while True:
            try:
                await self._bus.publish(self._subject, message.data, msg_id=message.msg_id, headers=message.headers)
            except StoreFull:
                raise
            except RetryableError:
                if time.monotonic() > deadline_s:
                    raise
                await asyncio.sleep(0.1)
            else:
                metrics.PUBLISH_S.observe(time.monotonic() - began_s)
                metrics.MESSAGE_REPORTS.observe(message.reports)
                return


def _joined(items: Sequence[Positions]) -> Positions:
    if len(items) == 1:
        return items[0]
    joined = Positions([], [], [], [], [], [])
    for one in items:
        joined.add(one)
    return joined


def _live_entry(items: Sequence[Positions], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.positions_entry(_joined(items), received_wall_us)


def _backfill_entry(items: Sequence[Positions], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.positions_entry(_joined(items), received_wall_us, backfilled=True)


def _equipment_entry(items: Sequence[EquipmentEvent], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.equipment_entry(items[0], received_wall_us)


def _event_id(event: EquipmentEvent) -> str:
    return f"{event.device_id}/{event.report_id}"
