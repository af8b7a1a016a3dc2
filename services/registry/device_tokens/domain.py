"""Validity and rotation of a device's tokens. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

MAX_VALID = 4
"""Maximum number of valid tokens of one device. The device's route contains all of them."""
MAX_KEEP_OLDER_S = 7 * 86_400
"""Maximum time for which a rotation may keep older tokens valid, seconds."""


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """Hash and end of a token. The token itself isn't stored."""

    sha256: bytes
    valid_until_ms: int | None
    """End of validity, exclusive, milliseconds since 1970 UTC; None until a rotation sets an end."""


def valid_at(tokens: Sequence[DeviceToken], now_ms: int) -> list[DeviceToken]:
    """The tokens that are valid at a moment, milliseconds since 1970 UTC."""
    return [token for token in tokens if token.valid_until_ms is None or token.valid_until_ms > now_ms]


def rotated(tokens: Sequence[DeviceToken], new: bytes, now_ms: int, *, keep_older_for_s: int) -> list[DeviceToken]:
    """The tokens of a device after a new one was issued, oldest first. A rotation never prolongs an older token.

    `new` is the SHA-256 of the new token, `keep_older_for_s` the time for which older tokens stay valid.
    """
    until_ms = now_ms + keep_older_for_s * 1000
    older = [
        replace(token, valid_until_ms=until_ms if token.valid_until_ms is None else min(token.valid_until_ms, until_ms))
        for token in tokens
    ]
    return [*valid_at(older, now_ms), DeviceToken(new, None)][-MAX_VALID:]
