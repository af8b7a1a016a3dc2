"""Push messages: a slow push service is tried until it takes the message, and delays no other phone's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.retrying import Backoff
from services.common.storage.db import open_database
from services.field.__main__ import MIGRATIONS
from services.field.metrics import FieldMetrics
from services.field.push import waking
from services.field.push.messages import PushClient, PushKey, parse_address
from services.field.push.store import PushAddresses
from services.field.push.waking import PageWaker
from tests.support.field.phone import PushService

MINUTE_MS = 60_000


class SlowService(PushService):
    """A push service that doesn't answer until it may, and counts how often it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = asyncio.Event()
        self.asked = 0
        self.accepted = asyncio.Event()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        async def accept(_: web.Request) -> web.Response:
            self.asked += 1
            await self.may_answer.wait()
            self.accepted.set()
            return web.Response(status=201)

        app = web.Application()
        app.add_routes([web.post("/send/{phone}", accept)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port, reuse_address=True).start()
        try:
            yield
        finally:
            self.may_answer.set()
            await runner.cleanup()


async def test_a_slow_push_service_delays_no_other_phone_and_is_tried_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waking, "PUSH_RETRY", Backoff(0.01, 0.01))
    slow, quick, clock = SlowService(), PushService(), MeshClock()
    origins = (slow.origin, quick.origin)
    key = PushKey(tmp_path / "push.pem", "mailto:duty@police.example")
    timeout = aiohttp.ClientTimeout(total=0.2)
    async with (
        slow.serving(),
        quick.serving(),
        open_database(tmp_path / "field.sqlite3", MIGRATIONS) as database,
        aiohttp.ClientSession(timeout=timeout) as session,
        asyncio.timeout(60),
        asyncio.TaskGroup() as tasks,
    ):
        addresses = PushAddresses(database)
        for device_id, service in (("slow", slow), ("quick", quick)):
            given = service.address
            address = parse_address(
                device_id, given["endpoint"], given["p256dh"], auth=given["auth"], services=origins, phone_key=device_id
            )
            await addresses.put(address)
        waker = PageWaker(
            addresses,
            PushClient(session, key, origins),
            clock=clock,
            metrics=FieldMetrics(CollectorRegistry()),
        )
        expires_ms = clock.now_ms() + 10 * MINUTE_MS
        waker.push_about(tasks, "slow", "notice-1", expires_ms=expires_ms)
        while slow.asked == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waker.push_about(tasks, "quick", "notice-1", expires_ms=expires_ms)
        while not quick.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not slow.accepted.is_set()
        while slow.asked < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        slow.may_answer.set()
        await slow.accepted.wait()
