"""States of a pull session, with a scripted server in the place of a real one. tests/mesh/common has the real one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from services.common.errors import Unavailable
from services.common.messaging import session
from services.common.messaging.bus import Bus, NameInUse
from services.common.messaging.session import Consumer, PullSession
from services.common.observability.health import ReaderHealth

WITHIN_S = 10.0
BATCH = 4


class ScriptedServer:
    """A NATS client and JetStream whose answers a test writes."""

    def __init__(self) -> None:
        self.created: list[str] = []
        """Actions of the requests that create a consumer."""
        self.requested: asyncio.Queue[str] = asyncio.Queue()
        """Reply subjects of the pull requests."""
        self.deleted: list[str] = []
        self.refusals: list[Exception] = []
        """Errors of the next creations."""
        self.reconnects = 0
        self.has_subscription = False
        self._on_message: Callable[[Msg], Awaitable[None]]

    @property
    def client(self) -> ScriptedServer:
        return self

    def new_inbox(self) -> str:
        return "_INBOX.test"

    async def subscribe(self, _subject: str, cb: Callable[[Msg], Awaitable[None]], **_limits: int) -> ScriptedServer:
        self._on_message, self.has_subscription = cb, True
        return self

    async def unsubscribe(self) -> None:
        self.has_subscription = False

    async def publish(self, subject: str, _payload: bytes, reply: str) -> None:
        if ".DELETE." in subject:
            self.deleted.append(subject)
        else:
            self.requested.put_nowait(reply)

    async def api(self, _subject: str, request: Mapping[str, object]) -> dict[str, Any]:
        if self.refusals:
            raise self.refusals.pop(0)
        self.created.append(str(request["action"]))
        return {"delivered": {"stream_seq": 0}}

    async def send(self, sequence: int, *, consumer_sequence: int | None = None, data: bytes = b"x") -> None:
        """Delivers a message of the stream."""
        reply = f"$JS.ACK.LOG_0.reader.1.{sequence}.{consumer_sequence or sequence}.1764000000000000000.0"
        await self._on_message(Msg(cast(Client, None), "log.0.report", reply, data))

    async def send_status(self, status: str, subject: str) -> None:
        """Sends a status of a pull request."""
        await self._on_message(Msg(cast(Client, None), subject, "", b"", {"Status": status}))


class Reader:
    """Collects what a session yields, in a task of its own."""

    def __init__(self, server: ScriptedServer, *, is_durable: bool, linger_s: float = 0.0) -> None:
        self.seen: list[int] = []
        self.lists: list[list[int]] = []
        """Sequences of the messages by the list in which they came."""
        self.compared = 0
        config = ConsumerConfig(durable_name="reader") if is_durable else ConsumerConfig(name="reader")
        self.health = ReaderHealth("LOG_0")
        pull_session = PullSession(
            cast(Bus, server),
            Consumer("LOG_0", config, BATCH, is_durable=is_durable, linger_s=linger_s),
            compare=self._compare,
            health=self.health,
        )
        self.task = asyncio.create_task(self._read(pull_session))

    async def _compare(self, _bus: Bus, _delivered: int) -> None:
        self.compared += 1

    async def _read(self, pull_session: PullSession) -> None:
        with self.health.reading():
            async for messages in pull_session.batches():
                self.lists.append([message.sequence for message in messages])
                self.seen += self.lists[-1]

    async def until_seen(self, count: int) -> None:
        async with asyncio.timeout(WITHIN_S):
            while len(self.seen) < count:  # noqa: ASYNC110  # the session is under test as it is
                await asyncio.sleep(0)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)


async def test_the_next_messages_are_requested_before_the_requested_ones_run_out() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=True)
    assert await server.requested.get() == "_INBOX.test.1"
    await server.send(1)
    await reader.until_seen(1)
    assert server.requested.empty()
    await server.send(2)
    assert await server.requested.get() == "_INBOX.test.2"
    await reader.stop()
    assert (reader.seen, reader.compared, server.created, server.deleted) == ([1, 2], 1, [""], [])
    assert not server.has_subscription


async def test_messages_that_come_while_a_reader_lingers_are_yielded_together() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=False, linger_s=0.5)
    await server.requested.get()
    await server.send(1)
    for _ in range(10):  # a reader that doesn't linger would yield it now
        await asyncio.sleep(0)
    await server.send(2)
    await reader.until_seen(2)
    await reader.stop()
    assert reader.lists == [[1, 2]]


async def test_a_gap_ends_a_reader_before_the_message_after_it_and_frees_its_name() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=False)
    await server.requested.get()
    await server.send(1)
    await server.send(3)
    await asyncio.wait_for(reader.task, WITHIN_S)
    assert reader.seen == [1] and server.created == ["create"]
    assert server.deleted == ["$JS.API.CONSUMER.DELETE.LOG_0.reader"] and not server.has_subscription


async def test_a_message_without_content_ends_a_reader_after_it() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=False)
    await server.requested.get()
    await server.send(1, data=b"")
    await server.send(2)
    await asyncio.wait_for(reader.task, WITHIN_S)
    assert reader.seen == [1]


@pytest.mark.parametrize("is_durable", [True, False])
async def test_messages_that_come_with_a_reconnect_wait_for_a_comparison(is_durable: bool) -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=is_durable)
    await server.requested.get()
    server.reconnects = 1
    await server.send(1)
    if is_durable:
        await server.requested.get()
        await server.send(2)
        await reader.until_seen(1)
        assert reader.seen == [2] and reader.compared == 2
        await reader.stop()
    else:
        await asyncio.wait_for(reader.task, WITHIN_S)
        assert reader.seen == []


async def test_a_heartbeat_shows_that_an_idle_reader_has_caught_up() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=False)
    reply = await server.requested.get()
    assert reader.health.unable()
    await server.send_status("100", reply)
    assert not reader.health.unable()
    await server.send(1)
    await reader.until_seen(1)
    await reader.stop()


async def test_a_heartbeat_after_a_reconnect_leads_to_a_comparison() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=True)
    reply = await server.requested.get()
    server.reconnects = 1
    await server.send_status("100", reply)
    await server.requested.get()
    assert server.created == ["", ""] and reader.compared == 2
    await reader.stop()


@pytest.mark.parametrize("has_heartbeat", [True, False])
async def test_a_reader_without_heartbeats_gives_its_consumer_up(
    has_heartbeat: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "HEARTBEAT_S", 0.05)
    server = ScriptedServer()
    reader = Reader(server, is_durable=False)
    reply = await server.requested.get()
    if has_heartbeat:  # the next ones are missing
        await server.send_status("100", reply)
    await asyncio.wait_for(reader.task, WITHIN_S)
    assert server.created == ["create"] and not server.has_subscription


async def test_a_refused_request_makes_a_durable_reader_sure_of_its_consumer() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=True)
    await server.send_status("409", await server.requested.get())
    await server.requested.get()
    assert server.created == ["", ""] and reader.compared == 2
    await reader.stop()


async def test_a_timed_out_request_is_repeated_on_the_same_consumer() -> None:
    server = ScriptedServer()
    reader = Reader(server, is_durable=False)
    await server.send_status("408", await server.requested.get())
    await server.requested.get()
    assert server.created == ["create"]
    await reader.stop()


async def test_a_creation_is_retried_unless_the_name_is_in_use() -> None:
    server = ScriptedServer()
    server.refusals = [Unavailable("away"), NameInUse("another reader's")]
    reader = Reader(server, is_durable=False)
    with pytest.raises(NameInUse):
        await asyncio.wait_for(reader.task, WITHIN_S)
    assert server.created == [] and server.deleted == []
