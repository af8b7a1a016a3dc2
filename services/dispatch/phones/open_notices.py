"""Notices that protected persons' phones can read: their list, and the news of each further one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.warning.domain import ChannelId, ChannelKind
from services.dispatch.warning.store import fetch_rows
from services.dispatch.warning.tables import GIVEN_UP, OUTDATED, SENDING, MessageRow, message_of, messages, sendings

MAX_LISTED = 20
"""Maximum number of notices in the list of a device. More of them don't fit a telephone, and the newest counts."""
POLL_S = 1.0
"""Interval at which the database is read without a signal, seconds: another process may have opened a notice."""


class DueNotice(NamedTuple):
    """A notice to a device, without its text."""

    notice_id: str
    device_id: str
    expires_ms: int


class ReadableNotice(NamedTuple):
    """A notice to a device, with the end of the time in which it can be read, milliseconds of mesh time."""

    message: MessageRow
    expires_ms: int


class OpenNotices:
    """Reads the notices to devices in the warning leg's database. All methods raise Unavailable if the database refuses."""

    def __init__(self, database: Database, clock: MeshClock) -> None:
        self._database, self._clock = database, clock
        self._opened = asyncio.Event()

    def opened(self) -> None:
        """Wakes all that follow, because messages were opened."""
        opened, self._opened = self._opened, asyncio.Event()
        opened.set()

    async def of_device(self, device_id: str) -> list[ReadableNotice]:
        """The notices to a device that can be read, the newest first, at most MAX_LISTED."""
        values = {"way": str(ChannelId(ChannelKind.DEVICE, device_id)), "now_ms": self._clock.now_ms()}
        rows = await fetch_rows(self._database, _OF_DEVICE, values)
        return [ReadableNotice(message_of(row[1:]), row[0]) for row in rows]

    async def follow(self) -> AsyncGenerator[DueNotice | None]:
        """Yields each notice that can be read, then None, then each further notice, until closed."""
        notified: dict[tuple[str, str], int] = {}
        while True:
            opened, now_ms = self._opened, self._clock.now_ms()
            first = not notified
            for row in await fetch_rows(self._database, _DUE, {"now_ms": now_ms}):
                due = _due(row)
                if due[:2] not in notified:
                    notified[due[:2]] = due.expires_ms
                    yield due
            if first:
                yield None
            notified = {key: expires_ms for key, expires_ms in notified.items() if expires_ms > now_ms}
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await opened.wait()


def _due(row: tuple[Any, ...]) -> DueNotice:
    message_id, way, expires_ms = row
    return DueNotice(message_id, ChannelId.parse(way).name, expires_ms)


_READABLE = (
    (messages.c.state == SENDING)
    & sendings.c.outcome.not_in((OUTDATED, GIVEN_UP))
    & (sendings.c.expires_ms > sa.bindparam("now_ms"))
)
_JOINED = messages.join(sendings, sendings.c.message_id == messages.c.message_id)
_OF_DEVICE = Prepared(
    sa.select(sendings.c.expires_ms, *messages.c)
    .select_from(_JOINED)
    .where(_READABLE, sendings.c.way == sa.bindparam("way"))
    .order_by(messages.c.due_ms.desc())
    .limit(MAX_LISTED)
)
_DUE = Prepared(
    sa.select(sendings.c.message_id, sendings.c.way, sendings.c.expires_ms)
    .select_from(_JOINED)
    .where(_READABLE, sendings.c.way.startswith(f"{ChannelKind.DEVICE.value}/"))
    .order_by(sendings.c.expires_ms)
)
