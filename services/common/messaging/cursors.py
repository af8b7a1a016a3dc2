"""How far a reader of a stream is, told by the entry itself and not by its number alone.

A stream can go back: a torn tail, an older copy of its store put in place, a lagging replica that became leader. Then its sequences are
used again for other entries, and a reader that goes by numbers skips them. A `StreamCursor` names an entry by its sequence, its stamp
and its content, so that the reader sees the difference.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

from prometheus_client import Counter

from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound

WENT_BACK = "stream_went_back"
"""Code of the error, for programs."""
SHORTER_CHECKS, SHORTER_CHECK_S = 4, 0.25
"""How often, and how far apart, a stream is asked before it counts as shorter: in a cluster a new leader may still be applying what it
has, for a moment."""
_DIGEST_BYTES = 8
_NS = 1_000_000_000
_WENT_BACK = Counter(
    "tandem_stream_went_back", "Times that a reader found another entry, or none, where it had read one", ("stream",)
)


class StreamCursor(NamedTuple):
    """Identity of one entry of a stream: the last one that a reader has dealt with."""

    sequence: int
    """Its place in the stream."""
    stored_at_ns: int
    """The stream's own stamp of it, nanoseconds since 1970 UTC, exactly as JetStream gives it."""
    digest: str
    """Hash of its subject and data, 16 hex digits: where a clock was set back, two entries may have the same stamp."""

    def __str__(self) -> str:
        """For a file or a column of a database: `sequence:stored_at_ns:digest`."""
        return f"{self.sequence}:{self.stored_at_ns}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> StreamCursor:
        """The cursor that `str` wrote. Raises ValueError."""
        sequence, stored_at_ns, digest = text.split(":")
        return cls(int(sequence), int(stored_at_ns), digest)

    @classmethod
    def of(cls, sequence: int, stored_at_ns: int, subject: str, data: bytes) -> StreamCursor:
        """Identity of an entry with this content."""
        hashed = hashlib.blake2b(subject.encode() + b"\0" + data, digest_size=_DIGEST_BYTES)
        return cls(sequence, stored_at_ns, hashed.hexdigest())


class StreamWentBack(FailedPrecondition):
    """The stream doesn't hold the entry at the reader's position any more, though the entry can't have aged out.

    What the reader did because of entries behind the last common one rests on entries that are lost, and sequences from there on
    mean other entries now. Going on would skip them.
    """

    def __init__(self, stream: str, sequence: int, found: StreamCursor | None, last: int | None = None) -> None:
        super().__init__(
            f"{stream} went back: at {sequence} it has "
            + (
                "another entry than was read there"
                if found
                else "no entry"
                if last is None
                else f"none, it ends at {last}"
            )
            + "; begin again behind the last common entry",
            code=WENT_BACK,
        )
        self.stream = stream
        self.sequence = sequence
        """The reader's position: the entry there isn't the one that was read."""
        self.found = found
        """Which entry stands there now; None where there is none."""
        self.last = last
        """The stream's last sequence, where it was asked for."""


def alarm(error: StreamWentBack) -> None:
    """Tells people: acknowledged messages are lost, and perhaps not only those that this reader had seen."""
    _WENT_BACK.labels(error.stream).inc()
    logger().critical(WENT_BACK, stream=error.stream, sequence=error.sequence, ends_at=error.last)


async def stored_at(bus: Bus, stream: str, sequence: int) -> Mapping[str, Any] | None:
    """The message that a stream holds at a sequence, as STREAM.MSG.GET answers it; None where it holds none. Raises Unavailable."""
    try:
        stored: Mapping[str, Any] = (await bus.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
    except NotFound:
        return None
    return stored


async def at(bus: Bus, stream: str, sequence: int) -> StreamCursor | None:
    """Identity of the entry that a stream holds at a sequence; None where it holds none. Raises Unavailable."""
    stored = await stored_at(bus, stream, sequence)
    return of_stored(stored) if stored else None


def of_stored(stored: Mapping[str, Any]) -> StreamCursor:
    """Identity of a message as STREAM.MSG.GET answers it."""
    data = base64.b64decode(stored.get("data", ""))
    return StreamCursor.of(stored["seq"], _nanoseconds(stored["time"]), stored["subject"], data)


async def is_empty(bus: Bus, stream: str, cursor: StreamCursor) -> bool:
    """Whether a stream holds the entry, and it has no content. Raises as `holds`."""
    return await holds(bus, stream, cursor) and not (await stored_at(bus, stream, cursor.sequence) or {}).get("data")


async def holds(bus: Bus, stream: str, cursor: StreamCursor) -> bool:
    """Whether a stream holds the entry (True), or it has aged out (False): then it lies before the first that is kept.

    Raises StreamWentBack where another entry stands there or none, Unavailable where the server doesn't answer.
    """
    stored = await kept_at(bus, stream, cursor.sequence)
    if stored is None:
        return False
    if (found := of_stored(stored)) != cursor:
        raise StreamWentBack(stream, cursor.sequence, found)
    return True


async def kept_at(bus: Bus, stream: str, sequence: int) -> Mapping[str, Any] | None:
    """The message that a stream holds at a sequence, where there was one; None where it has aged out.

    Raises StreamWentBack where it holds none though the first that it keeps lies before it, Unavailable.
    """
    for left in reversed(range(SHORTER_CHECKS)):
        stored = await stored_at(bus, stream, sequence)
        if stored is not None:
            return stored
        bounds = await bus.bounds_of(stream)
        if sequence < bounds.first:
            return None
        if sequence <= bounds.last or not left:
            raise StreamWentBack(stream, sequence, None, bounds.last)
        await asyncio.sleep(SHORTER_CHECK_S)
    raise AssertionError("the last check returns or raises")


async def last_common(bus: Bus, stream: str, known: Iterable[StreamCursor]) -> StreamCursor | None:
    """The newest of these entries that the stream still holds, or that has aged out; None where it holds none of them.

    After StreamWentBack a reader goes on behind it, or from the stream's first entry. Raises Unavailable.
    """
    for cursor in sorted(known, reverse=True):
        try:
            await holds(bus, stream, cursor)
        except StreamWentBack:
            continue
        return cursor
    return None


def _nanoseconds(stamp: str) -> int:
    """A stamp such as 2026-11-27T23:19:51.123456789Z: the server leaves out zeros at the end."""
    seconds, _, fraction = stamp.removesuffix("Z").partition(".")
    return round(datetime.fromisoformat(seconds + "+00:00").timestamp()) * _NS + int(fraction.ljust(9, "0"))
