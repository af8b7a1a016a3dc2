"""Which tokens of a device are good, and for how long. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_GOOD = 4
"""Tokens of one device; they all travel in its route."""
KEPT_MOST_S = 7 * 86_400
"""For how long a rotation may keep the older ones, seconds."""


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """A token, as much as is kept of it."""

    sha256: bytes
    valid_until_ms: int | None
    """Exclusive, milliseconds since 1970 UTC; None as long as it isn't revoked."""


def good_at(tokens: Sequence[DeviceToken], now_ms: int) -> list[DeviceToken]:
    """Those that aren't over."""
    return [token for token in tokens if token.valid_until_ms is None or token.valid_until_ms > now_ms]


def rotated(tokens: Sequence[DeviceToken], new: bytes, now_ms: int, keep_older_for_s: int) -> list[DeviceToken]:
    """The tokens, the oldest first, once one with this hash was issued; no older one lasts longer by it than it did."""
    until_ms = now_ms + keep_older_for_s * 1000
    older = [
        replace(token, valid_until_ms=until_ms if token.valid_until_ms is None else min(token.valid_until_ms, until_ms))
        for token in tokens
    ]
    return [*good_at(older, now_ms), DeviceToken(new, None)][-MAX_GOOD:]
