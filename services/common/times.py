"""Conversions between milliseconds since 1970 UTC, protobuf timestamps and RFC 3339 texts. Pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from google.protobuf.timestamp_pb2 import Timestamp

KOREA = timezone(timedelta(hours=9), "KST")
"""Korean time, which has no daylight saving."""
MIN_MS = -62135596800000
"""Earliest time that a protobuf timestamp can hold, 0001-01-01T00:00:00Z, in milliseconds since 1970 UTC."""
MAX_MS = 253402300799999
"""Latest time that a protobuf timestamp can hold, 9999-12-31T23:59:59.999Z, in milliseconds since 1970 UTC."""


def from_timestamp(value: Timestamp) -> int:
    """Converts a protobuf timestamp to milliseconds since 1970 UTC, rounded down."""
    return value.seconds * 1000 + value.nanos // 1_000_000


def to_timestamp(ms: int) -> Timestamp:
    """Converts milliseconds since 1970 UTC to a protobuf timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def from_rfc3339(text: str) -> int:
    """Parses an RFC 3339 time to milliseconds since 1970 UTC, rounded down. Raises ValueError if it is malformed or has no offset."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("a time needs its UTC offset (example: 2026-07-06T09:00:00+09:00)")
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86400 + delta.seconds) * 1000 + delta.microseconds // 1000


def to_rfc3339(ms: int) -> str:
    """Formats milliseconds since 1970 UTC as RFC 3339 in UTC to the millisecond, such as 2008-10-24T11:21:43.600Z."""
    return datetime.fromtimestamp(ms // 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S") + f".{ms % 1000:03d}Z"


def korean_date_time(ms: int) -> str:
    """Date and time in Korea, to the second, from milliseconds since 1970 UTC."""
    return datetime.fromtimestamp(ms // 1000, KOREA).strftime("%Y-%m-%d %H:%M:%S")
