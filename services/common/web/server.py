"""HTTP as every service serves it: bounds on what a peer can hold up, and no line in a log of anything that a peer sent."""

from __future__ import annotations

import asyncio
import logging
import resource
import ssl
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

from aiohttp import web
from aiohttp.http import HttpProcessingError
from prometheus_client import Counter

from services.common.observability.telemetry import logger

REQUEST_WITHIN_S = 10.0
"""Head and body of a request must be here this long after its first byte, and the first byte of all after the connection."""
KEEP_ALIVE_S = 75.0
"""A connection without a request is closed after this."""
MAX_CONNECTIONS = 2_000
"""Beyond these the one that has rested longest is closed; where none rests, the new one."""
BODY_MOST_BYTES = 64 << 10
CERTIFICATE_INTERVAL_S = 60.0
GRACE_S = 1.0
"""Requests that are being answered when the service ends have so long."""
SPARE_FILES = 1_000
"""Open files beside the connections."""

CLOSED = Counter(
    "tandem_http_closed", "Connections that were closed for what the peer did, by reason", ["door", "reason"]
)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ConnectionGuard(asyncio.Protocol):
    """Stands between a connection and aiohttp, which has no deadline for the head of a request or for its body."""

    def __init__(self, endpoint: Door) -> None:
        self._endpoint = endpoint
        self._inner: asyncio.Protocol | None = None
        self._transport: asyncio.Transport
        self._deadline: asyncio.TimerHandle | None = None
        self._answering = False
        self._early = False
        """More has come while a request is being answered."""

    def received(self) -> None:
        """A whole request is here: from now on the peer waits for us."""
        self._disarm()
        self._endpoint.resting.pop(self, None)
        self._answering = True

    def answered(self) -> None:
        """The answer is on its way; what has come meanwhile is the beginning of another request."""
        self._answering = False
        if self._early:
            self._early = False
            self._arm()
        elif self._inner:  # the peer may have gone meanwhile
            self._endpoint.resting[self] = None

    def give_way(self) -> None:
        """Closes a connection without a request: another one needs its place."""
        self._close("full")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._endpoint.open >= self._endpoint.most:
            if not self._endpoint.resting:
                self._close("full")
                return
            next(iter(self._endpoint.resting)).give_way()
        self._endpoint.open += 1
        self._inner = self._endpoint.accept()
        self._inner.connection_made(transport)
        self._arm()
        self._endpoint.resting[self] = None

    def data_received(self, data: bytes) -> None:
        if self._inner is None:
            return
        self._endpoint.resting.pop(self, None)
        if self._answering:
            self._early = True
        else:
            self._arm()
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received() if self._inner else None

    def pause_writing(self) -> None:
        # A peer that doesn't take its answers is as slow as one that doesn't send its request.
        self._arm()
        if self._inner:
            self._inner.pause_writing()

    def resume_writing(self) -> None:
        if self._answering:
            self._disarm()
        if self._inner:
            self._inner.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        self._endpoint.resting.pop(self, None)
        if self._inner:
            self._endpoint.open -= 1
            self._inner.connection_lost(exc)
            self._inner = None

    def _arm(self) -> None:
        if self._deadline is None:
            self._deadline = asyncio.get_running_loop().call_later(REQUEST_WITHIN_S, self._close, "slow")

    def _disarm(self) -> None:
        if self._deadline:
            self._deadline.cancel()
            self._deadline = None

    def _close(self, reason: str) -> None:
        self._endpoint.resting.pop(self, None)
        CLOSED.labels(self._endpoint.name, reason).inc()
        self._transport.abort()


class Door:
    """One listening port: how many connections there are, and who takes them."""

    def __init__(self, name: str, most: int, accept: Callable[[], asyncio.Protocol]) -> None:
        self.name, self.most, self.accept = name, most, accept
        self.open = 0
        self.resting: dict[ConnectionGuard, None] = {}
        """Connections without a request, that which has rested longest first."""


class _Log(logging.Logger):
    """In place of aiohttp's log, whose lines quote the request, and with it tokens and positions."""

    def __init__(self, endpoint: str) -> None:
        super().__init__(endpoint)
        self._endpoint = endpoint

    def handle(self, record: logging.LogRecord) -> None:
        """Counts what isn't HTTP; anything else is a defect, told by its kind and place."""
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, HttpProcessingError):
            CLOSED.labels(self._endpoint, "malformed").inc()
        elif record.levelno >= logging.WARNING:
            logger().error("http_failed", endpoint=self._endpoint, kind=type(error).__name__, at=_place(error))


def _place(error: BaseException | None) -> str:
    frames = traceback.extract_tb(error.__traceback__) if error else []
    return f"{Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""


def _guard_of(request: web.Request) -> ConnectionGuard | None:
    protocol = request.transport.get_protocol() if request.transport else None
    return protocol if isinstance(protocol, ConnectionGuard) else None


async def body_of(request: web.Request) -> bytes:
    """The whole body. Raises HTTPRequestEntityTooLarge beyond the most, HTTPBadRequest where it is no body."""
    try:
        body = await request.read()
    except web.RequestPayloadError:
        raise web.HTTPBadRequest from None
    if guard := _guard_of(request):
        guard.received()
    return body


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    guard = _guard_of(request)
    if guard and request.content.is_eof():
        guard.received()
    try:
        answer = await handler(request)
    except web.HTTPException as error:
        # As aiohttp does itself, which would forget that the connection is to be closed.
        answer = web.Response(status=error.status, reason=error.reason, text=error.text, headers=error.headers)
    except ConnectionError:
        raise
    except Exception as error:
        # The request ends with it, not the process: the next one has nothing to do with it.
        logger().error("http_failed", endpoint=request.app[_NAME], kind=type(error).__name__, at=_place(error))
        answer = web.Response(status=500, text="500: Internal Server Error")
    finally:
        if guard:
            guard.answered()
    if answer.status >= 400:
        answer.force_close()  # only who is known and served holds a connection
    return answer


_NAME = web.AppKey("name", str)


@asynccontextmanager
async def served(
    name: str,
    routes: Iterable[web.AbstractRouteDef],
    host: str,
    port: int,
    tls: tuple[Path, Path] | None = None,
    most: int = MAX_CONNECTIONS,
) -> AsyncIterator[int]:
    """Serves these routes and gives the port; with `tls`, certificate chain and key. At the end requests have 1 s to finish."""
    app = web.Application(middlewares=[_guarded], client_max_size=BODY_MOST_BYTES)
    app[_NAME] = name
    app.add_routes(routes)
    runner = web.AppRunner(
        app,
        access_log=None,  # it would hold the query, and with it tokens and positions
        logger=_Log(name),
        keepalive_timeout=KEEP_ALIVE_S,
        lingering_time=1.0,
        auto_decompress=False,  # no phone compresses, and what is small can't become large
        shutdown_timeout=GRACE_S,
    )
    await runner.setup()
    # A web.Server makes a protocol for each connection.
    endpoint = Door(name, most, cast(Callable[[], asyncio.Protocol], runner.server))
    _allow_files(most + SPARE_FILES)
    context = _context(tls) if tls else None
    server = await asyncio.get_running_loop().create_server(
        lambda: ConnectionGuard(endpoint),
        host,
        port,
        ssl=context,
        ssl_handshake_timeout=REQUEST_WITHIN_S if context else None,
        backlog=512,
    )
    bound: int = server.sockets[0].getsockname()[1]
    logger().info("listening", endpoint=name, port=bound, tls=tls is not None)
    renewing = asyncio.create_task(_renew(context, tls)) if context and tls else None
    try:
        yield bound
    finally:
        if renewing:
            renewing.cancel()
        server.close()
        await runner.cleanup()


def _context(tls: tuple[Path, Path]) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(*tls)
    return context


async def _renew(context: ssl.SSLContext, tls: tuple[Path, Path]) -> None:
    """Takes a certificate that was replaced without a restart: new connections have it."""
    while True:
        await asyncio.sleep(CERTIFICATE_INTERVAL_S)
        try:
            context.load_cert_chain(*tls)
        except (OSError, ssl.SSLError) as error:
            logger().error("certificate_unreadable", kind=type(error).__name__)


def _allow_files(wanted: int) -> None:
    """Many systems allow a process 1,024 open files unless it asks for more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
