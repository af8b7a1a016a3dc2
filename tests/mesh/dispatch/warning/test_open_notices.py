"""A phone's notices reach those that follow them: at once where this process opens them, and within a second where another one does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest

from services.common.clock import MeshClock
from services.common.storage import db
from services.dispatch.phones import open_notices
from services.dispatch.phones.open_notices import DueNotice, OpenNotices
from services.dispatch.warning.domain import ChannelId, ChannelKind
from services.dispatch.warning.service import MIGRATIONS
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import OPEN, OpenedMessage, Sending
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
    sendings = [
        Sending(message_id, way, command_id="", tries=0, next_ms=0, expires_ms=EXPIRES_MS, outcome=OPEN) for way in ways
    ]
    return OpenedMessage(row, "text", "ko", sendings)


async def test_a_follower_gets_a_notice_as_it_opens(database: db.Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_notices, "POLL_S", 3_600.0)
    notices = OpenNotices(database, MeshClock())
    store = WarningStore(database, notices.opened)
    await store.open([await opened_message(database, "first", "phone-1")])
    async with aclosing(notices.follow()) as following:
        assert await anext(following) == DueNotice("first", "phone-1", EXPIRES_MS)
        assert await anext(following) is None
        await store.open([await opened_message(database, "second", "phone-2")])
        assert await anext(following) == DueNotice("second", "phone-2", EXPIRES_MS)


async def test_a_notice_that_another_process_opened_comes_with_the_next_reading(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_notices, "POLL_S", 0.01)
    notices = OpenNotices(database, MeshClock())
    async with aclosing(notices.follow()) as following:
        assert await anext(following) is None
        await WarningStore(database).open([await opened_message(database, "first", "phone-1")])
        assert await anext(following) == DueNotice("first", "phone-1", EXPIRES_MS)
        await WarningStore(database).open([await opened_message(database, "second", "phone-2")])
        assert await anext(following) == DueNotice("second", "phone-2", EXPIRES_MS)


async def test_a_message_that_was_replaced_meanwhile_is_no_notice(
    database: db.Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_notices, "POLL_S", 3_600.0)
    notices = OpenNotices(database, MeshClock())
    store = WarningStore(database, notices.opened)
    replaced = await opened_message(database, "replaced", "phone-1")
    await store.refuse("replaced")
    async with aclosing(notices.follow()) as following:
        assert await anext(following) is None
        await store.open([replaced, await opened_message(database, "valid", "phone-2")])
        assert await anext(following) == DueNotice("valid", "phone-2", EXPIRES_MS)
