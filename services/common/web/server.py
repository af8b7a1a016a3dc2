"""The HTTP server of every service: it limits what a peer can hold, knows its own names, and never logs data that a peer sent.

A foreign name that leads to the same address gets nothing (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import resource
import ssl
import termios
import traceback
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import cast
from urllib.parse import SplitResult, urlsplit

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Counter

from services.common.errors import CannotBind
from services.common.observability.telemetry import logger
from services.common.settings import LOOPBACK
from services.common.web import tls as port_tls
from services.common.web.connections import Senders, Strangers, source_of
from services.common.web.tls import PortCaller

REQUEST_WITHIN_S = 10.0
"""Maximum time from the first byte of a request until its head and body have arrived, seconds. It is also the maximum time from
the connection to its TLS handshake's end, and from there to the first byte."""
MIN_READ_BYTES = 16 << 10
"""Minimum part of an answer that a peer reads within REQUEST_WITHIN_S, bytes, while the answer doesn't fit into the buffers. So a desk
on a line of 13 kbit/s gets a map of 2.6 MB, and a peer that reads nothing is cut off."""
KEEP_ALIVE_S = 75.0
"""Time after which a connection without a request is closed, seconds."""
MAX_CONNECTIONS = 2_000
"""Default maximum number of connections of known senders to a port. A further one closes the one that has been idle longest."""
MAX_SENDER_CONNECTIONS = 16
"""Maximum number of connections of one sender, such as a phone, which has two to six, or a user of the console in two browsers."""
SILENT_COST, SERVED_COST = 1, 16
"""Costs of a stranger's connection, in 16 KiB of memory at most: before and after a whole request's head or greeting of TLS has come.
The layer of TLS has a buffer of 256 KiB."""
MAX_SOURCE_COST, MAX_STRANGER_COST = 4_096, 8_192
"""Maximum costs of the strangers of one address, and of all. So an address has up to 4,096 connections from which nothing whole has
come, or 256 that are being served. Behind it, a phone that takes 0.4 s for its handshake and request is served beside 10,000 further
connections a second."""
MAX_HEAD_BYTES = 4 << 10
"""Bytes of a head that wait for its end here. Beyond them the connection counts as served, and the parser has its own bounds."""
MAX_BODY_BYTES = 64 << 10
"""Maximum size of a request's body, bytes."""
BACKLOG = 16_384
"""Connections that the kernel accepts before this process does, if `net.core.somaxconn` (4,096 by default) allows as many. Beyond it
the first packet of a connection is dropped, which costs an honest peer a second."""
GRACE_S = 1.0
"""Maximum time for requests in progress when the service stops, seconds."""
SPARE_FILES = 1_000
"""Number of open files that a process needs in addition to its connections."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ConnectionGuard(asyncio.Protocol):
    """Protocol between a connection and aiohttp: deadlines for requests and answers, TLS, and the bounds on connections.

    TLS and aiohttp begin once a whole greeting, or the whole head of the first request, has come. Until then a connection costs little.
    """

    def __init__(self, endpoint: HttpEndpoint) -> None:
        self._endpoint = endpoint
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._first = bytearray()
        """Bytes of the greeting or the first head, until it is whole."""
        self._unsecured = endpoint.context
        """Context of the handshake that is still to come; None once it has succeeded, and on a plaintext port."""
        self._securing: asyncio.Task[None] | None = None
        """The handshake of TLS, from its greeting on."""
        self._deadline: asyncio.TimerHandle | None = None
        self._answering = False
        self._early = False
        """Whether data of a next request has arrived while a request is being answered."""
        self._idle = False
        """Whether a request was answered, and no next one has begun."""
        self._unread_bytes: int | None = None
        """What the peer hadn't read of an answer when the deadline began; None while the answer fits into the buffers."""
        self.closes = False
        """Whether the connection is closed after its answer, because the port has too many of known senders."""

    # ── requests ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def received(self) -> None:
        """Notes that a whole request has arrived, so that the peer now waits for the service."""
        self._disarm()
        self._idle = False
        self._endpoint.strangers.serve(self)
        self._endpoint.senders.serve(self)
        self._answering = True

    def proven(self, sender: str) -> None:
        """Notes whose the present request is. From now on the connection counts by its sender and not by its address."""
        senders = self._endpoint.senders
        if senders.sender_of(self) == sender or self._inner is None:
            return
        self._endpoint.strangers.leave(self)
        for each in senders.enter(self, sender):
            each.close("full")
        self.closes = senders.is_over

    def answered(self) -> None:
        """Notes that the handler has ended; its answer is still to be written. Data that arrived meanwhile begins the next request."""
        self._answering = False
        if self._inner is None:  # the peer has disconnected during the request
            return
        self._endpoint.strangers.await_peer(self)
        if self._early:
            self._early = False
            self._arm()
        else:
            self._idle = True
            self._endpoint.senders.rest(self)

    # ── the connection ───────────────────────────────────────────────────────────────────────────────────────────────

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        peer = transport.get_extra_info("peername")
        self._arm()
        # No rate bounds new connections: to refuse one costs as much as to serve its first byte, and would hit honest peers behind
        # the same address.
        self._close_all(self._endpoint.strangers.enter(self, source_of(peer[0] if peer else ""), SILENT_COST))

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            if not self._transport.is_closing():
                self._gather(data)
            return
        self._idle = False
        self._endpoint.senders.serve(self)
        if self._answering:
            self._early = True
        else:
            self._arm()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner else None

    def pause_writing(self) -> None:
        # A peer that doesn't read its answer gets the same deadline as one that doesn't send its request, as long as it reads nothing.
        self._unread_bytes = self._count_unread()
        self._arm()
        if self._inner:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._unread_bytes = None
        # Without a next request, the deadline is that of reading the answer, and the peer reads it.
        if self._answering or self._idle:
            self._disarm()
        if self._inner:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._endpoint.strangers.leave(self)
        self._endpoint.senders.leave(self)
        inner, self._inner = self._inner, None
        if inner:
            inner.connection_lost(exc)

    def close(self, reason: str) -> None:
        """Closes the connection at once, and counts it with the reason."""
        self._endpoint.strangers.leave(self)
        self._endpoint.senders.leave(self)
        self._endpoint.closed.labels(self._endpoint.name, reason).inc()
        self._transport.abort()

    # ── the first bytes ──────────────────────────────────────────────────────────────────────────────────────────────

    def _gather(self, data: bytes) -> None:
        """Keeps the first bytes until a greeting of TLS, and then a request's head, is whole."""
        self._first += data
        if self._unsecured:
            if self._securing is None and not port_tls.may_be_greeting(self._first):
                self.close("malformed")
            elif self._securing is None and port_tls.is_whole_greeting(self._first):
                self._securing = asyncio.ensure_future(self._secure(self._unsecured, self._passed_on()))
        elif (b"\r\n\r\n" in self._first or len(self._first) > MAX_HEAD_BYTES) and self._counts_as_served():
            self._inner = self._endpoint.accept()
            self._inner.connection_made(self._transport)
            self._inner.data_received(self._passed_on())

    def _passed_on(self) -> bytes:
        first = bytes(self._first)
        self._first.clear()
        return first

    async def _secure(self, context: ssl.SSLContext, greeting: bytes) -> None:
        """Starts TLS. A peer whose handshake fails, or who isn't the one caller of the port, is cut off."""
        if not self._counts_as_served():
            return
        secure = await port_tls.secured(self._transport, self, context, greeting=greeting, within_s=REQUEST_WITHIN_S)
        if secure is None:
            self.connection_lost(None)
            return
        self._transport, self._unsecured = secure, None
        caller = self._endpoint.caller
        if caller and port_tls.spiffe_ids(secure) != [caller.spiffe_id]:
            self.close("caller")
            return
        self._disarm()
        self._arm()
        if self._first:  # Python's own loop reads on before this task goes on
            self._gather(b"")

    def _counts_as_served(self) -> bool:
        """Counts the connection with the memory that it takes from now on. Returns whether it is still open."""
        self._close_all(self._endpoint.strangers.weigh(self, SERVED_COST))
        return not self._transport.is_closing()

    def _close_all(self, connections: Iterable[ConnectionGuard]) -> None:
        for each in connections:
            each.close("full")

    # ── deadlines ────────────────────────────────────────────────────────────────────────────────────────────────────
    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(REQUEST_WITHIN_S, self._expire)

    def _disarm(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _expire(self) -> None:
        """Closes the connection at its deadline, unless the peer reads a large answer all the while."""
        self._deadline = None
        before, left = self._unread_bytes, self._count_unread()
        if before is not None and before - left >= MIN_READ_BYTES:
            self._unread_bytes = left
            self._arm()
        else:
            self.close("slow")

    def _count_unread(self) -> int:
        """Bytes of answers that the peer hasn't acknowledged: in this process, and in the kernel where it says so."""
        in_kernel = array("i", [0])
        # Without these, a kernel with large buffers would show no progress for a long time.
        with suppress(OSError, AttributeError):
            fcntl.ioctl(self._transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, in_kernel)
        return self._transport.get_write_buffer_size() + in_kernel[0]


class HttpEndpoint:
    """State of a listening port: its connections, their bounds, and the factory of aiohttp's protocols."""

    def __init__(
        self,
        name: str,
        accept: Callable[[], asyncio.Protocol],
        *,
        most: int,
        max_stranger_cost: int,
        context: ssl.SSLContext | None,
        caller: PortCaller | None,
        closed: Counter,
    ) -> None:
        self.name = name
        self.accept = accept
        self.context = context
        self.caller = caller
        self.closed = closed
        """Counter of connections that were closed because of the peer's behaviour, by endpoint and reason."""
        self.strangers = Strangers[ConnectionGuard](max_stranger_cost, min(MAX_SOURCE_COST, max_stranger_cost))
        self.senders = Senders[ConnectionGuard](most, MAX_SENDER_CONNECTIONS)


class _Log(logging.Logger):
    """Replacement for aiohttp's logger, which would quote requests and thus tokens and positions."""

    def __init__(self, endpoint: str, malformed: Counter) -> None:
        super().__init__(endpoint)
        self._endpoint, self._malformed = endpoint, malformed

    def handle(self, record: logging.LogRecord) -> None:
        """Counts malformed HTTP. Any other record is a defect, and is logged with the error's type and code location only."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            self._malformed.inc()
        elif isinstance(error, ConnectionError):
            return  # the peer left while the rest of its refused request was read: a stranger could fill the log with it
        elif record.levelno >= logging.WARNING:
            logger().error("http_failed", endpoint=self._endpoint, kind=type(error).__name__, at=_place(error))


def _place(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _guard_of(request: web.Request) -> ConnectionGuard | None:
    protocol = request.transport.get_protocol() if request.transport else None
    return protocol if isinstance(protocol, ConnectionGuard) else None


async def body_of(request: web.Request) -> bytes:
    """Reads the whole body of a request. Raises HTTPRequestEntityTooLarge above MAX_BODY_BYTES, and HTTPBadRequest if it is
    malformed."""
    try:
        body = await request.read()
    except web.RequestPayloadError:
        raise web.HTTPBadRequest from None
    if guard := _guard_of(request):
        guard.received()
    return body


def proven(request: web.Request, sender: str) -> None:
    """Notes whose a request is, once its proof has been checked. `sender` is the device, or the key of a user or page.

    From now on its connection counts by the sender and no longer by its address, behind which there may be thousands of phones.
    """
    if guard := _guard_of(request):
        guard.proven(sender)


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    guard = _guard_of(request)
    if guard and request.content.is_eof():
        guard.received()
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        # aiohttp would make the same response, but without force_close.
        answer = web.Response(status=error.status, reason=error.reason, text=error.text, headers=error.headers)
    except ConnectionError:
        raise
    except Exception as error:
        # The error ends this request and not the process, because other requests don't depend on it.
        logger().error("http_failed", endpoint=request.app[_NAME], kind=type(error).__name__, at=_place(error))
        answer = web.Response(status=500, text="500: Internal Server Error")
    finally:
        if guard:
            guard.answered()
    if answer.status >= 400 or (guard and guard.closes):
        answer.force_close()  # only peers whose requests succeed may keep a connection
    return answer


_NAME = web.AppKey("name", str)


@asynccontextmanager
async def served(
    name: str,
    routes: Iterable[web.AbstractRouteDef],
    host: str,
    *,
    port: int,
    closed: Counter,
    tls: tuple[Path, Path] | None = None,
    caller: PortCaller | None = None,
    most: int = MAX_CONNECTIONS,
    max_stranger_cost: int = MAX_STRANGER_COST,
) -> AsyncIterator[int]:
    """Serves HTTP routes and yields the bound port. At the end of the block, requests have 1 s to finish.

    `closed` is ProcessMetrics.http_closed. `tls` is the certificate chain and private key. If None, the default, the port is
    plaintext. With a `caller`, only the holder of that identity is served, by mutual TLS. `most` is the maximum number of connections
    of known senders, `max_stranger_cost` the maximum cost of those of strangers. Strangers count by the address of the connection's
    peer. No header changes it, so a proxy in front of the port counts as one address.
    """
    app = web.Application(middlewares=[_guarded], client_max_size=MAX_BODY_BYTES)
    app[_NAME] = name
    app.add_routes(routes)
    runner = web.AppRunner(
        app,
        access_log=None,  # an access log would hold the query string, and with it tokens and positions
        logger=_Log(name, closed.labels(name, "malformed")),
        keepalive_timeout=KEEP_ALIVE_S,
        lingering_time=1.0,
        auto_decompress=False,  # no phone compresses, and a small body then can't expand to a large one
        shutdown_timeout=GRACE_S,
    )
    await runner.setup()
    # A web.Server is a factory that makes a protocol for each connection.
    context = port_tls.server_context(tls, caller) if tls else None
    share = _allowed_share(name, most + max_stranger_cost)
    endpoint = HttpEndpoint(
        name,
        cast(Callable[[], asyncio.Protocol], runner.server),
        most=int(most * share),
        max_stranger_cost=int(max_stranger_cost * share),
        context=context,
        caller=caller,
        closed=closed,
    )
    try:
        server = await asyncio.get_running_loop().create_server(
            lambda: ConnectionGuard(endpoint),
            host,
            port,
            backlog=BACKLOG,
        )
    except OSError as error:
        await runner.cleanup()
        raise CannotBind(
            host, port, os.strerror(error.errno) if error.errno and error.errno > 0 else str(error)
        ) from None
    bound: int = server.sockets[0].getsockname()[1]
    logger().info("listening", endpoint=name, port=bound, tls=tls is not None)
    renewing = asyncio.create_task(port_tls.renew(context, tls, caller)) if context and tls else None
    try:
        yield bound
    finally:
        if renewing:
            renewing.cancel()
        server.close()
        await runner.cleanup()


def _allowed_share(name: str, connections: int) -> float:
    """Raises the process's limit of open files for this many connections. Returns the share of them that the hard limit allows, 0.01
    to 1: beyond the limit of files nobody gets in, and the process can't reach its log either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = max(soft, wanted if hard == resource.RLIM_INFINITY else min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return 1.0
    allowed = max(soft - SPARE_FILES, soft // 2)
    logger().warning("connections_limited", endpoint=name, allowed=allowed, wanted=connections)
    return allowed / connections


# ── names under which pages are served ────────────────────────────────────────────────────────────────────────────────

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?")


def check_host(request: web.Request, hosts: Collection[str]) -> None:
    """Raises HTTPMisdirectedRequest unless a request's Host is loopback or among `hosts`, and HTTPBadRequest if it is no host.

    An entry of `hosts` is a name or address as browsers send it: with its port, unless that is the scheme's own.
    """
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise web.HTTPBadRequest(text="400: Host: is no name or address with an optional port")
    name = parts_of(f"//{host}", "Host").hostname or ""
    if name not in LOOPBACK and host not in hosts:
        raise web.HTTPMisdirectedRequest(
            text="421: nothing is served under this name: use a configured address (TANDEM_PUBLIC_ORIGINS)"
        )


def parts_of(address: str, header: str) -> SplitResult:
    """Splits an address from a header. Raises HTTPBadRequest if the text isn't an address, such as `//[::1`."""
    try:
        return urlsplit(address)
    except ValueError:
        raise web.HTTPBadRequest(text=f"400: {header}: is no address") from None
