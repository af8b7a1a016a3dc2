"""The health of a process: its heartbeats, its readiness, and the port that tells of both and of its metrics.

/metrics is for Prometheus, /livez for a kubelet that restarts a dead process, /readyz for proxies. A supervisor reads the heartbeats
from a pipe instead. A thread sends them, which needs little CPU time and no event loop, so a process with a long backlog or on a busy
machine still beats. A stopped process doesn't beat, and neither does one whose event loop has hung for 15 s.

An open connection doesn't make a reader ready. It is ready once the server has its consumer and it has caught up with its stream, and
it stays ready while the server's heartbeats arrive and it finishes its messages.

The port is plaintext on every address. Health and metrics are the named exceptions of the TLS rule, because no label and no answer
holds personal data. A separate thread serves the port, so that /livez answers while the event loop is busy.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from services.common.messaging.bus import Bus
from services.common.observability.metrics import ProcessMetrics
from services.common.rpc.certificates import remaining_s
from services.common.rpc.errors import NotFound, Unavailable
from services.common.web.server import SERVED_COST, Handler, served

MAX_COST = 100 * SERVED_COST
"""Maximum cost of the port's connections: nobody proves an identity there."""

STREAMS_INTERVAL_S = 10.0
"""Interval of updates of the streams' metrics, seconds."""
LOOP_WITHIN_S = 2.0
"""Maximum time for the event loop to answer a request, seconds. After it the answer is 503."""
T = TypeVar("T")


def watch_disk(folder: Path, metrics: ProcessMetrics) -> None:
    """Measures the disk of a folder at each scrape of the metrics. If the folder doesn't exist yet, the disk of its nearest
    existing parent is measured."""

    def used() -> float:
        ancestors = (folder.absolute(), *folder.absolute().parents)
        disk = shutil.disk_usage(next(ancestor for ancestor in ancestors if ancestor.exists()))
        return disk.used / (disk.used + disk.free)  # without the space that is reserved for the system

    metrics.disk_used.set_function(used)


def watch_certificates(files: Mapping[str, Path], metrics: ProcessMetrics) -> None:
    """Measures the remaining time of certificate files, given by their use, at each scrape of the metrics."""
    for use, file in files.items():
        metrics.certificate_remaining_s.labels(use).set_function(partial(remaining_s, file))


async def watch_streams(bus: Bus) -> None:
    """Updates the metrics of the streams' sizes and consumers, until cancelled.

    Streams that discard old messages are always full, so their sizes are left out.
    """
    while True:
        with suppress(NotFound, Unavailable):  # /readyz already reports that JetStream doesn't work
            for stream in (await bus.api("STREAM.LIST", {}))["streams"] or ():
                config = stream["config"]
                bus.metrics.stream_consumers.labels(config["name"]).set(stream["state"]["consumer_count"])
                if config["discard"] == "new" and config["max_bytes"] > 0:
                    bus.metrics.stream_used.labels(config["name"]).set(stream["state"]["bytes"] / config["max_bytes"])
        await asyncio.sleep(STREAMS_INTERVAL_S)


@asynccontextmanager
async def observed(
    host: str,
    port: int,
    unready: Callable[[], str],
    *,
    metrics: ProcessMetrics,
    degraded: Callable[[], str] = lambda: "",
) -> AsyncIterator[int]:
    """Serves the health and metrics of this process and yields the bound port.

    `unready` returns the reason why the process can't do its work, and `degraded` the work that has to wait. Both return an empty text
    if there is none.

    /livez answers 200 unless the event loop has hung for 15 s. /healthz answers 200 while the event loop runs. /readyz answers 200,
    or 503 with the reason. /metrics has all metrics of the registry that `metrics` are on; exemplars are included only in the
    OpenMetrics format, because the older format has none.
    """
    main = asyncio.get_running_loop()

    async def exposition(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # Set the header directly: aiohttp's content_type argument doesn't accept parameters such as a charset.
        return web.Response(body=encode(metrics.registry), headers={"Content-Type": content_type})

    async def livez(request: web.Request) -> web.Response:
        if HEART.beats():
            return web.Response(text="lives\n")
        return web.Response(status=503, text=f"the event loop has hung for {HEART.loop_age_s():.0f} s\n")

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="runs\n")

    async def readyz(request: web.Request) -> web.Response:
        if reason := unready():
            return web.Response(status=503, text=f"{reason}\n")
        waits = degraded()
        return web.Response(text=f"ready, but {waits}\n" if waits else "ready\n")

    def within_main(handler: Handler) -> Handler:
        """Answers requests on the service's event loop, because another thread would read the service's state while it changes."""

        async def handle(request: web.Request) -> web.StreamResponse:
            answer = asyncio.run_coroutine_threadsafe(_awaited(handler(request)), main)
            try:
                async with asyncio.timeout(LOOP_WITHIN_S):
                    return await asyncio.wrap_future(answer)
            except TimeoutError:
                return web.Response(status=503, text=f"the event loop hasn't answered for {LOOP_WITHIN_S:.0f} s\n")

        return handle

    shown = {"/metrics": exposition, "/healthz": healthz, "/readyz": readyz}
    routes = [web.get("/livez", livez), *(web.get(path, within_main(handler)) for path, handler in shown.items())]
    async with _in_thread(
        served("observe", routes, host, port=port, closed=metrics.http_closed, most=0, max_stranger_cost=MAX_COST)
    ) as bound:
        yield bound


async def _awaited(answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await answer


@asynccontextmanager
async def _in_thread(context: AbstractAsyncContextManager[int]) -> AsyncIterator[int]:
    """Enters and leaves a context on the event loop of a separate thread, which runs until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="observe", daemon=True)
    thread.start()

    async def there(work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))

    async def enter() -> int:
        return await context.__aenter__()

    async def leave() -> None:
        await context.__aexit__(None, None, None)
        await loop.shutdown_asyncgens()

    try:
        bound = await there(enter())
        try:
            yield bound
        finally:
            await there(leave())
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


PIPE = "TANDEM_HEARTBEAT_FD"
"""Environment variable with the file descriptor of the supervisor's pipe. If it isn't set, no beats are written."""
BEAT_S = 0.5
"""Interval of heartbeats, seconds."""
LOOP_HUNG_AFTER_S = 15.0
"""Time without a turn after which the event loop counts as hung, seconds. Any work that blocks the loop for longer than a second is a
defect, but a slow disk or an overloaded machine can block it too."""
_BEAT = b"."


class Heart:
    """Liveness of this process, from the turns of its event loop."""

    def __init__(self) -> None:
        self._turned_s: float | None = None
        """Time of the event loop's last turn, monotonic, seconds. None while no loop is watched."""

    @contextmanager
    def watching_loop(self) -> Iterator[None]:
        """Watches the running event loop until the block ends."""
        loop = asyncio.get_running_loop()
        timer: asyncio.Handle

        def turn() -> None:
            nonlocal timer
            self._turned_s = time.monotonic()
            timer = loop.call_later(BEAT_S, turn)

        timer = loop.call_soon(turn)
        try:
            yield
        finally:
            timer.cancel()
            self._turned_s = None

    def loop_age_s(self) -> float:
        """Time since the event loop's last turn, seconds. 0 while no loop is watched."""
        turned_s = self._turned_s
        return 0.0 if turned_s is None else time.monotonic() - turned_s

    def beats(self) -> bool:
        """Whether the process is alive, that is, its event loop hasn't hung."""
        return self.loop_age_s() < LOOP_HUNG_AFTER_S


HEART = Heart()
"""Liveness of this process, which has one event loop."""


def start() -> None:
    """Starts writing heartbeats to the supervisor's pipe, if there is one. Call it before anything else, because a start may take
    long."""
    named = os.environ.pop(PIPE, "")
    if named:
        pipe = int(named)
        os.set_inheritable(pipe, False)
        os.set_blocking(pipe, False)
        threading.Thread(target=_beat, args=(pipe,), name="heartbeat", daemon=True).start()


def _beat(pipe: int) -> None:
    while True:
        if HEART.beats():
            with suppress(BlockingIOError, BrokenPipeError):  # the supervisor is stopped, or has ended
                os.write(pipe, _BEAT)
        time.sleep(BEAT_S)


SILENT_AFTER_S = 5.0
"""Time without a message or heartbeat after which a reader isn't ready, seconds. Heartbeats come twice a second."""
STUCK_AFTER_S = 10.0
"""Time on the same messages after which a reader isn't ready, seconds."""


class ReaderHealth:
    """Health of a reader of a stream, updated by `services.common.messaging.pull`."""

    def __init__(self, name: str) -> None:
        self.name = name
        """Name of the stream, for people."""
        self._began_s: float | None = None
        """Time at which the reader began, monotonic, seconds. None while no code reads."""
        self._heard_s: float | None = None
        """Time of the consumer's last message or heartbeat, monotonic, seconds. None before the first."""
        self._working_since_s: float | None = None
        """Time at which work on the current messages began, monotonic, seconds. None while the reader waits for messages."""
        self._has_caught_up = False

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Marks the stream as being read until the block ends."""
        self._began_s = time.monotonic()
        try:
            yield
        finally:
            self._began_s = self._heard_s = None
            self._has_caught_up = False

    def heard(self) -> None:
        """Notes that the server has sent a message or a heartbeat."""
        self._heard_s = time.monotonic()

    def caught_up(self) -> None:
        """Notes that no more messages were waiting in the stream."""
        self._has_caught_up = True

    def note_heartbeat(self) -> None:
        """Notes a heartbeat, which the server sends only while no message waits."""
        self.heard()
        self.caught_up()

    @contextmanager
    def working(self) -> Iterator[None]:
        """Marks the reader as working on messages until the block ends."""
        self._working_since_s = time.monotonic()
        try:
            yield
        finally:
            self._working_since_s = None
            self.heard()  # heartbeats that arrived during the work weren't read

    def unable(self) -> str:
        """Reason why the reader isn't ready, or an empty text."""
        now_s = time.monotonic()
        if self._began_s is None:
            return f"{self.name} isn't being read"
        if self._working_since_s is not None:
            age_s = now_s - self._working_since_s
            return (
                f"{self.name}: the same messages have been worked on for {age_s:.0f} s" if age_s > STUCK_AFTER_S else ""
            )
        silent_s = now_s - (self._heard_s or self._began_s)
        if silent_s > SILENT_AFTER_S:
            return f"{self.name} hasn't been read for {silent_s:.0f} s"
        if self._heard_s is None:
            return f"{self.name} isn't being read yet"
        return "" if self._has_caught_up else f"the reader of {self.name} is still catching up"

    def degraded(self) -> str:
        """Reason why a replaceable reader isn't ready, or an empty text.

        Another process may read instead. So the text is empty while this process doesn't read, or began less than 5 s ago.
        """
        if self._began_s is None or time.monotonic() - self._began_s < SILENT_AFTER_S:
            return ""
        return self.unable()


class Readiness:
    """The checks that decide whether a process is ready: required ones and optional ones."""

    def __init__(self) -> None:
        self._needs: list[Callable[[], str]] = []
        self._wants: list[Callable[[], str]] = []

    def need(self, unable: Callable[[], str]) -> None:
        """Adds a required check. While it returns a reason, the process isn't ready."""
        self._needs.append(unable)

    def want(self, unable: Callable[[], str]) -> None:
        """Adds an optional check. While it returns a reason, the process is degraded."""
        self._wants.append(unable)

    def reader(self, name: str) -> ReaderHealth:
        """Adds a reader without which the process can't do its work, and returns the reader's health."""
        health = ReaderHealth(name)
        self.need(health.unable)
        return health

    def optional_reader(self, name: str) -> ReaderHealth:
        """Adds a reader whose work can wait or can be done by another process, and returns the reader's health."""
        health = ReaderHealth(name)
        self.want(health.degraded)
        return health

    def unable(self) -> str:
        """Reason why the process isn't ready, or an empty text."""
        return next(filter(None, (reason() for reason in self._needs)), "")

    def degraded(self) -> str:
        """Reasons why the process is degraded, separated by semicolons, or an empty text."""
        return "; ".join(filter(None, (reason() for reason in self._wants)))
