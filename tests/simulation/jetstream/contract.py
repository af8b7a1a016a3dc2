"""Random sequences of requests for a JetStream server, and the two servers that must answer them alike: in memory and real."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from random import Random
from typing import Any, NamedTuple, Protocol

from nats.aio.msg import Msg

from tests.simulation.jetstream.stream import EXPECTED_LAST, MSG_ID

Answer = dict[str, Any]
_STATE = ("messages", "bytes", "first_seq", "last_seq", "consumer_count")
_CONSUMER = ("stream_name", "name", "delivered", "num_ack_pending")
WITHIN_S = 60.0
PULL_S = 0.1
"""Time after which the server ends a pull request, seconds."""


class Connection(Protocol):
    """The methods of nats-py's client that the contract needs."""

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends a message."""

    async def subscribe(self, subject: str, *, cb: Callable[[Msg], Awaitable[None]]) -> Any:
        """Subscribes to a subject."""

    def new_inbox(self) -> str:
        """A subject for answers."""


class Step(NamedTuple):
    """A request and what came of it."""

    request: str
    answer: Any


class Side:
    """One of the two servers, through a client of its own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._inbox = connection.new_inbox()
        self._numbers = 0
        self._arrived: dict[str, asyncio.Queue[Msg]] = {}

    async def open(self) -> None:
        """Subscribes to the answers."""
        await self._connection.subscribe(f"{self._inbox}.*", cb=self._receive)

    async def _receive(self, message: Msg) -> None:
        # Messages of a stream come under their own subject, so the pull request is known by its consumer.
        key = message.subject.rpartition(".")[2]
        if message.reply.startswith("$JS.ACK."):
            key = ".".join(message.reply.split(".")[2:4])
        if key in self._arrived:
            self._arrived[key].put_nowait(message)

    async def request(self, subject: str, data: bytes, headers: Mapping[str, str] | None = None) -> Answer:
        """Sends a request and returns its JSON answer; an empty answer is an empty object."""
        self._numbers += 1
        key = str(self._numbers)
        queue = self._arrived[key] = asyncio.Queue()
        await self._connection.publish(subject, data, f"{self._inbox}.{key}", headers)
        async with asyncio.timeout(WITHIN_S):
            message = await queue.get()
        del self._arrived[key]
        return json.loads(message.data) if message.data else {}

    async def pull(self, stream: str, consumer: str, count: int) -> list[Msg]:
        """Pulls messages of a consumer: at most a number, and those that come within a short time. A status ends them."""
        self._numbers += 1
        key, status = f"{stream}.{consumer}", str(self._numbers)
        queue = self._arrived[key] = self._arrived[status] = asyncio.Queue()
        subject = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        payload = json.dumps({"batch": count, "expires": int(PULL_S * 1e9)}).encode()
        await self._connection.publish(subject, payload, f"{self._inbox}.{status}")
        messages: list[Msg] = []
        async with asyncio.timeout(WITHIN_S):
            while len(messages) < count:
                message = await queue.get()
                if not message.reply.startswith("$JS.ACK."):
                    break
                messages.append(message)
        del self._arrived[key], self._arrived[status]
        return messages


async def play(side: Side, seed: int) -> list[Step]:
    """Plays the sequence of a seed and returns what was answered, without times."""
    return await _Sequence(side, seed).play()


class _Sequence:
    """A sequence of requests to one stream. What it asks depends on the seed and on earlier answers only."""

    def __init__(self, side: Side, seed: int) -> None:
        self._side, self._random = side, Random(seed)
        self._name, self._prefix = f"S{seed}", f"s{seed}"
        self._subjects = [f"{self._prefix}.{kind}.{i}" for kind in ("a", "b") for i in range(2)]
        self._steps: list[Step] = []
        self._discards_old = False
        self._filters = self._random.random() < 0.5
        """Whether consumers have filters."""
        self._last: dict[str, int] = {}
        self._last_sequence = 0
        self._consumers: dict[str, bool] = {}
        """Whether each consumer acknowledges."""
        self._unacknowledged: dict[str, list[str]] = {}

    async def play(self) -> list[Step]:
        random = self._random
        config: dict[str, Any] = {
            "name": self._name,
            "subjects": [f"{self._prefix}.>"],
            "retention": "limits",
            "storage": "file",
            "discard": random.choice(("new", "old")),
            "max_bytes": random.choice((-1, 700, 3_000)),
            "max_msgs_per_subject": random.choice((-1, -1, 1)),
            "duplicate_window": 600_000_000_000,
            "num_replicas": 1,
            "allow_direct": True,
        }
        self._discards_old = config["discard"] == "old"
        await self._ask("create", f"STREAM.CREATE.{self._name}", config, keep=())
        operations: tuple[Callable[[], Awaitable[None]], ...] = (self._publish,) * 6 + (
            self._get,
            self._last_by_subject,
            self._info,
        )
        operations += (self._create, self._create, self._pull, self._pull, self._acknowledge, self._delete)
        for _ in range(random.randint(10, 30)):
            await random.choice(operations)()
        await self._info()
        await self._everything()
        for name in self._consumers:
            # The server counts the pending messages of a consumer a moment after a publish: compared only here.
            answer = await self._side.request(f"$JS.API.CONSUMER.INFO.{self._name}.{name}", b"")
            self._note(f"end of {name}", answer, (*_CONSUMER, "num_pending"))
        await self._ask("delete", f"STREAM.DELETE.{self._name}", {}, keep=("success",))
        return self._steps

    async def _ask(self, what: str, call: str, request: Mapping[str, Any], *, keep: tuple[str, ...]) -> Answer:
        answer = await self._side.request(f"$JS.API.{call}", json.dumps(request).encode())
        self._note(f"{what} {json.dumps(request)}", answer, keep)
        return answer

    def _note(self, request: str, answer: Answer, keep: tuple[str, ...]) -> None:
        kept = {name: answer.get(name) for name in keep}
        if isinstance(delivered := kept.get("delivered"), dict):
            # A filtered consumer's sequence in the stream also moves over messages that it doesn't want, when the server gets to it.
            kept["delivered"] = delivered["consumer_seq"] if self._filters else delivered
            delivered.pop("last_active", None)
        if "error" in answer:
            kept = {name: answer["error"].get(name) for name in ("code", "err_code", "description")}
        self._steps.append(Step(request, kept))

    async def _publish(self) -> None:
        random, subject = self._random, self._random.choice(self._subjects)
        headers = {}
        if random.random() < 0.5:
            headers[MSG_ID] = f"id-{random.randint(1, 6)}"
        if random.random() < 0.5 and not self._discards_old:
            headers[EXPECTED_LAST] = str(random.choice((0, self._last.get(subject, 0), random.randint(0, 9))))
        data = bytes(random.choice((0, 5, 60, 400)))
        answer = await self._side.request(subject, data, headers or None)
        if "error" not in answer and not answer.get("duplicate"):
            self._last[subject] = self._last_sequence = answer["seq"]
        self._note(f"publish {subject} {headers} {len(data)} B", answer, ("stream", "seq", "duplicate"))

    async def _get(self) -> None:
        request = {"seq": self._random.randint(1, self._last_sequence + 2)}
        await self._get_message(request)

    async def _last_by_subject(self) -> None:
        pattern = self._random.choice(
            (*self._subjects, f"{self._prefix}.a.*", f"{self._prefix}.>", f"{self._prefix}.c")
        )
        await self._get_message({"last_by_subj": pattern})

    async def _get_message(self, request: Mapping[str, Any]) -> None:
        answer = await self._side.request(f"$JS.API.STREAM.MSG.GET.{self._name}", json.dumps(request).encode())
        message = answer.get("message", {})
        headers = sorted(base64.b64decode(message.get("hdrs", "")).split(b"\r\n"))
        content = {name: message.get(name) for name in ("subject", "seq", "data")}
        self._note(f"get {request}", {**answer, **content, "headers": headers}, ("subject", "seq", "data", "headers"))

    async def _info(self) -> None:
        answer = await self._side.request(f"$JS.API.STREAM.INFO.{self._name}", b"{}")
        self._note("info", {**answer, **answer.get("state", {})}, _STATE)

    async def _create(self) -> None:
        random, acks = self._random, self._random.random() < 0.5
        name = f"c{random.randint(0, 2)}"
        config: dict[str, Any] = {
            "name": name,
            "ack_policy": "explicit" if acks else "none",
            "deliver_policy": random.choice(("all", "by_start_sequence")),
            "metadata": {"reader": str(random.randint(0, 1))},
        }
        if config["deliver_policy"] == "by_start_sequence":
            config["opt_start_seq"] = random.randint(1, self._last_sequence + 1)
        if acks:
            config |= {"ack_wait": 600_000_000_000, "max_ack_pending": 1_000, "durable_name": name}
        else:
            config |= {"inactive_threshold": 600_000_000_000, "mem_storage": True}
        if self._filters and random.random() < 0.7:
            config["filter_subjects"] = [f"{self._prefix}.{random.choice('ab')}.*"]
        request = {"stream_name": self._name, "config": config, "action": "create"}
        answer = await self._ask(f"consumer {name}", f"CONSUMER.CREATE.{self._name}.{name}", request, keep=_CONSUMER)
        if "error" not in answer and name not in self._consumers:
            self._consumers[name], self._unacknowledged[name] = acks, []

    async def _pull(self) -> None:
        if not self._consumers:
            return
        name = self._random.choice(sorted(self._consumers))
        count = self._random.randint(1, 5)
        await self._pull_of(name, count)

    async def _pull_of(self, name: str, count: int) -> None:
        messages = await self._side.pull(self._name, name, count)
        for message in messages:
            tokens = message.reply.split(".")
            delivered = {
                "subject": message.subject,
                "data": len(message.data),
                "times": tokens[4],
                "stream": tokens[5],
                "consumer": tokens[6],
            }
            self._note(f"pull {name}", delivered, tuple(delivered))
            if self._consumers[name]:
                self._unacknowledged[name].append(message.reply)
        answer = await self._side.request(f"$JS.API.CONSUMER.INFO.{self._name}.{name}", b"")
        self._note(f"state of {name}", answer, _CONSUMER)

    async def _acknowledge(self) -> None:
        waiting = [(name, reply) for name, replies in self._unacknowledged.items() for reply in replies]
        if waiting:
            name, reply = self._random.choice(waiting)
            self._unacknowledged[name].remove(reply)
            await self._side.request(reply, b"+ACK")
            answer = await self._side.request(f"$JS.API.CONSUMER.INFO.{self._name}.{name}", b"")
            self._note(f"acknowledge {name}", answer, _CONSUMER)

    async def _delete(self) -> None:
        name = f"c{self._random.randint(0, 2)}"
        await self._ask(f"delete {name}", f"CONSUMER.DELETE.{self._name}.{name}", {}, keep=("success",))
        with suppress(KeyError):
            del self._consumers[name]
            del self._unacknowledged[name]

    async def _everything(self) -> None:
        """Reads all stored messages."""
        for sequence in range(1, self._last_sequence + 2):
            await self._get_message({"seq": sequence})
