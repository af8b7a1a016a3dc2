"""The health and metrics port of a process: /metrics for Prometheus, /livez for a kubelet, /readyz for proxies.

The port is plaintext on every address. Health and metrics are the named exceptions of the TLS rule, because no label and no answer
holds personal data. A separate thread serves the port, so that /livez answers while the event loop is busy.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from services.common.certificates import remaining_s
from services.common.errors import NotFound, Unavailable
from services.common.messaging.bus import Bus
from services.common.observability.health import HEART
from services.common.observability.metrics import ProcessMetrics
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
