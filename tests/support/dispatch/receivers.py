"""A real webhook receiver for tests, with its configuration."""

from __future__ import annotations

import asyncio
import base64
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.support.common.ports import free_port
from tests.support.dispatch.dispatch import PATIENCE_S

OLD_SECRET, NEW_SECRET = (f"whsec_{base64.b64encode(bytes(range(n, n + 32))).decode()}" for n in (0, 1))


class Receiver:
    """A real HTTP server with configurable responses."""

    def __init__(self) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.answers: list[int] = []
        """HTTP statuses of the next responses; later ones are 204."""
        self.requests: list[tuple[dict[str, str], bytes]] = []
        self.elsewhere = 0
        """Number of requests to the target of redirects."""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Serves until the end of the context."""

        async def accept(request: web.Request) -> web.Response:
            self.requests.append((dict(request.headers), await request.read()))
            status = self.answers.pop(0) if self.answers else 204
            return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 307 else {})

        async def elsewhere(request: web.Request) -> web.Response:
            self.elsewhere += 1
            return web.Response(status=204)

        app = web.Application()
        app.add_routes([web.post("/hook", accept), web.post("/elsewhere", elsewhere)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        try:
            yield
        finally:
            await runner.cleanup()

    async def wait_for(self, count: int) -> None:
        """Waits for a number of requests."""
        async with asyncio.timeout(PATIENCE_S):
            while len(self.requests) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)

    def steps(self) -> list[dict[str, Any]]:
        """Returns the messages of all requests."""
        return [json.loads(body) for _, body in self.requests]


def configured(folder: Path, *entries: dict[str, Any]) -> Path:
    path = folder / "webhooks.json"
    path.write_text(json.dumps(entries))
    return path


def receiver_entry(receiver: Receiver, **more: Any) -> dict[str, Any]:
    return {"name": "cad", "url": receiver.url, "secrets": [OLD_SECRET], **more}


async def until_queued(database: Path, receivers: int = 1) -> None:
    """Waits until the leg has registered all receivers: a new receiver gets only the steps from then on."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
                    if connection.execute("SELECT count(*) FROM handed").fetchone()[0] == receivers:
                        return
            except sqlite3.OperationalError:
                pass  # the database doesn't exist yet
            await asyncio.sleep(0.02)
