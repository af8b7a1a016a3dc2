"""Push messages: a slow push service is tried until it takes the message, and delays no other phone's."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.retrying import Backoff
from services.common.storage.db import open_database
from services.field import news
from services.field.__main__ import MIGRATIONS
from services.field.metrics import FieldMetrics
from services.field.news import PageWaker
from services.field.push import PushAddresses, PushClient, PushKey, parse_address
from tests.support.field.phone import PushService

MINUTE_MS = 60_000


async def test_a_slow_push_service_delays_no_other_phone_and_is_tried_until_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "PUSH_RETRY", Backoff(0.01, 0.01))
    slow = PushService()
    quick = PushService()
    clock = MeshClock()
    slow.answers.clear()
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
        while not slow.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        waker.push_about(tasks, "quick", "notice-1", expires_ms=expires_ms)
        while not quick.messages:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert not slow.answered.is_set()
        while len(slow.messages) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        slow.answers.set()
        await slow.answered.wait()


async def test_news_makes_a_phone_that_left_many_requests_open_read_a_few_times(tmp_path: Path) -> None:
    requests, reads = 20, 0

    async def read() -> dict[str, Any]:
        nonlocal reads
        reads += 1
        return {"digest": "known"}

    key = PushKey(tmp_path / "push.pem", "mailto:duty@police.example")
    async with (
        open_database(tmp_path / "field.sqlite3", MIGRATIONS) as database,
        aiohttp.ClientSession() as session,
        asyncio.timeout(60),
    ):
        push = PushClient(session, key, ())
        waker = PageWaker(PushAddresses(database), push, clock=MeshClock(), metrics=FieldMetrics(CollectorRegistry()))
        left_open = [
            asyncio.create_task(waker.content("phone", read, {"wait": "1", "known": "known"})) for _ in range(requests)
        ]
        other = asyncio.create_task(waker.content("other", read, {"wait": "1", "known": "known"}))
        while sum(task.done() for task in left_open) < requests - news.MAX_WAITING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        before = reads
        waker.wake("phone")
        await asyncio.gather(*left_open)
        assert reads - before == news.MAX_WAITING
        assert not other.done()
        waker.wake("other")
        await other
