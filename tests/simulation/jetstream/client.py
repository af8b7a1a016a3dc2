"""The NATS client of a simulated process, in the place of nats-py's: `services.common.messaging.bus` runs on it unchanged."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, cast

import nats.errors
from nats.aio.msg import Msg
from nats.js import JetStreamContext

from tests.simulation.jetstream.server import ADDRESS, decode_headers, encode_headers
from tests.simulation.kernel.network import End
from tests.simulation.kernel.process import current

RECONNECT_WAIT_S = 0.25
Callback = Callable[[Msg], Awaitable[None]]


class SimulatedSubscription:
    """A subscription with a callback."""

    def __init__(self, client: SimulatedClient, sid: int, pattern: str, *, callback: Callback) -> None:
        self.sid = sid
        self.pattern = pattern
        self.callback = callback
        self._client = client

    async def unsubscribe(self) -> None:
        """Ends the subscription."""
        self._client.unsubscribe(self)


class SimulatedClient:
    """A client with the methods of nats-py's that the bus uses. It reconnects for ever, and buffers nothing meanwhile."""

    def __init__(self) -> None:
        self._process = current()
        self.stats = {"reconnects": 0}
        self.options: dict[str, Any] = {}
        self._prefix = "_INBOX"
        self._end: End | None = None
        self._subscriptions: dict[int, SimulatedSubscription] = {}
        self._numbers = 0
        self._answers: dict[str, asyncio.Future[Msg]] = {}
        self._answer_inbox = ""
        self._is_closing = False
        self._reconnecting: asyncio.Task[None] | None = None
        self._events: dict[str, Callable[[], Awaitable[None]]] = {}

    async def connect(self, _: Sequence[str], **options: Any) -> None:
        """Connects, with retries until the server answers."""
        self._prefix = options["inbox_prefix"]
        self._events = {name: options[name] for name in ("disconnected_cb", "reconnected_cb")}
        await self._open_with_retries()

    async def _open_with_retries(self) -> None:
        while not await self._open():  # noqa: ASYNC110  # as nats-py
            await asyncio.sleep(RECONNECT_WAIT_S)

    async def _open(self) -> bool:
        await asyncio.sleep(0.001)  # the handshake
        end = self._process.network.connect(self._process.name, ADDRESS)
        if end is None:
            return False
        self._end = end
        loop = self._process.loop
        end.receive = partial(loop.enter, self._receive)
        end.closed = partial(loop.enter, self._lost, end)
        for subscription in self._subscriptions.values():
            end.send(("sub", subscription.sid, subscription.pattern))
        return True

    def _lost(self, end: End) -> None:
        if end is not self._end or self._is_closing:
            return
        self._end = None
        self._reconnecting = asyncio.get_running_loop().create_task(self._reconnect())

    async def _reconnect(self) -> None:
        await self._events["disconnected_cb"]()
        await self._open_with_retries()
        self.stats["reconnects"] += 1
        await self._events["reconnected_cb"]()

    def _receive(self, frame: tuple[Any, ...]) -> None:
        if frame[0] != "msg":
            return
        _, sid, subject, reply, raw, data, to = frame
        subscription = self._subscriptions.get(sid)
        if subscription is None:
            return
        # Each request of this client has a reply subject of its own: messages of a stream arrive there under their own subject.
        message = Msg(
            _client=cast(Any, self),
            subject=subject if reply.startswith("$JS.ACK") else to,
            reply=reply,
            data=data,
            headers=decode_headers(raw),
        )
        call = cast(Any, subscription.callback(message))
        try:
            call.send(None)
        except StopIteration:
            return
        raise AssertionError("a callback of the bus must not wait")

    def new_inbox(self) -> str:
        """A subject of this connection for answers."""
        self._numbers += 1
        return f"{self._prefix}.{self._process.name}-{self._process.starts}-{id_of(self)}-{self._numbers}"

    async def subscribe(self, subject: str, *, cb: Callback, **_: Any) -> SimulatedSubscription:
        """Subscribes to a subject."""
        self._numbers += 1
        subscription = SimulatedSubscription(self, self._numbers, subject, callback=cb)
        self._subscriptions[subscription.sid] = subscription
        if self._end:
            self._end.send(("sub", subscription.sid, subject))
        return subscription

    def unsubscribe(self, subscription: SimulatedSubscription) -> None:
        """Ends a subscription."""
        self._subscriptions.pop(subscription.sid, None)
        if self._end:
            self._end.send(("unsub", subscription.sid))

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        """Sends a message. Raises OutboundBufferLimitError while there is no connection, as nats-py does without a buffer."""
        if self._end is None:
            raise nats.errors.OutboundBufferLimitError
        self._end.send(("pub", subject, reply, encode_headers(headers), payload))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,  # noqa: ASYNC109  # nats-py's signature
        headers: Mapping[str, str] | None = None,
    ) -> Msg:
        """Sends a request and returns its answer. Raises TimeoutError."""
        if not self._answer_inbox:
            self._answer_inbox = self.new_inbox()
            await self.subscribe(f"{self._answer_inbox}.*", cb=self._on_answer)
        self._numbers += 1
        number = str(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self.publish(subject, payload, f"{self._answer_inbox}.{number}", headers)
            async with asyncio.timeout(timeout):
                message: Msg = await answer
        except TimeoutError:
            raise nats.errors.TimeoutError from None
        finally:
            del self._answers[number]
        if message.headers and message.headers.get("Status") == "503":
            raise nats.errors.NoRespondersError
        return message

    async def _on_answer(self, message: Msg) -> None:
        answer = self._answers.get(message.subject.rpartition(".")[2])
        if answer and not answer.done():
            answer.set_result(message)

    def jetstream(self, **options: Any) -> JetStreamContext:
        """nats-py's JetStream interface over this client."""
        return JetStreamContext(cast(Any, self), **options)

    async def drain(self) -> None:
        """Closes the connection."""
        await self.close()

    async def close(self) -> None:
        """Closes the connection."""
        self._is_closing = True
        if self._reconnecting:
            self._reconnecting.cancel()
        if self._end:
            self._end.close()
            self._end = None


def id_of(client: SimulatedClient) -> int:
    """Number of a client within its process."""
    process = client._process
    return process.clients.setdefault(client, len(process.clients))
