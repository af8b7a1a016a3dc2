"""Milliseconds since 1970 UTC, protobuf timestamps and RFC 3339. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

MIN_MS = -62135596800000
"""0001-01-01T00:00:00Z: the first moment that a protobuf timestamp holds."""
MAX_MS = 253402300799999
"""9999-12-31T23:59:59.999Z: the last one."""


def from_timestamp(value: Timestamp) -> int:
    """Milliseconds of a timestamp, rounded down."""
    return value.seconds * 1000 + value.nanos // 1_000_000


def to_timestamp(ms: int) -> Timestamp:
    """A timestamp of milliseconds."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def from_rfc3339(text: str) -> int:
    """Milliseconds of an RFC 3339 text, rounded down. Raises ValueError where it isn't one or names no offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its offset, such as Z")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1000 + delta.microseconds // 1000


def to_rfc3339(ms: int) -> str:
    """RFC 3339 in UTC to the millisecond, such as 2008-10-24T11:21:43.600Z."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"
