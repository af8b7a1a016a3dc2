"""A reader's position in a stream, as the identity of an entry and not only its sequence.

A stream can go back: through a torn tail, an older copy of its store, or a lagging replica that became leader. The stream then reuses
sequences for other entries, and a reader that only compares sequences skips these entries. A `StreamCursor` identifies an entry by
sequence, timestamp and content, so that the reader notices the difference.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import FailedPrecondition, NotFound
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger

WENT_BACK = "stream_went_back"
"""Machine-readable code of StreamWentBack, in gRPC's ErrorInfo and as the event name in logs."""
SHORTER_CHECKS, SHORTER_CHECK_S = 4, 0.25
"""Number of checks, and seconds between them, before a stream counts as shorter than a reader's position. In a cluster, a new
leader may still be applying its entries for a moment."""
_DIGEST_BYTES = 8


class StreamCursor(NamedTuple):
    """Identity of an entry of a stream. As a reader's position, it is the last entry that the reader has processed."""

    sequence: int
    """Sequence of the entry in its stream."""
    stored_at_ns: int
    """Time at which the stream stored the entry, nanoseconds since 1970 UTC, exactly as JetStream gives it."""
    digest: str
    """Hash of the entry's subject and data, 16 hex digits. It differs even if a clock was set back and two entries have the same
    time."""

    def __str__(self) -> str:
        """Text form for a file or a database column: `sequence:stored_at_ns:digest`."""
        return f"{self.sequence}:{self.stored_at_ns}:{self.digest}"

    @classmethod
    def parse(cls, text: str) -> StreamCursor:
        """Parses a cursor from its text form. Raises ValueError."""
        sequence, stored_at_ns, digest = text.split(":")
        return cls(int(sequence), int(stored_at_ns), digest)

    @classmethod
    def of(cls, sequence: int, stored_at_ns: int, subject: str, *, data: bytes) -> StreamCursor:
        """Identity of an entry with this sequence, storage time, subject and data."""
        hashed = hashlib.blake2b(subject.encode() + b"\0" + data, digest_size=_DIGEST_BYTES)
        return cls(sequence, stored_at_ns, hashed.hexdigest())


class StreamWentBack(FailedPrecondition):
    """The stream no longer holds the entry at the reader's position, though the entry can't have aged out.

    The stream has lost the entries after the last common one, and reuses their sequences for other entries. A reader that continued
    from its position would skip these. Effects of the lost entries remain in the reader's database.
    """

    def __init__(self, stream: str, sequence: int, found: StreamCursor | None, *, last: int | None = None) -> None:
        super().__init__(
            f"{stream} went back: at {sequence} it has "
            + (
                "another entry than was read there"
                if found
                else "no entry"
                if last is None
                else f"no entry, because it ends at {last}"
            )
            + "; read again after the last common entry",
            code=WENT_BACK,
        )
        self.stream = stream
        self.sequence = sequence
        """Sequence at the reader's position. The stream holds another entry there, or none."""
        self.found = found
        """Entry that the stream now holds at `sequence`. None if it holds none."""
        self.last = last
        """Last sequence of the stream. None if it wasn't queried."""


def alarm(bus: Bus, error: StreamWentBack) -> None:
    """Raises the alarm that a stream went back: it counts and logs the loss of acknowledged messages.

    More messages may be lost than those that this reader had read.
    """
    bus.metrics.streams_went_back.labels(error.stream).inc()
    logger().critical(WENT_BACK, stream=error.stream, sequence=error.sequence, ends_at=error.last)


async def stored_at(bus: Bus, stream: str, sequence: int) -> Mapping[str, Any] | None:
    """The message at a sequence of a stream, as STREAM.MSG.GET returns it, or None if the stream holds none. Raises Unavailable."""
    try:
        stored: Mapping[str, Any] = (await bus.api(f"STREAM.MSG.GET.{stream}", {"seq": sequence}))["message"]
    except NotFound:
        return None
    return stored


async def at(bus: Bus, stream: str, sequence: int) -> StreamCursor | None:
    """Identity of the entry at a sequence of a stream, or None if the stream holds none there. Raises Unavailable."""
    stored = await stored_at(bus, stream, sequence)
    return of_stored(stored) if stored else None


def of_stored(stored: Mapping[str, Any]) -> StreamCursor:
    """Identity of a stored message, given as STREAM.MSG.GET returns it."""
    data = base64.b64decode(stored.get("data", ""))
    stored_at = Timestamp()
    stored_at.FromJsonString(stored["time"])
    return StreamCursor.of(stored["seq"], stored_at.ToNanoseconds(), stored["subject"], data=data)


async def is_empty(bus: Bus, stream: str, cursor: StreamCursor) -> bool:
    """Whether a stream holds an entry and the entry has no content. Raises StreamWentBack or Unavailable, as `holds` does."""
    return await holds(bus, stream, cursor) and not (await stored_at(bus, stream, cursor.sequence) or {}).get("data")


async def holds(bus: Bus, stream: str, cursor: StreamCursor) -> bool:
    """Whether a stream still holds an entry. False means that the entry has aged out: it lies before the stream's first sequence.

    Raises StreamWentBack if the stream holds another entry or none at this sequence, and Unavailable if the server doesn't answer.
    """
    stored = await kept_at(bus, stream, cursor.sequence)
    if stored is None:
        return False
    if (found := of_stored(stored)) != cursor:
        raise StreamWentBack(stream, cursor.sequence, found)
    return True


async def kept_at(bus: Bus, stream: str, sequence: int) -> Mapping[str, Any] | None:
    """The message at a sequence at which the stream once held one, or None if it has aged out.

    Raises StreamWentBack if the stream holds no message there and the message can't have aged out, and Unavailable.
    """
    for left in reversed(range(SHORTER_CHECKS)):
        stored = await stored_at(bus, stream, sequence)
        if stored is not None:
            return stored
        bounds = await bus.bounds_of(stream)
        if sequence < bounds.first:
            return None
        if sequence <= bounds.last or not left:
            raise StreamWentBack(stream=stream, sequence=sequence, found=None, last=bounds.last)
        await asyncio.sleep(SHORTER_CHECK_S)
    raise AssertionError("the last check returns or raises")


async def last_common(bus: Bus, stream: str, known: Iterable[StreamCursor]) -> StreamCursor | None:
    """The newest known entry that the stream still holds or that has aged out. None if there is no such entry.

    After StreamWentBack a reader continues after this entry, or from the stream's first entry if there is none. Raises Unavailable.
    """
    for cursor in sorted(known, reverse=True):
        try:
            await holds(bus, stream, cursor)
        except StreamWentBack:
            continue
        return cursor
    return None
