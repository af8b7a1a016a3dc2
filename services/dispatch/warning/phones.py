"""Notices on protected persons' phones, in the warning leg's database: what a phone shows, the news of each sending, and receipts."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy as sa

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.storage.db import Database
from services.common.storage.statements import Prepared
from services.dispatch.warning.domain import ChannelId, ChannelKind, Last, ReceiptKind, choose_shown
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.store import ContactBook, WarningStore, fetch_rows
from services.dispatch.warning.tables import (
    GIVEN_UP,
    IN_APP,
    OUTDATED,
    MessageRow,
    Sending,
    contact_devices,
    covered_alerts,
    message_of,
    messages,
    notified_persons,
    sendings,
)

MAX_EARLIER = 20
"""Maximum number of earlier notices of a device. More of them don't fit a telephone, and the present instruction counts."""
EARLIER_MS = 86_400_000
"""Time for which an earlier notice is listed, milliseconds of mesh time."""
POLL_S = 1.0
"""Interval at which the database is read, seconds: another process may have opened a notice."""
READINGS_PER_CLEANUP = 60
"""Number of readings between two removals of expired notices from memory."""
MAX_NEWS = 1_000
"""Maximum number of notices that wait for a follower which is slower than they come."""


class DueNotice(NamedTuple):
    """A sending of a notice to a device, without its text."""

    notice_id: str
    device_id: str
    expires_ms: int
    """When the sending gives way to the next one, mesh time."""
    repetition: int = 0
    in_app_only: bool = False
    """Whether only an app that is open may show it, so that the phone must not be woken."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Key of the sending: the same notice may go to several devices, several times."""
        return self.notice_id, self.device_id, self.repetition


class ShownNotices(NamedTuple):
    """What a device shows."""

    present: MessageRow | None
    """The present instruction or all-clear; None if nothing is valid now."""
    earlier: Sequence[MessageRow]
    """Earlier messages, the newest first, at most MAX_EARLIER."""


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

    async def of_device(self, device_id: str) -> ShownNotices:
        """What a device shows now. A device that was put since the last sending shows it, too."""
        now_ms = self._clock.now_ms()
        values = {"device": device_id, "after_ms": now_ms - EARLIER_MS}

        def work(connection: sa.Connection) -> ShownNotices:
            last = [message_of(row) for row in _LAST_OF_DEVICE.fetch(connection, values)]
            index = choose_shown([_last(message) for message in last], now_ms)
            present = None if index is None else last[index]
            listed = [message_of(row) for row in _OF_DEVICE.fetch(connection, values)]
            earlier = [message for message in listed if present is None or message.message_id != present.message_id]
            return ShownNotices(present, earlier[:MAX_EARLIER])

        return await self._database.visit(work)

    async def is_to_device(self, message: MessageRow, device_id: str) -> bool:
        """Whether a device is one of the person to whom a message is."""
        values = {"device": device_id, "to": message.person_id}
        return bool(await fetch_rows(self._database, _IS_HERS, values))

    async def follow(self) -> AsyncGenerator[DueNotice | None]:
        """Yields each present notice that no phone has confirmed, then None, then each further sending, until closed."""
        news: asyncio.Queue[DueNotice] = asyncio.Queue(MAX_NEWS)
        self._followers.add(news)
        known: dict[tuple[str, str, int], int] = {}
        try:
            newest = 0
            for reading in itertools.count():
                now_ms, next_s = self._clock.now_ms(), asyncio.get_running_loop().time() + POLL_S
                if reading % READINGS_PER_CLEANUP == 0:
                    known = {key: expires_ms for key, expires_ms in known.items() if expires_ms > now_ms}
                rows, newest = await self._read(now_ms, newest, is_first=reading == 0)
                for row in rows:
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

    async def _read(self, now_ms: int, newest: int, *, is_first: bool) -> tuple[Sequence[tuple[Any, ...]], int]:
        """The sendings after a number, and the greatest number by then. At first those that no phone has confirmed."""

        def work(connection: sa.Connection) -> tuple[Sequence[tuple[Any, ...]], int]:
            if is_first:
                [(last,)] = _NEWEST.fetch(connection)
                return _UNCONFIRMED.fetch(connection, {"now_ms": now_ms}), last or 0
            rows = _NEW.fetch(connection, {"now_ms": now_ms, "after": newest})
            return rows, rows[-1][0] if rows else newest

        return await self._database.visit(work)


async def _next(news: asyncio.Queue[DueNotice], until_s: float) -> DueNotice | None:
    """The next notice, or None at a moment, by the event loop's clock, seconds."""
    try:
        async with asyncio.timeout_at(until_s):
            return await news.get()
    except TimeoutError:
        return None


def _last(message: MessageRow) -> Last:
    return Last(message.message_kind, message.issued_ms or 0, message.displayed_ms)


def _due_of(sending: Sending) -> DueNotice:
    return DueNotice(
        notice_id=sending.message_id,
        device_id=sending.channel.name,
        expires_ms=sending.expires_ms,
        repetition=sending.repetition,
        in_app_only=sending.outcome == IN_APP,
    )


def _due(row: tuple[Any, ...]) -> DueNotice:
    _, message_id, way, expires_ms, repetition, outcome = row
    return DueNotice(
        notice_id=message_id,
        device_id=ChannelId.parse(way).name,
        expires_ms=expires_ms,
        repetition=repetition,
        in_app_only=outcome == IN_APP,
    )


_HERS = (
    sa.select(contact_devices.c.person_id)
    .where(contact_devices.c.device_id == sa.bindparam("device"))
    .scalar_subquery()
)
_LAST_OF_DEVICE = Prepared(
    sa.select(*messages.c).where(
        messages.c.person_id.in_(_HERS),
        sa.text("past_ms is null"),  # as the index messages_present has it
        messages.c.issued_ms.is_not(None),
    )
)
_OF_DEVICE = Prepared(
    sa.select(*messages.c)
    .where(
        messages.c.person_id.in_(_HERS),
        messages.c.issued_ms.is_not(None),
        messages.c.due_ms > sa.bindparam("after_ms"),
    )
    .order_by(messages.c.due_ms.desc(), messages.c.message_id)
    .limit(MAX_EARLIER + 1)
)
_IS_HERS = Prepared(
    sa.select(contact_devices.c.person_id)
    .where(contact_devices.c.device_id == sa.bindparam("device"), contact_devices.c.person_id == sa.bindparam("to"))
    .limit(1)
)
_ENDS_MS = sa.literal_column("+sendings.expires_ms", sa.Integer)
"""End of a sending, written so that SQLite doesn't look for it in an index: the rows after a number are few, and those that end later
many."""
_ROW_ID = sa.literal_column("sendings.rowid", sa.Integer)
"""Number of a sending in the order in which they were stored. A sending is stored once its message can be read."""
_NEWEST = Prepared(sa.select(sa.func.max(_ROW_ID)).select_from(sendings))
_TO_DEVICES = (
    sa.select(
        _ROW_ID,
        *(sendings.c[name] for name in ("message_id", "way", "expires_ms", "repetition", "outcome")),
    )
    .select_from(messages.join(sendings, sendings.c.message_id == messages.c.message_id))
    .where(
        sendings.c.outcome.not_in((OUTDATED, GIVEN_UP)),
        sendings.c.way.startswith(f"{ChannelKind.DEVICE.value}/"),
        sa.bindparam("now_ms") < _ENDS_MS,
    )
    .order_by(_ROW_ID)
)
_NEW = Prepared(_TO_DEVICES.where(sa.bindparam("after") < _ROW_ID))
_UNCONFIRMED = Prepared(
    _TO_DEVICES.where(
        sa.text("past_ms is null"),
        messages.c.issued_ms.is_not(None),
        messages.c.delivered_ms.is_(None),
        messages.c.displayed_ms.is_(None),
        messages.c.acknowledged_ms.is_(None),
        sendings.c.repetition == messages.c.repetitions,
    )
)
"""A field that has restarted wakes nobody whose phone has the notice."""


MAX_ENDED = 5
"""Maximum number of incidents of a device."""
ENDED_MS = 86_400_000
"""Time after its end for which an incident is listed, milliseconds of mesh time."""


class NotifiedIncident(NamedTuple):
    """An incident in which a person was warned, and which is over for her."""

    incident_id: str
    order_id: str
    person_id: str


class EndedIncidents:
    """Reads the incidents that are over for a device. Raises Unavailable if the database refuses."""

    def __init__(self, database: Database, clock: MeshClock) -> None:
        self._database, self._clock = database, clock

    async def of_device(self, device_id: str) -> list[NotifiedIncident]:
        """The live incidents in which the person of a device was warned and nothing threatens her any more, of the last ENDED_MS, the
        newest first, at most MAX_ENDED."""
        values = {"device": device_id, "after_ms": self._clock.now_ms() - ENDED_MS}
        rows = await fetch_rows(self._database, _ENDED, values)
        return list(dict.fromkeys(map(NotifiedIncident._make, rows)))


_ENDED = Prepared(
    sa.select(notified_persons.c.incident_id, sa.func.min(covered_alerts.c.order_id), notified_persons.c.person_id)
    .select_from(
        notified_persons.join(covered_alerts, covered_alerts.c.incident_id == notified_persons.c.incident_id).join(
            messages,
            (messages.c.message_id == covered_alerts.c.message_id)
            & (messages.c.person_id == notified_persons.c.person_id),
        )
    )
    .where(
        notified_persons.c.person_id.in_(
            sa.select(contact_devices.c.person_id)
            .where(contact_devices.c.device_id == sa.bindparam("device"))
            .scalar_subquery()
        ),
        sa.text("told.over_ms is not null"),  # as the index told_over has it
        notified_persons.c.over_ms > sa.bindparam("after_ms"),
        sa.not_(notified_persons.c.drill),
        messages.c.issued_ms.is_not(None),
    )
    .group_by(notified_persons.c.incident_id, notified_persons.c.person_id, notified_persons.c.over_ms)
    .order_by(notified_persons.c.over_ms.desc())
    .limit(MAX_ENDED)
)


@dataclass(frozen=True, slots=True)
class PhoneAccess:
    """The notices that phones can read, and the receipts that they send. All methods raise Unavailable."""

    store: WarningStore
    notices: OpenNotices
    ended: EndedIncidents
    receipts: ReceiptStore
    contacts: ContactBook
    clock: MeshClock
    wake: Callable[[], None]
    """Wakes the sender after a receipt."""

    async def record(self, message: MessageRow, receipt: ReceiptKind, choice: int) -> None:
        """Records a receipt. `choice` is the number of the button, 0 without an answer. A duress choice takes the same work."""
        duress = choice > 0 and await self.contacts.is_duress(message.person_id, choice)
        await self.receipts.put(message, receipt, self.clock.now_ms(), duress=duress)
        self.wake()
        logger().info("warning_receipt", message_id=message.message_id, receipt=receipt.value)  # never log the choice
