"""The port that shows how a process is: /metrics for Prometheus, /livez for supervisors, /readyz for proxies.

In plaintext wherever it binds, as health and metrics are the named exceptions of the rule: no label and no answer here tells of
anybody. It is served by a thread of its own, so that /livez is answered while the event loop is busy.
"""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import prometheus_client
from aiohttp import web
from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder

from services.common.messaging.bus import Bus
from services.common.observability.heartbeat import HEART
from services.common.rpc.errors import NotFound, Unavailable
from services.common.web.server import Handler, served

MAX_CONNECTIONS = 100

_DISK_USED = Gauge("tandem_disk_used_ratio", "How full the disk is that holds this process's data, 0 to 1")
_STREAM_USED = Gauge(
    "tandem_stream_used_ratio", "How full a stream is that refuses more where it is full, 0 to 1", ["stream"]
)
_CONSUMERS = Gauge(
    "tandem_stream_consumers",
    "Consumers of a stream, of which the server takes 1,000 of all users together",
    ["stream"],
)
STREAMS_INTERVAL_S = 10.0
LOOP_WITHIN_S = 2.0
"""How long the event loop may take to answer."""
T = TypeVar("T")


def watch_disk(folder: Path) -> None:
    """Has the disk of a folder looked at whenever it is asked for; of one that isn't made yet, the disk where it will be."""

    def used() -> float:
        disk = shutil.disk_usage(next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists()))
        return disk.used / (disk.used + disk.free)  # without what is kept for the system alone

    _DISK_USED.set_function(used)


async def watch_streams(bus: Bus) -> None:
    """Looks at how full the streams are and how many read them, for ever. Those that forget instead are always full, and left out
    of the first."""
    while True:
        with suppress(NotFound, Unavailable):  # the port of health says that JetStream doesn't work
            for stream in (await bus.api("STREAM.LIST", {}))["streams"] or ():
                config = stream["config"]
                _CONSUMERS.labels(config["name"]).set(stream["state"]["consumer_count"])
                if config["discard"] == "new" and config["max_bytes"] > 0:
                    _STREAM_USED.labels(config["name"]).set(stream["state"]["bytes"] / config["max_bytes"])
        await asyncio.sleep(STREAMS_INTERVAL_S)


@asynccontextmanager
async def observed(
    host: str, port: int, unready: Callable[[], str], degraded: Callable[[], str] = lambda: ""
) -> AsyncIterator[int]:
    """Shows this process on a port of its own and gives the port; `unready` says why it can't do its work, or nothing, and `degraded`
    what of its work has to wait.

    /livez answers 200 as long as the process runs and its event loop hasn't hung for 15 s; /healthz 200 as long as the event loop
    runs; /readyz 200, or 503 with the reason; /metrics all that is counted, with exemplars where the OpenMetrics format is asked for,
    which alone has them.
    """
    main = asyncio.get_running_loop()

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # The header's value has parameters, which aiohttp wants in arguments of their own.
        return web.Response(body=encode(prometheus_client.REGISTRY), headers={"Content-Type": content_type})

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
        """Has a request answered by the service's own event loop: what is shown belongs to it, and changes under a thread."""

        async def handle(request: web.Request) -> web.StreamResponse:
            answer = asyncio.run_coroutine_threadsafe(_awaited(handler(request)), main)
            try:
                async with asyncio.timeout(LOOP_WITHIN_S):
                    return await asyncio.wrap_future(answer)
            except TimeoutError:
                return web.Response(status=503, text=f"the event loop hasn't answered for {LOOP_WITHIN_S:.0f} s\n")

        return handle

    shown = {"/metrics": metrics, "/healthz": healthz, "/readyz": readyz}
    routes = [web.get("/livez", livez), *(web.get(path, within_main(handler)) for path, handler in shown.items())]
    async with _in_thread(served("observe", routes, host, port, most=MAX_CONNECTIONS)) as bound:
        yield bound


async def _awaited(answer: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    return await answer


@asynccontextmanager
async def _in_thread(context: AbstractAsyncContextManager[int]) -> AsyncIterator[int]:
    """Enters and leaves a context in the event loop of a thread that runs meanwhile."""
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
