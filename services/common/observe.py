"""The port that shows how a process is: /metrics for Prometheus, /healthz and /readyz for whoever restarts or routes.

In plaintext wherever it binds, as health and metrics are the named exceptions of the rule: no label and no answer here tells of
anybody.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import prometheus_client
from aiohttp import web
from prometheus_client import Gauge
from prometheus_client.exposition import choose_encoder

from services.common.bus import Bus
from services.common.errors import NotFound, Unavailable
from services.common.web import served

CONNECTIONS_MOST = 100

_DISK_USED = Gauge("tandem_disk_used_ratio", "How full the disk is that holds this process's data, 0 to 1")
_STREAM_USED = Gauge(
    "tandem_stream_used_ratio", "How full a stream is that refuses more where it is full, 0 to 1", ["stream"]
)
STREAMS_EVERY_S = 10.0


def watch_disk(folder: Path) -> None:
    """Has the disk of a folder looked at whenever it is asked for; of one that isn't made yet, the disk where it will be."""

    def used() -> float:
        disk = shutil.disk_usage(next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists()))
        return disk.used / (disk.used + disk.free)  # without what is kept for the system alone

    _DISK_USED.set_function(used)


async def watch_streams(bus: Bus) -> None:
    """Looks at how full the streams are, for ever. Those that forget instead are always full, and left out."""
    while True:
        with suppress(NotFound, Unavailable):  # the port of health says that JetStream doesn't work
            for stream in (await bus.api("STREAM.LIST", {}))["streams"] or ():
                config = stream["config"]
                if config["discard"] == "new" and config["max_bytes"] > 0:
                    _STREAM_USED.labels(config["name"]).set(stream["state"]["bytes"] / config["max_bytes"])
        await asyncio.sleep(STREAMS_EVERY_S)


@asynccontextmanager
async def observed(host: str, port: int, unready: Callable[[], str]) -> AsyncIterator[int]:
    """Shows this process on a port of its own and gives the port; `unready` says why it can't do its work, or nothing.

    /healthz answers 200 as long as the event loop runs; /readyz 200, or 503 with the reason; /metrics all that is counted, with
    exemplars for whoever takes the OpenMetrics format, which alone has them.
    """

    async def metrics(request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        # The header's value has parameters, which aiohttp wants in arguments of their own.
        return web.Response(body=encode(prometheus_client.REGISTRY), headers={"Content-Type": content_type})

    async def healthz(request: web.Request) -> web.Response:
        return web.Response(text="runs\n")

    async def readyz(request: web.Request) -> web.Response:
        reason = unready()
        return web.Response(status=503 if reason else 200, text=f"{reason or 'ready'}\n")

    routes = [web.get("/metrics", metrics), web.get("/healthz", healthz), web.get("/readyz", readyz)]
    async with served("observe", routes, host, port, most=CONNECTIONS_MOST) as bound:
        yield bound
