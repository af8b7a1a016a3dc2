"""The in-memory nats-server: subjects, JetStream's API, and a restart that keeps what was stored.

Modelled: publish with acknowledgement, duplicate window, expected last sequence of a subject, limits by age, bytes and messages of a
subject, pull consumers by sequence and durable ones, redelivery, heartbeats, the limit of consumers, crash and restart with or without
the streams' newest messages. Not modelled: users and their rights, clusters, push consumers, leaf nodes, TLS, the system account.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from tests.simulation.jetstream.consumer import Delivery, MemoryConsumer
from tests.simulation.jetstream.stream import MemoryStream, Refused, Stored, matches
from tests.simulation.kernel.network import End, Network
from tests.simulation.kernel.world import SECOND_NS, World

SERVER, ADDRESS = "nats", "nats:4222"
MAX_CONSUMERS = 1_000
MAX_DECODED = 4_096
"""Number of headers that were decoded last and are kept: each reader of a message decodes them, and heartbeats repeat theirs."""
_API = "$JS.API."
_NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"


def encode_headers(headers: Mapping[str, str] | None) -> bytes:
    """Headers as they go over the wire."""
    if not headers:
        return b""
    return ("NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n").encode()


def decode_headers(raw: bytes) -> dict[str, str] | None:
    """Headers as nats-py gives them: a status is the header Status."""
    return dict(_decoded(raw)) if raw else None


@lru_cache(maxsize=MAX_DECODED)
def _decoded(raw: bytes) -> dict[str, str]:
    first, *lines = raw.decode().strip().split("\r\n")
    headers = {}
    if code := first.removeprefix("NATS/1.0").strip():
        headers["Status"], _, headers["Description"] = code.partition(" ")
    for line in lines:
        name, _, value = line.partition(":")
        headers[name] = value.strip()
    return headers


@lru_cache(maxsize=MAX_DECODED)
def rfc3339(time_ns: int) -> str:
    """A time as nats-server writes it, with nanoseconds."""
    whole = datetime.fromtimestamp(time_ns // SECOND_NS, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f"{time_ns % SECOND_NS:09d}".rstrip("0")
    return f"{whole}.{fraction}Z" if fraction else f"{whole}Z"


class Subscription:
    """A subscription of a connection."""

    def __init__(self, connection: End, sid: int, pattern: str) -> None:
        self.connection = connection
        self.sid = sid
        self.pattern = pattern


class MemoryServer:
    """A nats-server in memory."""

    def __init__(self, world: World, network: Network) -> None:
        self.streams: dict[str, MemoryStream] = {}
        self._patterns: dict[str, list[tuple[str, MemoryStream]]] = {}
        """Patterns of the streams' subjects, by their first token."""
        self.is_up = False
        self.on_created: list[Callable[[MemoryStream], None]] = []
        self.on_acknowledged: Callable[[], None] = lambda: None
        """Called after each acknowledgement of a message that a durable consumer delivered."""
        self._world, self._network = world, network
        self._consumers: dict[tuple[str, str], MemoryConsumer] = {}
        self._subscriptions: dict[End, dict[int, Subscription]] = {}
        self._by_pattern: dict[str, list[Subscription]] = {}
        self.paused_until_ns = 0
        """Until then the server is stopped, as by SIGSTOP: connections stay open and nothing is answered."""

    # ── life ────────────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, torn: Mapping[str, int] | None = None) -> list[tuple[str, Stored]]:
        """Starts the server on its store. `torn` is the number of newest messages that each stream has lost; they are returned."""
        lost = []
        for name, count in (torn or {}).items():
            lost += [(name, stored) for stored in self.streams[name].tear(count)]
        kept, self._consumers = self._consumers, {}
        for key, consumer in kept.items():
            self._consumers[key] = consumer.restarted(self._route, self._forget)
        self.is_up = True
        self._network.listen(ADDRESS, SERVER, self._accept)
        return lost

    def restart(self) -> None:
        """Starts the server on its whole store, unless it runs."""
        if not self.is_up:
            self.start()

    def kill(self) -> None:
        """Kills the server. What was acknowledged is on its disk; consumers in memory are gone."""
        self.is_up = False
        self._network.died(SERVER)
        self._subscriptions.clear()
        self._by_pattern.clear()
        for key, consumer in list(self._consumers.items()):
            consumer.stop()
            if not consumer.is_durable:
                del self._consumers[key]

    def _accept(self, end: End, _: str) -> None:
        self._subscriptions[end] = {}
        end.receive = lambda frame: self._receive(end, frame)
        end.closed = lambda: self._closed(end)

    def _closed(self, end: End) -> None:
        ended: dict[int, Subscription] = self._subscriptions.pop(end, {})
        for subscription in ended.values():
            self._remove(subscription)

    def _remove(self, subscription: Subscription) -> None:
        listed = self._by_pattern.get(subscription.pattern, [])
        if subscription in listed:
            listed.remove(subscription)
        if not listed:
            self._by_pattern.pop(subscription.pattern, None)

    # ── frames ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _receive(self, end: End, frame: tuple[Any, ...]) -> None:
        if end not in self._subscriptions:
            return
        if self.paused_until_ns > self._world.now_ns:
            self._world.at_ns(self.paused_until_ns, lambda: self._receive(end, frame))
            return
        kind, *content = frame
        if kind == "pub":
            subject, reply, headers, data = content
            self._publish(subject, reply, headers, data=data)
        elif kind == "sub":
            subscription = Subscription(end, content[0], content[1])
            self._subscriptions[end][subscription.sid] = subscription
            self._by_pattern.setdefault(subscription.pattern, []).append(subscription)
        elif kind == "unsub":
            if content[0] in self._subscriptions[end]:
                self._remove(self._subscriptions[end].pop(content[0]))
        else:
            end.send(("pong",))

    def _publish(self, subject: str, reply: str, raw: bytes, *, data: bytes) -> None:
        if subject.startswith(_API):
            self._api(subject.removeprefix(_API), reply, data)
        elif subject.startswith("$JS.ACK."):
            self._acknowledge(subject, reply)
        elif (stream := self._stream_of(subject)) is not None:
            self._store(stream, subject, reply, raw=raw, data=data)
        elif not self._route(Delivery(subject, subject, reply, raw, data)) and reply:
            self._route(Delivery(reply, reply, "", _NO_RESPONDERS, b""))

    def _stream_of(self, subject: str) -> MemoryStream | None:
        for first in (subject.partition(".")[0], "*", ">"):
            for pattern, stream in self._patterns.get(first, ()):
                if matches(pattern, subject):
                    return stream
        return None

    def _list_patterns(self) -> None:
        self._patterns = {}
        for stream in self.streams.values():
            for pattern in stream.subjects:
                self._patterns.setdefault(pattern.partition(".")[0], []).append((pattern, stream))

    def _store(self, stream: MemoryStream, subject: str, reply: str, *, raw: bytes, data: bytes) -> None:
        answer: dict[str, Any] = {"stream": stream.name, "seq": 0}
        try:
            headers = decode_headers(raw) or {}
            ack = stream.publish(subject, headers, raw, data=data, now_ns=self._world.now_ns)
        except Refused as error:
            answer["error"] = _error(error)
        else:
            answer["seq"] = ack.sequence
            if ack.duplicate:
                answer["duplicate"] = True
        if reply:
            self._answer(reply, answer)

    def _answer(self, reply: str, answer: Mapping[str, Any]) -> None:
        self._route(Delivery(reply, reply, "", b"", json.dumps(answer).encode()))

    def _route(self, delivery: Delivery) -> bool:
        """Sends a message to the subscribers of a subject. Returns whether there are any."""
        to = delivery.to
        found = [*self._by_pattern.get(to, ()), *self._by_pattern.get(to.rpartition(".")[0] + ".*", ())]
        for subscription in found:
            subscription.connection.send(
                ("msg", subscription.sid, delivery.subject, delivery.reply, delivery.headers, delivery.data, to)
            )
        return bool(found)

    # ── JetStream's API ─────────────────────────────────────────────────────────────────────────────────────────────

    def _api(self, call: str, reply: str, data: bytes) -> None:
        if call.startswith("CONSUMER.MSG.NEXT."):
            stream, _, consumer = call.removeprefix("CONSUMER.MSG.NEXT.").partition(".")
            found = self._consumers.get((stream, consumer))
            if found is None:
                self._route(Delivery(reply, reply, "", _NO_RESPONDERS, b""))
            else:
                found.pull(reply, data)
            return
        try:
            answer = self._call(call, json.loads(data) if data else {})
        except Refused as error:
            answer = {"error": _error(error)}
        if reply:
            self._answer(reply, answer)

    def _call(self, call: str, request: Mapping[str, Any]) -> dict[str, Any]:
        if call == "INFO":
            return {"memory": 0, "storage": 0, "streams": len(self.streams), "consumers": len(self._consumers)}
        if call == "STREAM.LIST":
            streams = [self._stream_info(stream) for _, stream in sorted(self.streams.items())]
            return {"total": len(streams), "offset": 0, "limit": 256, "streams": streams}
        for prefix, answer in (
            ("STREAM.CREATE.", self._create_stream),
            ("STREAM.INFO.", self._info),
            ("STREAM.DELETE.", self._delete_stream),
            ("CONSUMER.INFO.", self._consumer_info),
            ("STREAM.MSG.GET.", self._get_message),
            ("CONSUMER.CREATE.", self._create_consumer),
            ("CONSUMER.DELETE.", self._delete_consumer),
        ):
            if call.startswith(prefix):
                return answer(call.removeprefix(prefix), request)
        raise Refused(404, 10000, f"{call} isn't modelled")

    def _stream(self, name: str) -> MemoryStream:
        if name not in self.streams:
            raise Refused(404, 10059, "stream not found")
        stream = self.streams[name]
        stream.expire(self._world.now_ns)
        return stream

    def _create_stream(self, name: str, config: Mapping[str, Any]) -> dict[str, Any]:
        if name in self.streams:
            if self.streams[name].given != dict(config):
                raise Refused(400, 10058, "stream name already in use with a different configuration")
        else:
            self.streams[name] = MemoryStream(config, self._world.now_ns)
            self._list_patterns()
            for notify in self.on_created:
                notify(self.streams[name])
        return self._stream_info(self.streams[name])

    def _delete_stream(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        self._stream(name)
        for key in [key for key in self._consumers if key[0] == name]:
            self._consumers.pop(key).end()
        del self.streams[name]
        self._list_patterns()
        return {"success": True}

    def _consumer_info(self, names: str, _request: Mapping[str, Any]) -> dict[str, Any]:
        stream, _, name = names.partition(".")
        self._stream(stream)
        if (stream, name) not in self._consumers:
            raise Refused(404, 10014, "consumer not found")
        return self._consumers[stream, name].info()

    def _info(self, name: str, _: Mapping[str, Any]) -> dict[str, Any]:
        return self._stream_info(self._stream(name))

    def _stream_info(self, stream: MemoryStream) -> dict[str, Any]:
        consumers = sum(1 for of, _ in self._consumers if of == stream.name)
        state = {
            "messages": len(stream.messages),
            "bytes": stream.bytes,
            "first_seq": stream.first_sequence,
            "last_seq": stream.last_sequence,
            "consumer_count": consumers,
        }
        return {"config": stream.config, "created": rfc3339(stream.created_ns), "state": state}

    def _get_message(self, name: str, request: Mapping[str, Any]) -> dict[str, Any]:
        stream = self._stream(name)
        by_subject = request.get("last_by_subj")
        stored = stream.last_by_subject(by_subject) if by_subject else stream.get(int(request["seq"]))
        message = {"subject": stored.subject, "seq": stored.sequence, "time": rfc3339(stored.stored_at_ns)}
        if stored.data:
            message["data"] = base64.b64encode(stored.data).decode()
        if stored.headers:
            message["hdrs"] = base64.b64encode(stored.headers).decode()
        return {"message": message}

    def _create_consumer(self, names: str, request: Mapping[str, Any]) -> dict[str, Any]:
        stream = self._stream(names.partition(".")[0])
        config = request["config"]
        name = str(config.get("name") or config.get("durable_name"))
        existing = self._consumers.get((stream.name, name))
        if existing is not None:
            if existing.config == config:
                return existing.info()
            if request.get("action") == "create":
                raise Refused(400, 10148, "consumer already exists")
            raise Refused(400, 10012, "consumer can not be updated in this way")
        if sum(1 for of, _ in self._consumers if of == stream.name) >= MAX_CONSUMERS:
            raise Refused(400, 10026, "maximum consumers limit reached")
        consumer = MemoryConsumer(self._world, stream, config, send=self._route, on_forgotten=self._forget)
        self._consumers[stream.name, name] = consumer
        return consumer.info()

    def _forget(self, consumer: MemoryConsumer) -> None:
        key = (consumer.stream.name, consumer.name)
        if self._consumers.get(key) is consumer:
            del self._consumers[key]
            consumer.end()

    def _delete_consumer(self, names: str, _request: Mapping[str, Any]) -> dict[str, Any]:
        stream, _, name = names.partition(".")
        self._stream(stream)
        consumer = self._consumers.pop((stream, name), None)
        if consumer is None:
            raise Refused(404, 10014, "consumer not found")
        consumer.end()
        return {"success": True}

    def _acknowledge(self, subject: str, reply: str) -> None:
        _, _, stream, consumer, _, sequence, *_ = subject.split(".")
        if found := self._consumers.get((stream, consumer)):
            found.acknowledge(int(sequence))
            self.on_acknowledged()
            if reply:
                self._route(Delivery(reply, reply, "", b"", b""))


def _error(error: Refused) -> dict[str, Any]:
    return {"code": error.code, "err_code": error.err_code, "description": error.description}
