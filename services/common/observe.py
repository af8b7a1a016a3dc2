"""The port that shows how a process is: /metrics for Prometheus, /healthz and /readyz for whoever restarts or routes.

In plaintext wherever it binds, as health and metrics are the named exceptions of the rule: no label and no answer here tells of
anybody.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import prometheus_client
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from services.common.web import served

CONNECTIONS_MOST = 100


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
