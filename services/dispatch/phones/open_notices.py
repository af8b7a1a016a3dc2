"""Notices that protected persons' phones can read: their list, and the news of each further one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Iterable
from contextlib import suppress
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.warning.domain import ChannelId, ChannelKind
from services.dispatch.warning.store import fetch_rows
from services.dispatch.warning.tables import (
    GIVEN_UP,
    OUTDATED,
    SENDING,
    MessageRow,
    Sending,
    message_of,
    messages,
    sendings,
)

MAX_LISTED = 20
"""Maximum number of notices in the list of a device. More of them don't fit a telephone, and the newest counts."""
POLL_S = 1.0
"""Interval at which the database is read, seconds: another process may have opened a notice."""
READINGS_PER_CLEANUP = 60
"""Number of readings between two removals of expired notices from memory."""
MAX_NEWS = 1_000
"""Maximum number of notices that wait for a follower which is slower than they come."""


class DueNotice(NamedTuple):
    """A notice to a device, without its text."""

    notice_id: str
    device_id: str
    expires_ms: int

    @property
    def key(self) -> tuple[str, str]:
        """Key of the notice: the same notice may go to several devices."""
        return self.notice_id, self.device_id


class ReadableNotice(NamedTuple):
    """A notice to a device, with the end of the time in which it can be read, milliseconds of mesh time."""

    message: MessageRow
    expires_ms: int


class OpenNotices:
    """Reads the notices to devices in the warning leg's database. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database, clock: MeshClock) -> None:
        self._database, self._clock = database, clock
        self._followers: set[asyncio.Queue[DueNotice]] = set()
        """The news of each follower. A notice that finds a queue full is found by the follower's next reading."""

    def opened(self, sendings: Iterable[Sending]) -> None:
        """Gives the notices to devices among stored sendings to all that follow, so that nobody reads the database for them."""
        news = [_due_of(sending) for sending in sendings if sending.channel.kind is ChannelKind.DEVICE]
        for queue in self._followers:
            for notice in news:
                with suppress(asyncio.QueueFull):
                    queue.put_nowait(notice)

    async def of_device(self, device_id: str) -> list[ReadableNotice]:
        """The notices to a device that can be read, the newest first, at most MAX_LISTED."""
        values = {"way": str(ChannelId(ChannelKind.DEVICE, device_id)), "now_ms": self._clock.now_ms()}
        rows = await fetch_rows(self._database, _OF_DEVICE, values)
        return [ReadableNotice(message_of(row[1:]), row[0]) for row in rows]

    async def follow(self) -> AsyncGenerator[DueNotice | None]:
        """Yields each notice that can be read, then None, then each further notice, until closed."""
        news: asyncio.Queue[DueNotice] = asyncio.Queue(MAX_NEWS)
        self._followers.add(news)
        known: dict[tuple[str, str], int] = {}
        try:
            newest = 0
            for reading in itertools.count():
                now_ms, next_s = self._clock.now_ms(), asyncio.get_running_loop().time() + POLL_S
                if reading % READINGS_PER_CLEANUP == 0:
                    known = {key: expires_ms for key, expires_ms in known.items() if expires_ms > now_ms}
                for row in await fetch_rows(self._database, _DUE, {"now_ms": now_ms, "after": newest}):
                    newest = row[0]
                    if (due := _due(row)).key not in known:
                        known[due.key] = due.expires_ms
                        yield due
                if reading == 0:
                    yield None
                while opened := await _next(news, next_s):
                    if opened.key not in known:
                        known[opened.key] = opened.expires_ms
                        yield opened
        finally:
            self._followers.discard(news)


async def _next(news: asyncio.Queue[DueNotice], until_s: float) -> DueNotice | None:
    """The next notice, or None at a moment, by the event loop's clock, seconds."""
    try:
        async with asyncio.timeout_at(until_s):
            return await news.get()
    except TimeoutError:
        return None


def _due_of(sending: Sending) -> DueNotice:
    return DueNotice(sending.message_id, sending.channel.name, sending.expires_ms)


def _due(row: tuple[Any, ...]) -> DueNotice:
    _, message_id, way, expires_ms = row
    return DueNotice(message_id, ChannelId.parse(way).name, expires_ms)


_IS_SENT = (messages.c.state == SENDING) & sendings.c.outcome.not_in((OUTDATED, GIVEN_UP))
_JOINED = messages.join(sendings, sendings.c.message_id == messages.c.message_id)
_OF_DEVICE = Prepared(
    sa.select(sendings.c.expires_ms, *messages.c)
    .select_from(_JOINED)
    .where(_IS_SENT, sendings.c.expires_ms > sa.bindparam("now_ms"), sendings.c.way == sa.bindparam("way"))
    .order_by(messages.c.due_ms.desc())
    .limit(MAX_LISTED)
)
_ENDS_MS = sa.literal_column("+sendings.expires_ms", sa.Integer)
"""End of a sending, written so that SQLite doesn't look for it in an index: the rows after a number are few, and those that end later
many."""
_ROW_ID = sa.literal_column("sendings.rowid", sa.Integer)
"""Number of a sending in the order in which they were stored. A sending is stored once its message can be read."""
_DUE = Prepared(
    sa.select(_ROW_ID, sendings.c.message_id, sendings.c.way, sendings.c.expires_ms)
    .select_from(_JOINED)
    .where(
        _IS_SENT,
        sendings.c.way.startswith(f"{ChannelKind.DEVICE.value}/"),
        sa.bindparam("after") < _ROW_ID,
        sa.bindparam("now_ms") < _ENDS_MS,
    )
    .order_by(_ROW_ID)
)
