"""A phone's notices reach those that follow them: at once where this process opens them, and within a second where another one does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage import db
from services.dispatch.warning import phones
from services.dispatch.warning.domain import ChannelId, ChannelKind, ReceiptKind
from services.dispatch.warning.phones import DueNotice, OpenNotices
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import IN_APP, OPEN, MessageRow, OpenedMessage, Sending
from tests.support.dispatch.warning import put_waiting, waiting_message

EXPIRES_MS = 1 << 50


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[db.Database]:
    async with db.open_database(tmp_path / "warning.sqlite3", MIGRATIONS) as opened:
        yield opened


async def opened_message(database: db.Database, message_id: str, device_id: str) -> OpenedMessage:
    """A waiting message that is stored, with its text and its channels."""
    row = waiting_message(message_id)
    await put_waiting(database, row)
    ways = (ChannelId(ChannelKind.DEVICE, device_id), ChannelId(ChannelKind.GATEWAY, "sms"))
    return OpenedMessage(replace(row, text="text", language="ko", issued_ms=1), [sending(row, way) for way in ways])


def sending(message: MessageRow, way: ChannelId, repetition: int = 0, outcome: str = OPEN) -> Sending:
    return Sending(
        message_id=message.message_id,
        channel=way,
        repetition=repetition,
        command_id="",
        tries=0,
        next_ms=0,
        expires_ms=EXPIRES_MS,
        outcome=outcome,
    )


async def test_a_follower_gets_a_notice_as_it_opens(database: db.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(phones, "POLL_S", 3_600.0)
    notices = OpenNotices(database, MeshClock())
    store = WarningStore(database, notices.opened)
    await store.open([await opened_message(database, "first", "phone-1")], 1)
    async with aclosing(notices.follow()) as following:
        assert await anext(following) == DueNotice("first", "phone-1", EXPIRES_MS)
        assert await anext(following) is None
        await store.open([await opened_message(database, "second", "phone-2")], 1)
        assert await anext(following) == DueNotice("second", "phone-2", EXPIRES_MS)


async def test_a_notice_that_another_process_opened_comes_with_the_next_reading(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phones, "POLL_S", 0.01)
    notices = OpenNotices(database, MeshClock())
    async with aclosing(notices.follow()) as following:
        assert await anext(following) is None
        await WarningStore(database).open([await opened_message(database, "first", "phone-1")], 1)
        assert await anext(following) == DueNotice("first", "phone-1", EXPIRES_MS)
        await WarningStore(database).open([await opened_message(database, "second", "phone-2")], 1)
        assert await anext(following) == DueNotice("second", "phone-2", EXPIRES_MS)


async def test_a_message_that_was_replaced_meanwhile_is_no_notice(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phones, "POLL_S", 3_600.0)
    notices = OpenNotices(database, MeshClock())
    store = WarningStore(database, notices.opened)
    replaced = await opened_message(database, "replaced", "phone-1")
    await store.refuse("replaced")
    async with aclosing(notices.follow()) as following:
        assert await anext(following) is None
        await store.open([replaced, await opened_message(database, "valid", "phone-2")], 1)
        assert await anext(following) == DueNotice("valid", "phone-2", EXPIRES_MS)


async def test_a_repetition_is_news_and_says_whether_the_phone_may_be_woken(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(phones, "POLL_S", 3_600.0)
    notices = OpenNotices(database, MeshClock())
    store, phone = WarningStore(database, notices.opened), ChannelId(ChannelKind.DEVICE, "phone-1")
    opened = await opened_message(database, "first", "phone-1")
    await store.open([replace(opened, sendings=[])], 1)
    async with aclosing(notices.follow()) as following:
        assert await anext(following) is None
        for number, outcome in ((1, OPEN), (2, IN_APP)):
            message = replace(opened.message, repetitions=number)
            repeated = OpenedMessage(message, [sending(message, phone, number, outcome)])
            if outcome == IN_APP:
                await database.visit(lambda connection: connection.execute(sa.text("delete from sendings")))
            await store.repeat([repeated], 2)
            assert await anext(following) == DueNotice("first", "phone-1", EXPIRES_MS, number, outcome == IN_APP)


async def test_a_follower_that_comes_later_wakes_nobody_whose_phone_has_the_notice(database: db.Database) -> None:
    store = WarningStore(database)
    confirmed, unconfirmed = [await opened_message(database, name, f"phone-{name}") for name in ("a", "b")]
    await store.open([confirmed, unconfirmed], 1)
    await ReceiptStore(database).put(confirmed.message, ReceiptKind.DELIVERED, 2)
    async with aclosing(OpenNotices(database, MeshClock()).follow()) as following:
        assert await anext(following) == DueNotice("b", "phone-b", EXPIRES_MS)
        assert await anext(following) is None
