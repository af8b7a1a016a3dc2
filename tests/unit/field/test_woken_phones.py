"""Phones that are woken: by one message at a time, and by another one for news that the phone can't have asked for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

import aiohttp
import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from services.common.clock import MeshClock
from services.common.retrying import Backoff
from services.common.storage.db import Database, open_database
from services.field import news
from services.field.__main__ import MIGRATIONS
from services.field.metrics import FieldMetrics
from services.field.news import PageWaker
from services.field.push import PushAddress, PushAddresses, PushClient, PushKey
from tests.support.field.phone import PushService

CLOCK = MeshClock()


class Woken(NamedTuple):
    """A waker, its push service, and the tasks in which it wakes."""

    waker: PageWaker
    service: PushService
    addresses: PushAddresses
    tasks: asyncio.TaskGroup

    def announce(self, news_id: str) -> None:
        """Lets the waker know of news for phone-1."""
        self.waker.push_about(self.tasks, "phone-1", news_id, expires_ms=CLOCK.now_ms() + 3_600_000)


def address(
    service: PushService, phone_key: str = "key", path: str = "x", *, device_id: str = "phone-1"
) -> PushAddress:
    keys = service.address
    endpoint = f"{service.origin}/send/{path}"
    return PushAddress(device_id, endpoint=endpoint, p256dh=keys["p256dh"], auth=keys["auth"], phone_key=phone_key)


@asynccontextmanager
async def stored(folder: Path) -> AsyncIterator[Database]:
    async with open_database(folder / "field.sqlite3", MIGRATIONS) as database:
        yield database


@asynccontextmanager
async def waking_phone(folder: Path) -> AsyncIterator[Woken]:
    service = PushService()
    async with (
        service.serving(),
        stored(folder) as database,
        aiohttp.ClientSession() as session,
        asyncio.TaskGroup() as tasks,
    ):
        addresses = PushAddresses(database)
        await addresses.put(address(service))
        push = PushClient(session, PushKey(folder / "push.pem", "mailto:duty@police.example"), (service.origin,))
        waker = PageWaker(addresses, push, clock=CLOCK, metrics=FieldMetrics(CollectorRegistry()))
        yield Woken(waker, service, addresses, tasks)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110  # nothing announces the change
            await asyncio.sleep(0.01)


async def test_news_that_comes_while_a_message_is_under_way_gets_a_message_of_its_own(tmp_path: Path) -> None:
    async with waking_phone(tmp_path) as woken:
        woken.service.answers.clear()
        woken.announce("first")
        await until(lambda: len(woken.service.messages) == 1)
        # The phone has asked by now, and the push service hasn't answered yet.
        woken.announce("second")
        woken.announce("third")
        woken.announce("second")
        woken.service.answers.set()
        await until(lambda: len(woken.service.messages) == 2)
    assert len(woken.service.messages) == 2


async def test_the_same_news_wakes_a_phone_once(tmp_path: Path) -> None:
    async with waking_phone(tmp_path) as woken:
        woken.announce("first")
        await until(lambda: len(woken.service.messages) == 1)
        woken.announce("first")
    assert len(woken.service.messages) == 1


async def test_after_a_silent_call_a_phone_is_woken_for_nothing_and_what_is_under_way_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "PUSH_RETRY", Backoff(0.01, 0.01))
    with capture_logs() as logs:
        async with waking_phone(tmp_path) as woken:
            woken.service.status = 503
            woken.announce("approach")
            await until(lambda: bool(woken.service.messages))
            woken.waker.hush("phone-1")
            woken.announce("what follows")
        # The tasks have ended, so nothing is tried any more.
        count = len(woken.service.messages)
        async with asyncio.TaskGroup() as tasks:
            woken.waker.push_about(tasks, "phone-1", "more", expires_ms=CLOCK.now_ms() + 3_600_000)
        assert len(woken.service.messages) == count
        monkeypatch.setattr(news, "HUSH_MS", -1)
        woken.waker.hush("phone-1")
    assert "push_given_up" not in [line["event"] for line in logs]
    async with waking_phone(tmp_path) as woken:
        woken.waker.hush("phone-1")
        woken.announce("later")
        await until(lambda: bool(woken.service.messages))


async def test_a_phone_that_is_hushed_while_its_message_waits_for_a_place_is_not_woken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(news, "PUSH_CONCURRENCY", 1)
    monkeypatch.setattr(news, "PUSH_RETRY", Backoff(0.01, 0.01))
    async with waking_phone(tmp_path) as woken:
        await woken.addresses.put(address(woken.service, device_id="phone-2"))
        woken.service.answers.clear()
        woken.waker.push_about(woken.tasks, "phone-2", "another's", expires_ms=CLOCK.now_ms() + 3_600_000)
        await until(lambda: len(woken.service.messages) == 1)
        woken.announce("approach")
        await asyncio.sleep(0)  # its message waits now for the only place
        woken.waker.hush("phone-1")
        woken.service.answers.set()
    assert len(woken.service.messages) == 1


async def test_an_address_is_deleted_by_the_phone_that_named_it_alone(tmp_path: Path) -> None:
    service = PushService()
    async with stored(tmp_path) as database:
        addresses = PushAddresses(database)
        older, newer = address(service, "older", "older"), address(service, "newer", "newer")
        await addresses.put(older)
        await addresses.put(newer)
        await addresses.delete_of_phone("phone-1", "older")
        await addresses.delete(older)
        assert await addresses.of("phone-1") == newer
        await addresses.delete_of_phone("phone-1", "newer")
        assert await addresses.of("phone-1") is None


async def test_a_phone_is_connected_although_the_earlier_address_cannot_be_deleted(tmp_path: Path) -> None:
    async with stored(tmp_path) as database:
        addresses = PushAddresses(database)
        async with database.transaction() as connection:
            await connection.exec_driver_sql("DROP TABLE push_addresses")
        with capture_logs() as logs:
            await addresses.delete_earlier("phone-1")
    assert [line["event"] for line in logs] == ["database_refused", "push_address_kept"]


@pytest.mark.parametrize("status", [401, 403])
async def test_a_push_service_that_refuses_field_keeps_the_address_and_is_tried_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(news, "PUSH_RETRY", Backoff(0.01, 0.01))
    with capture_logs() as logs:
        async with waking_phone(tmp_path) as woken:
            woken.service.status = status
            woken.announce("first")
            await until(lambda: len(woken.service.messages) > 2)
            assert await woken.addresses.of("phone-1") == address(woken.service)
            woken.service.status = 201  # the key, the clock or the contact is mended
    events = [(line["log_level"], line["event"]) for line in logs]
    assert events == [("error", "push_unauthorized"), ("info", "push_authorized")]
    assert logs[0]["service"] == woken.service.origin.removeprefix("http://")


@pytest.mark.parametrize("status", [404, 410, 400])
async def test_an_address_that_has_ended_or_cannot_be_used_is_forgotten(tmp_path: Path, status: int) -> None:
    async with waking_phone(tmp_path) as woken:
        woken.service.status = status
        woken.announce("first")
        await until(lambda: bool(woken.service.messages))
    async with stored(tmp_path) as database:
        assert await PushAddresses(database).of("phone-1") is None
