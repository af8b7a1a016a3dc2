"""The way onto JetStream: connecting, and publishing until it is known what became of the message."""

from __future__ import annotations

import asyncio
import base64
import json
import math
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import DEFAULT_INBOX_PREFIX, Client
from nats.aio.msg import Msg
from nats.js import JetStreamContext
from nats.js.api import Header

from services.common.messaging.nats_transport import ResettingTransport
from services.common.messaging.permissions import SERVICE, inbox
from services.common.observability.telemetry import logger
from services.common.rpc.certificates import Files, client_context, spiffe_id
from services.common.rpc.errors import NotFound, RetryableError, StoreFull, Unavailable
from tandem.common.v1 import alert_pb2

PUBLISH_TIMEOUT_S = 3.0
FIRST_RETRY_S = 0.05
LAST_RETRY_S = 1.0
FAILURE_REMEMBERED_S = 10.0
CERTIFICATE_INTERVAL_S = 10.0
PING_INTERVAL_S = 1
"""How often the server is asked whether it lives: after three pings without an answer the client goes to another one."""

_NO_HEADERS: Mapping[str, str] = {}
_WRONG_LAST_SEQUENCE = 10071
_NAME_IN_USE = (10013, 10148)  # by its name, by its configuration
_STORE_FULL = (10077, 10023, 10047)  # stream's max_bytes, account's quota, no room for the stream


class AlreadyThere(Exception):
    """The subject holds another last message than the publisher expected; for an alert that means success."""

    def __init__(self, subject: str, sequence: int | None) -> None:
        super().__init__(subject)
        self.sequence = sequence
        """Of that message, in its stream, where the server says it."""


class NameInUse(Unavailable):
    """A consumer of this name exists, and another reader made it."""


class PubAck(NamedTuple):
    """The server's word that a message is on disk."""

    stream: str
    seq: int
    """Its sequence there."""
    duplicate: bool
    """It was there already, under the same Msg-Id."""


class Bounds(NamedTuple):
    """Sequences that a stream holds; `first` is `last` + 1 where it is empty."""

    first: int
    last: int


class Bus:
    """A connection to JetStream. Messages are published whole or refused; a timeout is an unknown outcome."""

    def __init__(self, client: Client, user: str) -> None:
        self.client = client
        self.user = user
        """User of the server, which names its readers; where the server has no users, the name of the connection."""
        self.js: JetStreamContext = client.jetstream(timeout=PUBLISH_TIMEOUT_S)
        """For setting streams up; what runs in a service's loops goes through `publish` and `api`."""
        self._last_failure_s = -math.inf
        """When a request last failed without one that succeeded since, by the loop's clock."""
        self._inbox = client.new_inbox()
        self._asked = 0
        self._answers: dict[str, asyncio.Future[Msg]] = {}

    @property
    def reconnects(self) -> int:
        """How often the connection was made again: after each the server may be another, on an older store."""
        return self.client.stats["reconnects"]

    async def publish(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str | None = None,
        expected_last: int | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
    ) -> PubAck:
        """Publishes once and returns the server's acknowledgement: the message is on disk.

        `expected_last` is the sequence of the last message that the subject must hold (0: none); `headers` go beside the payload.
        Raises AlreadyThere, StoreFull, or Unavailable (outcome unknown: publish again with the same `msg_id`).
        """
        every = dict(headers)
        if msg_id is not None:
            every[Header.MSG_ID.value] = msg_id
        if expected_last is not None:
            every[Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(expected_last)
        answer = json.loads(await self._request(subject, payload, every or None))
        self._last_failure_s = -math.inf
        error = answer.get("error")
        if error is None:
            return PubAck(answer["stream"], answer["seq"], bool(answer.get("duplicate")))
        if error.get("err_code") == _WRONG_LAST_SEQUENCE:
            # The server's words: "wrong last sequence: 12".
            sequence = error.get("description", "").rpartition(" ")[2]
            raise AlreadyThere(subject, int(sequence) if sequence.isdecimal() else None)
        if error.get("err_code") in _STORE_FULL:
            raise StoreFull("the log is full", retry_after_s=5.0)
        self._last_failure_s = asyncio.get_running_loop().time()
        raise Unavailable(f"JetStream refused the message: {error.get('description')}")

    async def _request(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> bytes:
        """Publishes and waits for the answer on this connection's own inbox.

        Not nats-py's request(): on Python 3.11 that can lose a cancellation that comes together with the answer, and the task then
        never ends.
        """
        self._asked += 1
        number, answered = str(self._asked), asyncio.get_running_loop().create_future()
        self._answers[number] = answered
        try:
            await self.client.publish(subject, payload, reply=f"{self._inbox}.{number}", headers=headers)
            async with asyncio.timeout(PUBLISH_TIMEOUT_S):
                message: Msg = await answered
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._last_failure_s = asyncio.get_running_loop().time()
            raise Unavailable(f"JetStream doesn't answer: {type(error).__name__}") from error
        finally:
            del self._answers[number]
        if not message.data:
            raise Unavailable("no JetStream answers on this subject")
        return message.data

    async def works(self) -> bool:
        """Whether JetStream answers and takes messages. A connection isn't enough: with a full disk every publish times out."""
        try:
            await self.api("INFO", {})
        except (NotFound, Unavailable):
            return False
        return asyncio.get_running_loop().time() - self._last_failure_s > FAILURE_REMEMBERED_S

    async def listen(self) -> None:
        """Opens the inbox for answers; once, before the first publish."""
        await self.client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    async def _on_answer(self, message: Msg) -> None:
        answered = self._answers.get(message.subject.rpartition(".")[2])
        if answered is not None and not answered.done():
            answered.set_result(message)

    async def publish_until_stored(
        self,
        subject: str,
        payload: bytes,
        *,
        msg_id: str | None = None,
        expected_last: int | None = None,
        headers: Mapping[str, str] = _NO_HEADERS,
        on_refused: Callable[[int], None] | None = None,
    ) -> PubAck | None:
        """Publishes again and again until the message is stored, by this call or (None) by another publisher; `on_refused` is then
        called with that message's sequence."""
        return await self._until_stored(
            subject, payload, msg_id, expected_last, headers, through_full=True, on_refused=on_refused
        )

    async def _until_stored(
        self,
        subject: str,
        payload: bytes,
        msg_id: str | None,
        expected_last: int | None,
        headers: Mapping[str, str] = _NO_HEADERS,
        *,
        through_full: bool,
        on_refused: Callable[[int], None] | None = None,
    ) -> PubAck | None:
        delay = FIRST_RETRY_S
        while True:
            try:
                return await self.publish(subject, payload, msg_id=msg_id, expected_last=expected_last, headers=headers)
            except AlreadyThere as there:
                if on_refused and there.sequence:
                    on_refused(there.sequence)
                return None
            except RetryableError as error:
                if isinstance(error, StoreFull) and not through_full:
                    raise
                logger().warning("publish_retried", kind=subject.partition(".")[0], reason=error.reason)
                await asyncio.sleep(delay)
                delay = min(2 * delay, LAST_RETRY_S)

    async def api(self, subject: str, request: Mapping[str, object]) -> dict[str, Any]:
        """Asks JetStream's own interface, such as STREAM.INFO.LOG_0. Raises NotFound or Unavailable."""
        answer: dict[str, Any] = json.loads(
            await self._request(f"$JS.API.{subject}", json.dumps(request).encode(), headers=None)
        )
        error = answer.get("error")
        if error is None:
            return answer
        if error["code"] == 404:
            raise NotFound(error["description"])
        if error.get("err_code") in _NAME_IN_USE:
            raise NameInUse(f"{subject}: {error['description']}")
        raise Unavailable(f"JetStream refused {subject.partition('.')[0]}: {error['description']}")

    async def last_of(self, stream: str, subject: str) -> bytes | None:
        """The last message on a subject; None where there is none. Raises Unavailable."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except NotFound:
            return None
        return base64.b64decode(answer["message"].get("data", ""))

    async def bounds_of(self, stream: str) -> Bounds:
        """First and last sequence of a stream. Waits until the server answers."""
        while True:
            try:
                state = (await self.api(f"STREAM.INFO.{stream}", {}))["state"]
            except (NotFound, Unavailable) as error:
                logger().info("stream_awaited", stream=stream, reason=error.reason)
                await asyncio.sleep(LAST_RETRY_S)
            else:
                return Bounds(max(state["first_seq"], 1), state["last_seq"])  # a new stream's first is 0

    async def park(self, subject: str, stream: str, sequence: int, by: str, reason: str) -> None:
        """Sets a message aside with its reason; parking it again changes nothing.

        Where DEAD_LETTERS is full the log alone tells of it: what can't be used must never hold up what can.
        """
        dead_letters = alert_pb2.DeadLetter(stream=stream, sequence=sequence, by=by, reason=reason)
        event = "dead_letter_stored"
        try:
            await self._until_stored(subject, dead_letters.SerializeToString(), None, 0, through_full=False)
        except StoreFull:
            event = "dead_letters_full"
        logger().error(event, stream=stream, sequence=sequence, by=by, reason=reason)


@asynccontextmanager
async def connect(url: str, name: str, tls: Files | None = None) -> AsyncIterator[Bus]:
    """A connection that waits for the server at the start, reconnects for ever and is drained at the end.

    The user is that of the URL, as in nats://registry:password@host:port, or with `tls` that of the certificate. Files that are
    replaced are taken without a restart. Nothing is buffered while the connection is down: a publish that was reported as failed
    must not be stored later.
    """

    async def on_error(error: Exception) -> None:
        if (reason := str(error).removeprefix("nats: ")).startswith("permissions violation"):
            logger().error("nats_refused", reason=reason)
        else:
            logger().warning("nats_error", error=type(error).__name__)

    ending = False

    async def on_disconnect() -> None:
        if not ending:
            logger().warning("nats_disconnected")

    async def on_reconnect() -> None:
        logger().info("nats_reconnected")

    user = urlsplit(url.partition(",")[0]).username
    if tls:
        user = spiffe_id(tls.cert).removeprefix(SERVICE)
    client = Client()
    client._transport = ResettingTransport()  # type: ignore[no-untyped-call]  # it has no setting for it
    await client.connect(
        url.split(","),
        name=name,
        inbox_prefix=inbox(user) if user else DEFAULT_INBOX_PREFIX,
        max_reconnect_attempts=-1,
        reconnect_time_wait=0.25,  # type: ignore[arg-type]  # parts of a second are as good
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=2,
        pending_size=-1,
        error_cb=on_error,
        disconnected_cb=on_disconnect,
        reconnected_cb=on_reconnect,
        tls=client_context(tls) if tls else None,
    )
    renewing = asyncio.create_task(_renew(client, tls)) if tls else None
    try:
        bus = Bus(client, user or name)
        await bus.listen()
        yield bus
    finally:
        ending = True
        if renewing:
            renewing.cancel()
        try:
            async with asyncio.timeout(2.0):
                await client.drain()
        except (nats.errors.Error, TimeoutError, OSError):
            with suppress(nats.errors.Error, OSError):  # what was to be flushed can't be any more
                await client.close()


async def _renew(client: Client, tls: Files) -> None:
    """Connects anew with files that were replaced; a connection would stand on an expired certificate for ever."""
    used = tls.stamp()
    while True:
        await asyncio.sleep(CERTIFICATE_INTERVAL_S)
        try:
            stamp = tls.stamp()
            if stamp == used:
                continue
            client.options["tls"] = client_context(tls)
        except (OSError, ssl.SSLError) as error:
            # Being replaced at this moment, or broken: the connection that there is goes on.
            logger().error("certificate_unreadable", kind=type(error).__name__)
            continue
        used = stamp
        logger().info("certificate_renewed")
        await client.force_reconnect()
