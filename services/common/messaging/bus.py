"""Connections to JetStream: publishing with acknowledgement and retry, API requests, and certificate renewal.

The client reconnects after each error, and doesn't wait for a server that hangs: nats-py ends for good when the server reports an
error, and it waits until a lost connection has sent the rest of its data.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import ssl
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import ParseResult, urlsplit

import nats.errors
from nats.aio.client import DEFAULT_INBOX_PREFIX, Client
from nats.aio.msg import Msg
from nats.aio.transport import TcpTransport
from nats.js import JetStreamContext
from nats.js.api import Header
from nats.protocol.parser import PERMISSIONS_ERR, STALE_CONNECTION

from services.common.certificates import Files, client_context, spiffe_id
from services.common.errors import NotFound, StoreFull, Unavailable
from services.common.messaging.permissions import SERVICE, inbox
from services.common.observability.metrics import ProcessMetrics, unexposed
from services.common.observability.outages import Outages
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff, every, retried
from tandem.common.v1 import alert_pb2

PUBLISH_TIMEOUT_S = 3.0
"""Maximum wait for the server's answer to a publish or an API request, seconds."""
PUBLISH_RETRY = Backoff(0.05, 1.0)
"""Delays between retries of a publish."""
FAILURE_REMEMBERED_S = 10.0
"""Time after a failed publish during which `Bus.works` answers False, seconds."""
CERTIFICATE_INTERVAL_S = 10.0
"""Interval of checks for replaced certificate files, seconds."""
PATIENCE_S = 10.0
"""Time after a start or a disconnection in which a server that can't be reached is no warning of its own, seconds."""
PING_INTERVAL_S = 1
"""Interval of pings to the server, seconds. After three pings without an answer the client connects to another server."""

_NO_HEADERS: Mapping[str, str] = {}
_WRONG_LAST_SEQUENCE = 10071
_NAME_IN_USE = (10013, 10148)  # the name is taken; or the consumer of this name has another configuration
_BAD_REQUEST = 10003
_STORE_FULL = (10077, 10023, 10047)  # stream's max_bytes, account's quota, no room for the stream


class AlreadyStored(Exception):
    """The subject's last message isn't the one that the publisher expected. For an alert that means success: it is stored already."""

    def __init__(self, subject: str, sequence: int | None) -> None:
        super().__init__(subject)
        self.sequence = sequence
        """Sequence of the subject's last message in its stream. None if the server doesn't say it."""


class NameInUse(Unavailable):
    """A consumer of this name exists, created by another reader."""


class PubAck(NamedTuple):
    """The server's acknowledgement that a message is on disk."""

    stream: str
    seq: int
    """Sequence of the message in the stream. A message that is published again under its Msg-Id keeps it."""


class Bounds(NamedTuple):
    """First and last sequence that a stream holds. An empty stream has `first` = `last` + 1."""

    first: int
    last: int


class Bus:
    """A connection to JetStream. A message is stored whole or not at all; after a timeout the outcome is unknown."""

    def __init__(self, client: Client, user: str, metrics: ProcessMetrics | None = None) -> None:
        self.client = client
        self.metrics = metrics or unexposed()
        """Metrics of this process. They are part of the bus, because every reader and publisher has it."""
        self.user = user
        """User name at the NATS server, and first part of its readers' names. If the server has no users, the connection's name."""
        self.js: JetStreamContext = client.jetstream(timeout=PUBLISH_TIMEOUT_S)
        """nats-py's JetStream interface, for stream setup only. A service's loops use `publish` and `api`."""
        self._last_failure_s = -math.inf
        """Time of the last failed request by the loop's clock, seconds. Minus infinity once a later publish got an answer."""
        self._inbox = client.new_inbox()
        self._last_request = 0
        self._awaited_answers: dict[str, asyncio.Future[Msg | None]] = {}

    @property
    def reconnects(self) -> int:
        """Number of reconnects. After each one, the connection may lead to another server with an older store."""
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
        """Publishes a message once and returns the server's acknowledgement that it is on disk.

        `expected_last` is the sequence that the subject's last message must have, 0 for an empty subject. `headers` are sent in
        addition to the server's own. Raises AlreadyStored, StoreFull, or Unavailable. After Unavailable the outcome is unknown:
        retry with the same `msg_id`.
        """
        all_headers = dict(headers)
        if msg_id is not None:
            all_headers[Header.MSG_ID.value] = msg_id
        if expected_last is not None:
            all_headers[Header.EXPECTED_LAST_SUBJECT_SEQUENCE.value] = str(expected_last)
        answer = json.loads(await self._request(subject, payload, all_headers or None))
        self._last_failure_s = -math.inf
        error = answer.get("error")
        if error is None:
            return PubAck(answer["stream"], answer["seq"])
        if error.get("err_code") == _WRONG_LAST_SEQUENCE:
            # The server describes the error as "wrong last sequence: 12".
            sequence = error.get("description", "").rpartition(" ")[2]
            raise AlreadyStored(subject, int(sequence) if sequence.isdecimal() else None)
        if error.get("err_code") in _STORE_FULL:
            raise StoreFull("the log is full", retry_after_s=5.0)
        self._last_failure_s = asyncio.get_running_loop().time()
        raise Unavailable(f"JetStream refused the message: {error.get('description')}")

    async def _request(self, subject: str, payload: bytes, headers: dict[str, str] | None) -> bytes:
        """Publishes a request and waits for its answer on this connection's inbox. Raises Unavailable.

        It replaces nats-py's request(). On Python 3.11, request() can lose a cancellation that arrives together with the answer,
        and the cancelled task then never ends.
        """
        self._last_request += 1
        number, awaited = str(self._last_request), asyncio.get_running_loop().create_future()
        self._awaited_answers[number] = awaited
        try:
            await self.client.publish(subject, payload, reply=f"{self._inbox}.{number}", headers=headers)
            message = await _within(PUBLISH_TIMEOUT_S, awaited)
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._last_failure_s = asyncio.get_running_loop().time()
            raise Unavailable(f"JetStream doesn't answer: {type(error).__name__}") from error
        finally:
            del self._awaited_answers[number]
        if not message.data:
            raise Unavailable("no JetStream answers on this subject")
        return message.data

    async def works(self) -> bool:
        """Whether JetStream answers and stores messages. A connection isn't enough: with a full disk every publish times out."""
        try:
            await self.api("INFO", {})
        except (NotFound, Unavailable):
            return False
        return asyncio.get_running_loop().time() - self._last_failure_s > FAILURE_REMEMBERED_S

    async def listen(self) -> None:
        """Subscribes to the inbox for answers. Call it once, before the first publish."""
        await self.client.subscribe(f"{self._inbox}.*", cb=self._on_answer)

    async def _on_answer(self, message: Msg) -> None:
        awaited = self._awaited_answers.get(message.subject.rpartition(".")[2])
        if awaited is not None and not awaited.done():
            awaited.set_result(message)

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
        """Publishes a message with retries until it is stored, also while the store is full.

        Returns None if another publisher stored a message on this subject first. `on_refused` is then called with that message's
        sequence.
        """
        publish = partial(self.publish, subject, payload, msg_id=msg_id, expected_last=expected_last, headers=headers)
        try:
            return await retried(publish, PUBLISH_RETRY, event="publish_retried", kind=_kind_of(subject))
        except AlreadyStored as there:
            if on_refused and there.sequence:
                on_refused(there.sequence)
            return None

    async def api(self, subject: str, request: Mapping[str, object]) -> dict[str, Any]:
        """Calls JetStream's API, such as STREAM.INFO.LOG_0, and returns the answer.

        Raises NotFound, NameInUse or Unavailable; ValueError if the server can't read the request, which no retry would mend.
        """
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
        if error.get("err_code") == _BAD_REQUEST:
            kind = ".".join(subject.split(".")[:3])  # the rest may name a person's device
            raise ValueError(f"JetStream can't read the request {kind} with the fields {sorted(request)}")
        raise Unavailable(f"JetStream refused {subject.partition('.')[0]}: {error['description']}")

    async def last_of(self, stream: str, subject: str) -> bytes | None:
        """Data of the last message on a subject, or None if the subject is empty. Raises Unavailable."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except NotFound:
            return None
        return base64.b64decode(answer["message"].get("data", ""))

    async def last_sequence_of(self, stream: str, subject: str) -> int:
        """Sequence of the last message on a subject, which may have wildcards, or 0 if there is none. Raises Unavailable."""
        try:
            answer = await self.api(f"STREAM.MSG.GET.{stream}", {"last_by_subj": subject})
        except NotFound:
            return 0
        return int(answer["message"]["seq"])

    async def bounds_of(self, stream: str) -> Bounds:
        """First and last sequence that a stream holds. Waits until the server answers."""
        state = (await self._info(stream))["state"]
        return Bounds(max(state["first_seq"], 1), state["last_seq"])  # a new stream's first is 0

    async def created_at(self, stream: str) -> str:
        """Time at which the server created a stream, as the server writes it (RFC 3339). Waits until the server answers."""
        return str((await self._info(stream))["created"])

    async def _info(self, stream: str) -> dict[str, Any]:
        info = partial(self.api, f"STREAM.INFO.{stream}", {})
        return await retried(
            info, every(1.0), on=(NotFound, Unavailable), event="stream_awaited", level=logging.INFO, stream=stream
        )

    async def store_dead_letter(self, subject: str, stream: str, sequence: int, *, by: str, reason: str) -> None:
        """Stores a dead letter for a message, with the reason. Idempotent.

        If DEAD_LETTERS is full, the dead letter goes only into the process's log: an unusable message must never hold up usable ones.
        """
        dead_letter = alert_pb2.DeadLetter(stream=stream, sequence=sequence, by=by, reason=reason)
        event = "dead_letter_stored"
        try:
            publish = partial(self.publish, subject, dead_letter.SerializeToString(), expected_last=0)
            with suppress(AlreadyStored):
                await retried(publish, PUBLISH_RETRY, on=Unavailable, event="publish_retried", kind=_kind_of(subject))
        except StoreFull:
            event = "dead_letters_full"
        logger().error(event, stream=stream, sequence=sequence, by=by, reason=reason)


_ENDED = (nats.errors.UnexpectedEOF, nats.errors.StaleConnectionError)
"""Errors of a connection that ends, before `nats_disconnected`."""
_BROKEN = (OSError, TimeoutError, nats.errors.TimeoutError, nats.errors.NoServersError)
"""Errors of a server that can't be reached."""


async def _within(timeout_s: float, awaited: asyncio.Future[Msg | None]) -> Msg:
    """Waits for an answer. Raises TimeoutError.

    It replaces asyncio.timeout(), which takes three times as long. Each message of the mesh waits for an answer.
    """
    # The timer ends the wait with a result. An exception would be logged as lost if the task is cancelled at the same moment.
    timer = asyncio.get_running_loop().call_later(timeout_s, _end_wait, awaited)
    try:
        answer = await awaited
    finally:
        timer.cancel()
    if answer is None:
        raise TimeoutError
    return answer


def _end_wait(awaited: asyncio.Future[Msg | None]) -> None:
    if not awaited.done():
        awaited.set_result(None)


def _kind_of(subject: str) -> str:
    """First token of a subject, for logs: the rest may name a person's device."""
    return subject.partition(".")[0]


@asynccontextmanager
async def connect(
    url: str, name: str, tls: Files | None = None, *, metrics: ProcessMetrics | None = None
) -> AsyncIterator[Bus]:
    """Opens a connection to JetStream. It waits for the server at the start, reconnects forever, and is drained at the end.

    The user name comes from the URL, as in nats://registry:password@host:port, or with `tls` from the certificate. Replaced
    certificate files are used without a restart. `metrics` are the process's metrics; None, the default, is for a process that
    exposes none. Nothing is buffered while the connection is down, because a publish that was reported as failed must not be
    stored later.
    """

    async def on_error(error: Exception) -> None:
        if (reason := str(error).removeprefix("nats: ")).startswith("permissions violation"):
            logger().error("nats_refused", reason=reason)
        else:
            # While a start or `nats_disconnected` is this recent, a connection that breaks or isn't accepted is part of it.
            is_known = isinstance(error, _BROKEN) and loop.time() < away_since_s + PATIENCE_S
            # An error of the type Error holds what the server said.
            said = reason if type(error) is nats.errors.Error else type(error).__name__
            attempts.failed({}, said, logging.INFO if is_known or isinstance(error, _ENDED) else logging.WARNING)

    loop = asyncio.get_running_loop()
    away_since_s = loop.time()
    attempts = Outages("nats_error", "nats_reconnected")
    ending = False

    async def on_disconnect() -> None:
        nonlocal away_since_s
        away_since_s = loop.time()
        if not ending:
            logger().warning("nats_disconnected")

    async def on_reconnect() -> None:
        if not attempts.succeeded({}):
            logger().info("nats_reconnected")

    user = urlsplit(url.partition(",")[0]).username
    if tls:
        user = spiffe_id(tls.cert).removeprefix(SERVICE)
    client, transport = ReconnectingClient(), ResettingTransport()  # type: ignore[no-untyped-call]
    client._transport = transport  # the client has no option for its transport
    renewing: asyncio.Task[None] | None = None
    try:
        await client.connect(
            url.split(","),
            name=name,
            inbox_prefix=inbox(user) if user else DEFAULT_INBOX_PREFIX,
            max_reconnect_attempts=-1,
            reconnect_time_wait=0.25,  # type: ignore[arg-type]  # the client also accepts fractions of a second
            ping_interval=PING_INTERVAL_S,
            max_outstanding_pings=2,
            pending_size=-1,
            error_cb=on_error,
            disconnected_cb=on_disconnect,
            reconnected_cb=on_reconnect,
            tls=client_context(tls) if tls else None,
        )
        attempts.succeeded({})
        renewing = asyncio.create_task(_renew(client, tls)) if tls else None
        bus = Bus(client, user or name, metrics)
        await bus.listen()
        yield bus
    finally:
        ending = True
        if renewing:
            renewing.cancel()
        try:
            await _drain(client)
        finally:
            # The client leaves its socket open if its connecting or its draining was cancelled.
            transport.close()


async def _drain(client: Client) -> None:
    """Sends what is pending and closes the connection. What can't be sent within 2 s is dropped."""
    try:
        async with asyncio.timeout(2.0):
            await client.drain()
    except (nats.errors.Error, TimeoutError, OSError):
        with suppress(nats.errors.Error, OSError):  # pending data can't be flushed any more
            await client.close()


async def _renew(client: Client, tls: Files) -> None:
    """Reconnects with replaced certificate files. Otherwise a connection would stay open on an expired certificate forever."""
    used = tls.stamp()
    while True:
        await asyncio.sleep(CERTIFICATE_INTERVAL_S)
        try:
            stamp = tls.stamp()
            if stamp == used:
                continue
            client.options["tls"] = client_context(tls)
        except (OSError, ssl.SSLError) as error:
            # The files are being replaced at this moment, or are broken: keep the current connection.
            logger().error("certificate_unreadable", kind=type(error).__name__)
            continue
        used = stamp
        logger().info("certificate_renewed")
        await client.force_reconnect()


# ── the client of nats-py ─────────────────────────────────────────────────────────────────────────────────────────────


class ConnectionClosed(ConnectionResetError, RuntimeError):
    """Data was written to a lost connection. It is also a RuntimeError, because the client's ping task ends on no other error."""


class ResettingTransport(TcpTransport):
    """A TCP or TLS connection. Writes raise ConnectionClosed once the connection is lost, as the client expects an OSError.

    Transports of asyncio drop data that is written to a lost connection, and the reader then reports the loss. Transports of uvloop
    raise a RuntimeError instead. Such an error silently ends the client's flusher and kills its reconnecting task, and a publisher
    gets an error that isn't a connection error.
    """

    def __bool__(self) -> bool:
        """Always True, even before the connection is open. Otherwise the client would replace this transport with its default one."""
        return True

    async def connect(self, uri: ParseResult, buffer_size: int, connect_timeout: int) -> None:
        """Opens a connection and closes the previous one, which the client leaves open if the server didn't complete its greeting.

        Up to Python 3.11 wait_for, with which the base class connects, loses a cancellation that arrives together with the connection.
        """
        self.close()
        async with asyncio.timeout(connect_timeout):
            reader, writer = await asyncio.open_connection(uri.hostname, uri.port, limit=buffer_size)
        self._bare_io_reader = self._io_reader = reader
        self._bare_io_writer = self._io_writer = writer

    def close(self) -> None:
        """Closes the connection at once and drops the data that isn't sent yet.

        A server that hangs reads no more data, and with TLS it doesn't answer the closing, so an orderly closing could take half a
        minute or never end. A client that ends has flushed its data before.
        """
        if self._io_writer is not None:
            self._io_writer.transport.abort()

    async def wait_closed(self) -> None:
        """Returns once the system has closed the connection.

        The client waits for this before it connects to another server. Its writer never learns the end of a connection whose TLS
        handshake failed.
        """
        await asyncio.sleep(0)

    def write(self, payload: bytes) -> None:
        """Sends bytes. Raises ConnectionClosed if the connection is lost."""
        try:
            super().write(payload)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ConnectionClosed(str(error)) from error

    def writelines(self, payload: Iterable[bytes]) -> None:
        """Sends byte strings in order, as one. Raises ConnectionClosed if the connection is lost.

        Transports of Python 3.13 fail on several byte strings once the connection is lost, with an error that depends on the release.
        """
        self.write(b"".join(payload))


class ReconnectingClient(Client):
    """A client that reconnects after an error that the server reports, for example while the server doesn't know the user."""

    async def _process_err(self, err_msg: str) -> None:
        if STALE_CONNECTION in err_msg or PERMISSIONS_ERR in err_msg:
            await super()._process_err(err_msg)
            return
        error = nats.errors.Error("nats: " + err_msg.strip("'"))
        await self._error_cb(error)
        await self._process_op_err(error)
