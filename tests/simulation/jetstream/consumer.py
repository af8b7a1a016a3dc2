"""A pull consumer of the in-memory JetStream: waiting requests, heartbeats, acknowledgement and redelivery."""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tests.simulation.jetstream.stream import MemoryStream, Stored, matches
from tests.simulation.kernel.world import SECOND_NS, Event, World

DEFAULT_ACK_WAIT_NS = 30 * SECOND_NS
MAX_WAITING = 512
MAX_HEARTBEATS = 1_024
"""Number of heartbeats that were sent last whose headers are kept."""
TIMED_OUT = "NATS/1.0 408 Request Timeout"
HEARTBEAT = "NATS/1.0 100 Idle Heartbeat"
DELETED = "NATS/1.0 409 Consumer Deleted"
TOO_MANY = "NATS/1.0 409 Exceeded MaxWaiting"


@dataclass(slots=True)
class Delivery:
    """A frame for a subject: a message, or a status with headers only."""

    to: str
    subject: str
    reply: str
    headers: bytes
    data: bytes


@dataclass(slots=True, eq=False)
class Request:
    """A pull request that waits for messages."""

    reply: str
    left: int
    expires_ns: int
    heartbeat_ns: int
    timer: Event | None = None


def status(line: str, **fields: object) -> bytes:
    """Headers of a status message."""
    lines = [line, *(f"{name.replace('_', '-')}: {value}" for name, value in fields.items())]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


@lru_cache(maxsize=MAX_HEARTBEATS)
def heartbeat(last_consumer: int, last_stream: int) -> bytes:
    """Headers of a heartbeat. A consumer without messages repeats its own."""
    return status(HEARTBEAT, Nats_Last_Consumer=last_consumer, Nats_Last_Stream=last_stream)


class MemoryConsumer:
    """A pull consumer."""

    def __init__(
        self,
        world: World,
        stream: MemoryStream,
        config: Mapping[str, Any],
        *,
        send: Callable[[Delivery], bool],
        on_forgotten: Callable[[MemoryConsumer], None],
    ) -> None:
        self.config = dict(config)
        self.stream = stream
        self.created_ns = world.now_ns
        self.name = str(config.get("name") or config["durable_name"])
        self.is_durable = bool(config.get("durable_name"))
        self._world = world
        self._send = send
        self._on_forgotten = on_forgotten
        self._filters = tuple(config.get("filter_subjects") or ())
        self._acks = config.get("ack_policy") == "explicit"
        self._ack_wait_ns = int(config.get("ack_wait") or DEFAULT_ACK_WAIT_NS)
        self._max_pending = int(config.get("max_ack_pending") or 1000) if self._acks else -1
        self._next = self._first_sequence()
        self.delivered_consumer, self.delivered_stream = 0, self._next - 1
        self._unacknowledged: OrderedDict[int, tuple[int, int]] = OrderedDict()
        """Time until which each delivered message may be acknowledged, and how often it was delivered, by stream sequence."""
        self._redeliver: deque[int] = deque()
        self._pending = sum(1 for stored in stream.after(self._next) if self._wants(stored.subject))
        self._waiting: deque[Request] = deque()
        self._is_gone = False
        self._inactive_ns = int(config.get("inactive_threshold") or 0)
        self._active_ns = world.now_ns
        self._redelivery: Event | None = None
        stream.on_stored.append(self._stored)
        stream.on_dropped.append(self._dropped)
        self._watch_activity()

    def _first_sequence(self) -> int:
        stream = self.stream
        if self.config.get("deliver_policy") == "by_start_sequence":
            return max(int(self.config["opt_start_seq"]), stream.first_sequence, 1)
        return max(stream.first_sequence, 1)

    def _wants(self, subject: str) -> bool:
        return not self._filters or any(matches(pattern, subject) for pattern in self._filters)

    def info(self) -> dict[str, Any]:
        """The consumer as the API describes it."""
        return {
            "stream_name": self.stream.name,
            "name": self.name,
            "config": self.config,
            "delivered": {"consumer_seq": self.delivered_consumer, "stream_seq": self.delivered_stream},
            "num_ack_pending": len(self._unacknowledged),
            "num_waiting": len(self._waiting),
            "num_pending": self._pending,
        }

    # ── requests ────────────────────────────────────────────────────────────────────────────────────────────────────

    def pull(self, reply: str, payload: bytes) -> None:
        """Accepts a pull request."""
        self._active_ns = self._world.now_ns
        fields = json.loads(payload) if payload.startswith(b"{") else {}
        expires_ns, heartbeat_ns = int(fields.get("expires") or 0), int(fields.get("idle_heartbeat") or 0)
        if len(self._waiting) >= MAX_WAITING:
            self._send(Delivery(reply, reply, "", status(TOO_MANY), b""))
            return
        expires_at_ns = self._world.now_ns + expires_ns if expires_ns else 0
        request = Request(reply, int(fields.get("batch") or 1), expires_at_ns, heartbeat_ns)
        self._waiting.append(request)
        self._plan(request)
        self._deliver()

    def _plan(self, request: Request) -> None:
        """Plans the request's next heartbeat or its end."""
        times = [request.expires_ns] if request.expires_ns else []
        if request.heartbeat_ns:
            times.append(self._world.now_ns + request.heartbeat_ns)
        if times:
            request.timer = self._world.at_ns(min(times), lambda: self._beat(request))

    def _beat(self, request: Request) -> None:
        if self._is_gone or request not in self._waiting:
            return
        self._active_ns = self._world.now_ns
        if request.expires_ns and self._world.now_ns >= request.expires_ns:
            self._waiting.remove(request)
            ended = status(TIMED_OUT, Nats_Pending_Messages=request.left, Nats_Pending_Bytes=0)
            self._send(Delivery(request.reply, request.reply, "", ended, b""))
            return
        beat = heartbeat(self.delivered_consumer, self.delivered_stream)
        if self._send(Delivery(request.reply, request.reply, "", beat, b"")):
            self._plan(request)
        else:
            self._waiting.remove(request)  # nobody listens at the reply subject any more

    # ── messages ────────────────────────────────────────────────────────────────────────────────────────────────────

    def _stored(self, stored: Stored) -> None:
        if stored.sequence >= self._next and self._wants(stored.subject):
            self._pending += 1
            if self._waiting:
                self._deliver()

    def _dropped(self, stored: Stored) -> None:
        if stored.sequence >= self._next and self._wants(stored.subject):
            self._pending -= 1
        self._unacknowledged.pop(stored.sequence, None)

    def _deliver(self) -> None:
        while self._waiting:
            stored = self._next_message()
            if stored is None:
                return
            request = self._waiting[0]
            if not self._hand_over(stored, request):
                self._waiting.popleft()
                self._redeliver.appendleft(stored.sequence)
                continue
            request.left -= 1
            if not request.left:
                self._waiting.popleft()
                if request.timer:
                    self._world.cancel(request.timer)

    def _next_message(self) -> Stored | None:
        while self._redeliver:
            sequence = self._redeliver.popleft()
            if sequence in self.stream.messages:
                return self.stream.messages[sequence]
            self._unacknowledged.pop(sequence, None)
        if self._max_pending >= 0 and len(self._unacknowledged) >= self._max_pending:
            return None
        stream = self.stream
        self._next = max(self._next, stream.first_sequence)
        while self._next <= stream.last_sequence:
            stored = stream.messages.get(self._next)
            self._next += 1
            if stored and self._wants(stored.subject):
                self._pending -= 1
                return stored
        return None

    def _hand_over(self, stored: Stored, request: Request) -> bool:
        _, times = self._unacknowledged.get(stored.sequence, (0, 0))
        number = self.delivered_consumer + 1
        reply = (
            f"$JS.ACK.{self.stream.name}.{self.name}.{times + 1}.{stored.sequence}.{number}.{stored.stored_at_ns}"
            f".{self._pending}"
        )
        if not self._send(Delivery(request.reply, stored.subject, reply, stored.headers, stored.data)):
            return False
        self.delivered_consumer, self.delivered_stream = number, max(self.delivered_stream, stored.sequence)
        if self._acks:
            self._unacknowledged[stored.sequence] = (self._world.now_ns + self._ack_wait_ns, times + 1)
            self._unacknowledged.move_to_end(stored.sequence)
            self._plan_redelivery()
        return True

    def acknowledge(self, sequence: int) -> None:
        """Notes that a message is acknowledged."""
        self._active_ns = self._world.now_ns
        if self._unacknowledged.pop(sequence, None) is not None:
            self._deliver()

    def _plan_redelivery(self) -> None:
        if self._redelivery is None and self._unacknowledged:
            until_ns, _ = next(iter(self._unacknowledged.values()))
            self._redelivery = self._world.at_ns(until_ns, self._time_out)

    def _time_out(self) -> None:
        self._redelivery = None
        if self._is_gone:
            return
        for sequence, (until_ns, _) in list(self._unacknowledged.items()):
            if until_ns <= self._world.now_ns:
                # A message that still waits for a request gets a new time too: otherwise this moment would never end.
                if sequence not in self._redeliver:
                    self._redeliver.append(sequence)
                times = self._unacknowledged[sequence][1]
                self._unacknowledged[sequence] = (self._world.now_ns + self._ack_wait_ns, times)
                self._unacknowledged.move_to_end(sequence)
        self._deliver()
        self._plan_redelivery()

    # ── end ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _watch_activity(self) -> None:
        if not self._inactive_ns:
            return

        def check() -> None:
            if self._is_gone:
                return
            idle_since_ns = self._world.now_ns if self._waiting else self._active_ns
            if self._world.now_ns - idle_since_ns >= self._inactive_ns:
                self._on_forgotten(self)
            else:
                self._world.at_ns(idle_since_ns + self._inactive_ns, check)

        self._world.at_ns(self._active_ns + self._inactive_ns, check)

    def end(self) -> None:
        """Deletes the consumer. Waiting requests get a status."""
        if not self._is_gone:
            self.stop()
            for request in self._waiting:
                self._send(Delivery(request.reply, request.reply, "", status(DELETED), b""))

    def stop(self) -> None:
        """Stops the consumer without a word, as when the server dies."""
        self._is_gone = True
        self.stream.on_stored.remove(self._stored)
        self.stream.on_dropped.remove(self._dropped)

    def restarted(
        self, send: Callable[[Delivery], bool], on_forgotten: Callable[[MemoryConsumer], None]
    ) -> MemoryConsumer:
        """The same durable consumer after a restart of the server: messages without acknowledgement come again."""
        consumer = MemoryConsumer(self._world, self.stream, self.config, send=send, on_forgotten=on_forgotten)
        consumer._next = min(self._next, self.stream.last_sequence + 1)
        consumer.delivered_consumer = self.delivered_consumer
        consumer.delivered_stream = min(self.delivered_stream, self.stream.last_sequence)
        consumer._redeliver.extend(sorted(self._unacknowledged))
        consumer._unacknowledged = OrderedDict(
            (sequence, (self._world.now_ns + self._ack_wait_ns, times))
            for sequence, (_, times) in self._unacknowledged.items()
            if sequence in self.stream.messages
        )
        consumer._redeliver = deque(
            sequence for sequence in consumer._redeliver if sequence in consumer._unacknowledged
        )
        consumer._pending = sum(1 for stored in self.stream.after(consumer._next) if consumer._wants(stored.subject))
        return consumer
