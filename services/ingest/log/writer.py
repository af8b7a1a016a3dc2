"""Writes reports to the log in messages: reports that arrive during a publish share the next message.

A batch is notified when each of its entries is stored. The publish itself belongs to the writer, so it survives a cancelled caller.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability import trace_ids, tracing
from services.common.observability.telemetry import logger
from services.common.rpc.errors import RetryableError, StoreFull
from services.ingest import translate
from services.ingest.batch import Batch, Contexts
from services.ingest.domain import EquipmentEvent, Positions, UnitPresence
from services.ingest.metrics import IngestMetrics
from tandem.common.v1 import log_pb2

MAX_MESSAGE = 2_000
"""Maximum number of positions in a message. At up to 160 bytes each, a message stays well below the server's limit of 1 MB."""
MAX_BUFFERED_MESSAGE = 250
"""Maximum number of buffered positions in a message. A live report waits until the evaluators have folded the message before it, and a
buffered position takes them some ten times as long as a live one."""
UNABLE_AFTER_S = 10.0
"""Age of waiting live reports from which ingest reports itself not ready, seconds."""
GIVE_UP_AFTER_S = 8.0
"""Maximum time for retries of a publish with an unknown outcome, seconds. After it the caller gets the error and must send again."""

T = TypeVar("T")


class Origin(NamedTuple):
    """Origin of queued items: their batch, its sender, and the wall time of receipt."""

    batch: Batch
    """Batch that is notified when an item is stored or has failed."""
    sender: str
    """Key by which senders take turns in the queues."""
    received_wall_us: int


@dataclass(slots=True)
class _Waiting(Generic[T]):
    item: T
    size: int
    origin: Origin
    since_s: float
    contexts: Contexts


@dataclass(frozen=True, slots=True)
class _Message:
    data: bytes
    msg_id: str
    reports: int
    headers: Mapping[str, str]


class _Line(Generic[T]):
    """Queue of one kind of log entry. Senders take turns, so that none waits behind all entries of another."""

    def __init__(
        self,
        store: Callable[[_Message], Awaitable[None]],
        encode: Callable[[Sequence[T], int], log_pb2.LogEntry],
        max_size: int,
        *,
        in_flight: int,
        per_s: float | None = None,
        msg_id_of: Callable[[T], str] | None = None,
    ) -> None:
        self._store, self._encode, self._max_size, self._in_flight = store, encode, max_size, in_flight
        self._per_s, self._msg_id_of = per_s, msg_id_of
        self._queues: dict[str, deque[_Waiting[T]]] = {}
        self._idle: list[asyncio.Future[None]] = []
        """Workers that wait for items, the one that began to wait last at the end."""
        self._next_s = 0.0

    def put(self, origin: Origin, item: T, size: int, *, contexts: Contexts = ()) -> None:
        """Queues an item. Its batch is notified once the item is stored, or has failed with StoreFull or Unavailable.

        After Unavailable the item may still have been stored: send it again. Without `contexts`, all reports of the item have the trace
        context of this task.
        """
        waiting = _Waiting(
            item=item,
            size=size,
            origin=origin,
            since_s=time.monotonic(),
            contexts=contexts or ((size, tracing.carried()),),
        )
        origin.batch.add_entry()
        self._queues.setdefault(origin.sender, deque()).append(waiting)
        self._wake_worker()

    def oldest_s(self) -> float:
        """Returns the age of the oldest item that waits to be published, seconds."""
        return time.monotonic() - min((queue[0].since_s for queue in self._queues.values()), default=time.monotonic())

    async def run(self) -> None:
        """Publishes until cancelled, up to `in_flight` messages at a time."""
        async with asyncio.TaskGroup() as tasks:
            for _ in range(self._in_flight):
                tasks.create_task(self._work())

    async def _work(self) -> None:
        while True:
            while not self._queues:
                self._idle.append(asyncio.get_running_loop().create_future())
                await self._idle[-1]
            if self._per_s is not None:
                await asyncio.sleep(max(0.0, self._next_s - time.monotonic()))
            items = self._next_items()
            if not items:
                continue  # another worker was faster
            size = sum(waiting.size for waiting in items)
            if self._per_s is not None:
                self._next_s = max(self._next_s, time.monotonic()) + size / self._per_s
            entry = self._encode(
                [waiting.item for waiting in items], min(waiting.origin.received_wall_us for waiting in items)
            )
            msg_id = self._msg_id_of(items[0].item) if self._msg_id_of else secrets.token_hex(16)
            error: RetryableError | None = None
            try:
                await self._store(
                    _Message(data=entry.SerializeToString(), msg_id=msg_id, reports=size, headers=_headers(items))
                )
            except RetryableError as raised:
                error = raised
                items += self._give_up()
                reports = sum(waiting.size for waiting in items)
                logger().warning("reports_not_stored", reports=reports, reason=error.reason)
            for waiting in items:
                waiting.origin.batch.stored(error)

    def _wake_worker(self) -> None:
        """Wakes one idle worker, if there is one. The others would find nothing left: each item wakes one."""
        while self._idle:
            woken = self._idle.pop()
            if not woken.done():  # a cancelled worker leaves its future behind
                woken.set_result(None)
                return

    def _next_items(self) -> list[_Waiting[T]]:
        """Removes the items of the next message from the queues. Each sender gets an even part of the message, counted in reports."""
        items: list[_Waiting[T]] = []
        total = 0
        part = max(1, self._max_size // max(1, len(self._queues)))
        while self._queues:
            sender = next(iter(self._queues))
            queue = self._queues.pop(sender)
            turn_ends = total + part
            while queue and total < turn_ends and (not items or total + queue[0].size <= self._max_size):
                items.append(queue.popleft())
                total += items[-1].size
            if queue:
                self._queues[sender] = queue  # senders take turns: this one goes to the end of the line
                if total < turn_ends:
                    break  # its next item doesn't fit
        return items

    def _give_up(self) -> list[_Waiting[T]]:
        """Removes the items that have waited longer than GIVE_UP_AFTER_S. Trying them one after the other would take minutes."""
        given_up: list[_Waiting[T]] = []
        until_s = time.monotonic() - GIVE_UP_AFTER_S
        for sender, queue in list(self._queues.items()):
            while queue and queue[0].since_s < until_s:
                given_up.append(queue.popleft())
            if not queue:
                del self._queues[sender]
        return given_up


def _headers(items: Sequence[_Waiting[T]]) -> Mapping[str, str]:
    senders = trace_ids.senders_header([pair for waiting in items for pair in waiting.contexts])
    return {trace_ids.SENDERS: senders} if senders else {}


class LogWriter:
    """Writes reports to one partition of the log."""

    def __init__(self, bus: Bus, partition: int, *, backfill_per_s: float, metrics: IngestMetrics) -> None:
        self._bus, self._metrics = bus, metrics
        self._subject = flow.log_subject(partition, "report")
        # Two in flight: with more, messages and answers get smaller, which costs more than waiting for the disk.
        self._live = _Line(self._publish, _live_entry, MAX_MESSAGE, in_flight=2)
        # One message at a time, at a limited rate, so that buffered reports never delay live ones.
        self._backfill = _Line(self._publish, _backfill_entry, MAX_BUFFERED_MESSAGE, in_flight=1, per_s=backfill_per_s)
        self._heard = _Line(self._publish, translate.heard_entry, MAX_MESSAGE, in_flight=1)
        self._presences = _Line(self._publish, translate.presences_entry, MAX_MESSAGE, in_flight=1)
        # One event per entry: events are rare, and a panic must not wait for others.
        self._equipment = _Line(self._publish, _equipment_entry, 1, in_flight=16, msg_id_of=_event_id)

    async def run(self) -> None:
        """Publishes until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for line in (self._live, self._backfill, self._heard, self._presences, self._equipment):
                tasks.create_task(line.run())

    def positions(
        self, origin: Origin, positions: Positions, *, contexts: Contexts = (), backfill: bool = False
    ) -> None:
        """Queues positions, as an entry of their batch."""
        (self._backfill if backfill else self._live).put(origin, positions, len(positions), contexts=contexts)

    def heard(self, origin: Origin, device_id: str, report_id: str) -> None:
        """Queues the contact of a device without a usable position, as an entry of its batch."""
        self._heard.put(origin, (device_id, report_id), 1)

    def presence(self, origin: Origin, presence: UnitPresence) -> None:
        """Queues a presence at a home unit or beacon, as an entry of its batch."""
        self._presences.put(origin, presence, 1)

    def equipment(self, origin: Origin, event: EquipmentEvent) -> None:
        """Queues an equipment event, as an entry of its batch."""
        self._equipment.put(origin, event, 1)

    def lag_s(self) -> float:
        """Returns the age of the oldest live report or event that waits to be published, seconds."""
        return max(line.oldest_s() for line in (self._live, self._heard, self._presences, self._equipment))

    def unable(self) -> str:
        """Returns the reason why live reports don't reach the log, or an empty text."""
        lag_s = self.lag_s()
        return f"live reports have been waiting for {lag_s:.0f} s" if lag_s > UNABLE_AFTER_S else ""

    def backfill_lag_s(self) -> float:
        """Returns the age of the oldest buffered report that waits to be published, seconds."""
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
                self._metrics.publish_s.observe(time.monotonic() - began_s)
                self._metrics.message_reports.observe(message.reports)
                return


def _joined(items: Sequence[Positions]) -> Positions:
    if len(items) == 1:
        return items[0]
    joined = Positions(device_ids=[], report_ids=[], fix_times_ms=[], lat_e7=[], lon_e7=[], accuracy_mm=[])
    for positions in items:
        joined.add(positions)
    return joined


def _live_entry(items: Sequence[Positions], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.positions_entry(_joined(items), received_wall_us)


def _backfill_entry(items: Sequence[Positions], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.positions_entry(_joined(items), received_wall_us, backfilled=True)


def _equipment_entry(items: Sequence[EquipmentEvent], received_wall_us: int) -> log_pb2.LogEntry:
    return translate.equipment_entry(items[0], received_wall_us)


def _event_id(event: EquipmentEvent) -> str:
    return f"{event.device_id}/{event.report_id}"
