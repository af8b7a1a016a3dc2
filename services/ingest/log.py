"""Writes accepted reports to each partition of the log that needs them. Reports that arrive during a publish share the next message.

A batch is notified when each of its entries is stored. The publish itself belongs to the writer, so it survives a cancelled caller.

With more than one partition, an order that arrives after the last reports of both parties may be decided in a partition that
hasn't seen the protected person. Whenever a device's route names a partition that lacks the device's last report, ingest publishes
that report there. The fold drops duplicates by report id.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from services.common.clock import MeshClock, wall_us
from services.common.errors import InvalidField, RetryableError, StoreFull
from services.common.messaging import flow, stored
from services.common.messaging.bus import Bounds, Bus
from services.common.observability import spans, telemetry
from services.common.observability.telemetry import logger
from services.ingest import translate
from services.ingest.admission.checks import Checked, RoutedPositions
from services.ingest.admission.routes import Partitions, Routes, read_held
from services.ingest.batch import Batch, Contexts
from services.ingest.domain import LIVE_MS, EquipmentEvent, Position, Positions, UnitPresence
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
        self._store = store
        self._encode = encode
        self._max_size = max_size
        self._in_flight = in_flight
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
            contexts=contexts or ((size, telemetry.carried()),),
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
    senders = spans.senders_header([pair for waiting in items for pair in waiting.contexts])
    return {spans.SENDERS: senders} if senders else {}


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


class Lane(NamedTuple):
    """The partitions that need a position, and whether the position is buffered."""

    partitions: Partitions
    is_backfill: bool


class LogWriters:
    """The log writers of all partitions."""

    def __init__(self, writers: Mapping[int, LogWriter], clock: MeshClock) -> None:
        self._writers, self._clock = writers, clock

    def write(self, batch: Batch, sender: str, checked: Checked, *, is_backfill: bool) -> None:
        """Queues the accepted reports of a batch. The writers note in the batch whether each entry was stored.

        Call it after all checks, so that a failed look-up leaves no batch half written. `sender` is the key by which senders take turns
        in the queues.
        """
        origin = Origin(batch, sender, wall_us())
        for lane, positions in self._lanes(checked.positions, is_backfill):
            for partition in lane.partitions:
                self._writers[partition].positions(
                    origin, positions.columns, contexts=positions.contexts, backfill=lane.is_backfill
                )
        for event, partitions in checked.events:
            for partition in partitions:
                self._writers[partition].equipment(origin, event)
        for presence, partitions in checked.presences:
            for partition in partitions:
                self._writers[partition].presence(origin, presence)
        for heard in (*checked.heard, *checked.contacts):
            for partition in heard.partitions:
                self._writers[partition].heard(origin, heard.device_id, heard.report_id)

    def _lanes(self, positions: RoutedPositions, is_backfill: bool) -> Iterator[tuple[Lane, RoutedPositions]]:
        """Yields the positions of each lane. Nearly always all positions share one lane."""
        times_ms, routes = positions.columns.fix_times_ms, positions.partitions
        if not times_ms:
            return
        live_from_ms = self._clock.now_ms() - LIVE_MS
        all_late = is_backfill or max(times_ms) < live_from_ms
        if routes.count(routes[0]) == len(routes) and (all_late or min(times_ms) >= live_from_ms):
            yield Lane(routes[0], all_late), positions
            return
        lanes: dict[Lane, list[int]] = {}
        for i, partitions in enumerate(routes):
            lanes.setdefault(Lane(partitions, is_backfill or times_ms[i] < live_from_ms), []).append(i)
        for lane, rows in lanes.items():
            yield lane, positions.only(rows)


REPUBLISHING_SENDER = "again"
"""Sender key of republished reports in the fair queues of the log writers."""
TAIL_MESSAGES = 50_000
"""Number of the newest messages of each partition that are read at the start."""


class LastReports:
    """Last position of each device and the partitions that hold it. Empty if there is only one partition."""

    def __init__(self, routes: Routes, writers: Mapping[int, LogWriter]) -> None:
        self._routes, self._writers = routes, writers
        self._last: dict[str, tuple[Position, set[int]]] = {}
        self._due: asyncio.Queue[str] = asyncio.Queue()

    def stored(self, positions: Positions, partitions: Sequence[Partitions]) -> None:
        """Notes the partitions that hold each position."""
        if len(self._writers) == 1:
            return
        for i in range(len(positions)):
            self._stored(positions.row(i), partitions[i])

    def _stored(self, position: Position, partitions: Partitions) -> None:
        known = self._last.get(position.device_id)
        if known and known[0].report_id == position.report_id:
            known[1].update(partitions)
        elif not known or position.fix_time_ms >= known[0].fix_time_ms:
            self._last[position.device_id] = (position, set(partitions))
        self.route_changed(position.device_id, self._routes.partitions(position.device_id))

    def route_changed(self, device_id: str, partitions: Partitions) -> None:
        """Queues the last report of a device for the partitions that need and lack it."""
        known = self._last.get(device_id)
        if known and set(partitions) - known[1]:
            self._due.put_nowait(device_id)

    async def read_tail(self, bus: Bus) -> None:
        """Learns the last reports from the newest TAIL_MESSAGES of each partition."""
        if len(self._writers) == 1:
            return
        for partition in self._writers:
            stream = flow.log_stream(partition)
            bounds = await bus.bounds_of(stream)
            tail = Bounds(max(bounds.first, bounds.last - TAIL_MESSAGES), bounds.last)
            async for messages in read_held(bus, stream, tail):
                for message in messages:
                    if message.subject == flow.log_subject(partition, "report"):
                        self._read(message.data, partition)

    def _read(self, data: bytes, partition: int) -> None:
        try:
            batch = stored.positions(data)
        except InvalidField:
            return  # the evaluators keep it as a dead letter
        for i, device_id in enumerate(batch.device_id):
            position = Position(
                device_id=device_id,
                report_id=batch.report_id[i],
                fix_time_ms=batch.fix_time_ms[i],
                lat_e7=batch.lat_e7[i],
                lon_e7=batch.lon_e7[i],
                accuracy_mm=batch.accuracy_mm[i],
                source=batch.source[i] if batch.source else 0,
            )
            self._stored(position, (partition,))

    async def run(self) -> None:
        """Publishes the queued reports until cancelled."""
        while True:
            device_id = await self._due.get()
            position, present = self._last[device_id]
            for partition in set(self._routes.partitions(device_id)) - present:
                batch = Batch()
                batch.check()
                self._writers[partition].positions(
                    Origin(batch, REPUBLISHING_SENDER, wall_us()), Positions.of([position])
                )
                batch.write()
                try:
                    await batch.ended()
                except RetryableError as error:
                    logger().warning("last_report_retried", partition=partition, reason=error.reason)
                    await asyncio.sleep(1)
                    self._due.put_nowait(device_id)
                else:
                    present.add(partition)
                    logger().info("last_report_published_again", partition=partition)
