"""Find published messages that their stream has lost: it went back after the publisher had noted them as published.

A publisher notes, in its own database, as which entry of the stream each message was stored (`PubAck.seq`). What a stream loses is its
end, so one look at the message that is furthest in the stream tells whether any is lost, as long as none was published since. Those
that were noted since the last look are looked at one by one.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

from nats.js.api import Header
from prometheus_client import Counter

from services.common.messaging.bus import AlreadyThere, Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import NotFound

CHECK_INTERVAL_S = 10.0
"""How often publications are compared though the connection stands: in a cluster another server may have become leader. Wall time."""
NOTICE_INTERVAL_S = 0.25
"""How often a publisher looks whether it has connected again. Wall time."""
RESTORE_INTERVAL_S = 60.0
"""The same of messages that the server has to refuse one by one. Wall time."""
RUN = 256
"""So many in a row must be there behind the last that is lost: publications under way together are noted in any order."""
PAGE = 64
_LOST = Counter(
    "tandem_publications_lost", "Published messages that their stream lost and that are published again", ("stream",)
)


class Publication(NamedTuple):
    """A message that was published."""

    recorded: int
    """Its place in the order in which publications were noted."""
    sequence: int
    """The entry of the stream as which it was stored."""
    subject: str
    message_id: str


class Notes(Protocol):
    """A publisher's own notes of what it published on one stream."""

    async def newest(self, before: int | None, limit: int) -> list[Publication]:
        """The last that were noted, or the last before one of them, the newest first."""

    async def furthest(self, up_to: int) -> Publication | None:
        """Of those noted up to one of them, the one that is furthest in the stream; None where there are none."""


IsThere = Callable[[Publication], Awaitable[bool]]


class StreamComparison:
    """Compares a publisher's notes with one stream."""

    def __init__(self, stream: str, notes: Notes, is_there: IsThere) -> None:
        self._stream, self._notes, self._is_there = stream, notes, is_there
        self._compared: int | None = None
        """Up to which publication all are known to be there; None before the first look."""

    async def lost(self) -> list[Publication]:
        """The publications that the stream has lost, the first one first. Raises Unavailable.

        To be published again, and forgotten as publications: the next look must not find them.
        """
        newest = await self._notes.newest(None, PAGE)
        if not newest:
            return []
        last = newest[0].recorded
        furthest = await self._notes.furthest(last if self._compared is None else self._compared)
        missing = furthest is not None and not await self._is_there(furthest)
        found = [] if missing else await self._walk(newest, self._compared, run=1)
        if missing or found:
            found = await self._walk(newest, None, RUN)
            _LOST.labels(self._stream).inc(len(found))
            logger().critical("publications_were_lost", stream=self._stream, messages=len(found))
            self._compared = None
        else:
            self._compared = last
        return found[::-1]

    async def _walk(self, page: list[Publication], compared: int | None, run: int) -> list[Publication]:
        """The lost ones, the newest first, back to where so many in a row are there, or to what was compared before."""
        found: list[Publication] = []
        there = 0
        while page:
            for publication in page:
                if compared is not None and publication.recorded <= compared:
                    return found
                if await self._is_there(publication):
                    there += 1
                else:
                    found.append(publication)
                    there = 0
            if there >= (run if compared is None else RUN):
                return found
            page = await self._notes.newest(page[-1].recorded, PAGE)
        return found


class Alone(NamedTuple):
    """A message that is alone on its subject."""

    subject: str
    payload: bytes
    message_id: str


async def restore(bus: Bus, stream: str, newest_first: Iterable[Alone]) -> None:
    """Publishes those of the messages that the stream has lost. The server refuses the others, so this needs no right to read.

    Ends where 64 in a row are there: what was published since the loss stands before those that are lost. Raises Unavailable.
    """
    lost = there = 0
    for message in newest_first:
        try:
            await bus.publish(message.subject, message.payload, msg_id=message.message_id, expected_last=0)
        except AlreadyThere:
            there += 1
            if there >= PAGE:
                break
        else:
            lost, there = lost + 1, 0
    if lost:
        _LOST.labels(stream).inc(lost)
        logger().critical("publications_were_lost", stream=stream, messages=lost)


async def keep_restored(bus: Bus, stream: str, newest_first: Callable[[], Awaitable[Iterable[Alone]]]) -> None:
    """Restores messages after each connection and every minute, for ever; raises what reading them raises."""
    loop = asyncio.get_running_loop()
    reconnects, again_at_s = -1, 0.0
    while True:
        if bus.reconnects != reconnects or loop.time() >= again_at_s:
            reconnects, again_at_s = bus.reconnects, loop.time() + RESTORE_INTERVAL_S
            await restore(bus, stream, await newest_first())
        await asyncio.sleep(NOTICE_INTERVAL_S)


def by_sequence(bus: Bus, stream: str) -> IsThere:
    """Looks at the entry of the stream as which a message was stored; one that has aged out counts as being there."""

    async def is_there(publication: Publication) -> bool:
        try:
            stored = await _get(bus, stream, {"seq": publication.sequence})
        except NotFound:
            return publication.sequence < (await bus.bounds_of(stream)).first
        return bool(stored["subject"] == publication.subject) and message_id(stored) == publication.message_id

    return is_there


def by_subject(bus: Bus, stream: str) -> IsThere:
    """Looks at the last message of the subject, where a stream keeps that one alone."""

    async def is_there(publication: Publication) -> bool:
        try:
            stored = await _get(bus, stream, {"last_by_subj": publication.subject})
        except NotFound:
            return False
        return message_id(stored) == publication.message_id

    return is_there


def message_id(stored: Mapping[str, Any]) -> str:
    """The Msg-Id under which a message was published, as STREAM.MSG.GET answers it; empty where it has none."""
    lines = base64.b64decode(stored.get("hdrs", "")).decode(errors="replace").split("\r\n")
    for name, _, value in (line.partition(":") for line in lines):
        if name.strip() == Header.MSG_ID.value:
            return value.strip()
    return ""


async def _get(bus: Bus, stream: str, which: Mapping[str, object]) -> Mapping[str, Any]:
    stored: Mapping[str, Any] = (await bus.api(f"STREAM.MSG.GET.{stream}", which))["message"]
    return stored
