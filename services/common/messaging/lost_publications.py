"""Detection and repair of published messages that their stream has lost, because it went back after they were published.

A publisher records the sequence of each published message (`PubAck.seq`) in its database. A stream that goes back loses the messages
with the highest sequences. So if it still holds the publisher's message with the highest sequence, it holds those before, too.
Messages that were recorded since the last comparison are all checked: many in one reading of the stream, few by a request each.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, NamedTuple, Protocol

from nats.js.api import Header

from services.common.errors import NotFound
from services.common.messaging import pull
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.messaging.cursors import StreamWentBack
from services.common.observability.telemetry import logger

CHECK_INTERVAL_S = 10.0
"""Interval of comparisons while the connection is up, seconds of wall time. Needed because in a cluster another server may
have become leader without a reconnect."""
NOTICE_INTERVAL_S = 0.25
"""Interval of checks whether the publisher has reconnected, seconds of wall time."""
RESTORE_INTERVAL_S = 60.0
"""Interval of `restore` while the connection is up, seconds of wall time. It is longer than CHECK_INTERVAL_S, because each call
publishes messages one by one only to have most of them rejected."""
STORED_RUN = 256
"""Number of consecutive stored messages after which the search for lost ones ends. It isn't 1, because concurrent publications may be
recorded in any order."""
ABOVE_ALL = 2**63 - 1
"""A position after each recorded one: the greatest integer that both databases hold."""
PAGE = 64
"""Number of publications that are read from the publisher's database at a time."""
REJECTED_RUN = 64
"""Number of consecutive rejected messages after which `restore` ends."""
FEW = 4
"""Number of publications up to which each is checked by a request of its own: a reader of the stream costs some requests, too."""
READ_WITHIN_S = 5.0
"""Maximum time to read publications from the stream, seconds. After it each is checked by a request of its own."""


_MSG_ID = Header.MSG_ID.value.encode()


class Publication(NamedTuple):
    """A publisher's record of a message that it has published."""

    position: int
    """Position in the order in which the publisher recorded its publications."""
    sequence: int
    """Sequence of the message in the stream."""
    subject: str
    message_id: str
    """Msg-Id under which the message was published."""


class PublicationRecords(Protocol):
    """A publisher's records of its publications on one stream."""

    async def newest(self, before: int, limit: int) -> list[Publication]:
        """The last publications that were recorded before a position, newest first, at most `limit`."""

    async def highest(self, up_to: int) -> Publication | None:
        """The publication with the highest sequence among those recorded up to a position, or None if there is none."""


LostAmong = Callable[[Sequence[Publication]], Awaitable[Sequence[Publication]]]
"""Returns those of some publications that the stream has lost. Raises Unavailable."""


class StreamComparison:
    """Compares a publisher's records with a stream, to find publications that the stream has lost."""

    def __init__(self, bus: Bus, stream: str, *, records: PublicationRecords, lost_among: LostAmong) -> None:
        self._bus = bus
        self._stream = stream
        self._records = records
        self._lost_among = lost_among
        self._compared: int | None = None
        """Position up to which the stream holds all recorded publications. None before the first comparison."""

    async def lost(self) -> list[Publication]:
        """The publications that the stream has lost, oldest first. Raises Unavailable.

        The caller publishes them again and deletes their records, so that the next comparison doesn't find them.
        """
        newest = await self._records.newest(ABOVE_ALL, PAGE)
        if not newest:
            return []
        last = newest[0].position
        highest = await self._records.highest(last if self._compared is None else self._compared)
        missing = bool(highest and await self._lost_among([highest]))
        run = 1 if self._compared is None else STORED_RUN
        lost = [] if missing else await self._walk(newest, self._compared, run)
        if missing or lost:
            lost = await self._walk(newest, None, STORED_RUN)
            self._bus.metrics.publications_lost.labels(self._stream).inc(len(lost))
            logger().critical("publications_were_lost", stream=self._stream, messages=len(lost))
            self._compared = None
        else:
            self._compared = last
        return lost[::-1]

    async def _walk(self, page: list[Publication], until: int | None, run: int) -> list[Publication]:
        """Lost publications, newest first.

        The search ends at the position `until`, or after a page at whose end `run` consecutive publications were stored.
        """
        lost: list[Publication] = []
        there = 0
        while page:
            unchecked = [publication for publication in page if until is None or publication.position > until]
            missing = set(await self._lost_among(unchecked))
            for publication in unchecked:
                if publication in missing:
                    lost.append(publication)
                    there = 0
                else:
                    there += 1
            if there >= run or len(unchecked) < len(page):
                return lost
            page = await self._records.newest(page[-1].position, PAGE)
        return lost


class SoleMessage(NamedTuple):
    """A message that is the only one on its subject."""

    subject: str
    payload: bytes
    message_id: str


async def restore(bus: Bus, stream: str, newest_first: AsyncIterator[SoleMessage]) -> None:
    """Publishes again those messages that the stream has lost. Raises StoreFull or Unavailable.

    It needs no permission to read, because the server rejects a message that the stream still holds. It ends only after
    REJECTED_RUN consecutive rejections: the newest messages may have been published after the loss, and the lost ones are older.
    """
    lost = there = 0
    async for message in newest_first:
        try:
            await bus.publish(message.subject, message.payload, msg_id=message.message_id, expected_last=0)
        except AlreadyStored:
            there += 1
            if there >= REJECTED_RUN:
                break
        else:
            lost, there = lost + 1, 0
    if lost:
        bus.metrics.publications_lost.labels(stream).inc(lost)
        logger().critical("publications_were_lost", stream=stream, messages=lost)


async def keep_restored(bus: Bus, stream: str, page: Callable[[int, int], Awaitable[Sequence[SoleMessage]]]) -> None:
    """Calls `restore` after each reconnect and every minute, until cancelled. Raises its errors and those of `page`.

    `page` reads published messages, newest first: how many it skips, and how many it returns at most.
    """
    loop = asyncio.get_running_loop()
    reconnects, next_restore_s = -1, 0.0
    while True:
        if bus.reconnects != reconnects or loop.time() >= next_restore_s:
            reconnects, next_restore_s = bus.reconnects, loop.time() + RESTORE_INTERVAL_S
            async with aclosing(_paged(page)) as newest_first:
                await restore(bus, stream, newest_first)
        await asyncio.sleep(NOTICE_INTERVAL_S)


async def _paged(
    page: Callable[[int, int], Awaitable[Sequence[SoleMessage]]],
) -> AsyncGenerator[SoleMessage, None]:
    skipped = 0
    while messages := await page(skipped, PAGE):
        for message in messages:
            yield message
        skipped += len(messages)


def by_sequence(bus: Bus, stream: str, subjects: Sequence[str] = ()) -> LostAmong:
    """Check of publications by their sequences in the stream. A message that has aged out counts as stored.

    `subjects` are those of the publications, which the publisher may read. If they are empty, each publication costs a request.
    """

    async def is_there(publication: Publication) -> bool:
        try:
            stored = await _get(bus, stream, {"seq": publication.sequence})
        except NotFound:
            return publication.sequence < (await bus.bounds_of(stream)).first
        return bool(stored["subject"] == publication.subject) and message_id(stored) == publication.message_id

    async def lost_among(publications: Sequence[Publication]) -> Sequence[Publication]:
        held: Mapping[int, _StoredIdentity] = {}
        if subjects and len(publications) > FEW:
            last = max(publications, key=lambda publication: publication.sequence)
            if await is_there(last):  # otherwise reading might wait for it
                first = min(publication.sequence for publication in publications)
                held = await _identities(bus, stream, subjects, first=first, last=last.sequence)
        return [
            publication
            for publication in publications
            if held.get(publication.sequence) != _StoredIdentity(publication.subject, publication.message_id)
            and not await is_there(publication)
        ]

    return lost_among


def by_subject(bus: Bus, stream: str) -> LostAmong:
    """Check of publications by the last message on the subject of each, for streams that keep only that message."""

    async def is_there(publication: Publication) -> bool:
        try:
            stored = await _get(bus, stream, {"last_by_subj": publication.subject})
        except NotFound:
            return False
        return message_id(stored) == publication.message_id

    async def lost_among(publications: Sequence[Publication]) -> Sequence[Publication]:
        return [publication for publication in publications if not await is_there(publication)]

    return lost_among


class _StoredIdentity(NamedTuple):
    """Identity of a message at a sequence of its stream."""

    subject: str
    message_id: str


async def _identities(
    bus: Bus, stream: str, subjects: Sequence[str], *, first: int, last: int
) -> Mapping[int, _StoredIdentity]:
    """Identities of the messages on some subjects, by their sequences. Empty if they can't be read soon."""
    held: dict[int, _StoredIdentity] = {}
    try:
        async with (
            asyncio.timeout(READ_WITHIN_S),
            aclosing(pull.read(bus, stream, first, subjects=subjects, batch=PAGE)) as reading,
        ):
            async for messages in reading:
                for message in messages:
                    id_ = (message.headers or {}).get(Header.MSG_ID.value, "")
                    held[message.sequence] = _StoredIdentity(message.subject, id_)
                if messages[-1].sequence >= last:
                    return held
    except (StreamWentBack, TimeoutError):
        return {}
    return held


def message_id(stored: Mapping[str, Any]) -> str:
    """Msg-Id of a stored message, given as STREAM.MSG.GET returns it. Empty if the message has none."""
    # Not by the parser of e-mail, which takes longer than the request for the message.
    for line in base64.b64decode(stored.get("hdrs", "")).split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == _MSG_ID:
            return value.strip().decode()
    return ""


async def _get(bus: Bus, stream: str, request: Mapping[str, object]) -> Mapping[str, Any]:
    stored: Mapping[str, Any] = (await bus.api(f"STREAM.MSG.GET.{stream}", request))["message"]
    return stored
