"""Tokens with which phones report, and the codes by which her phone gets one. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.common.errors import FailedPrecondition, InvalidField, NotFound

MAX_VALID_TOKENS = 4
"""Maximum number of valid tokens of one device. The device's route contains all of them."""
MAX_KEEP_OLDER_S = 7 * 86_400
"""Maximum time for which a rotation may keep older tokens valid, seconds."""


@dataclass(frozen=True, slots=True)
class DeviceToken:
    """Hash and end of a token. The token itself isn't stored."""

    sha256: bytes
    valid_until_ms: int | None
    """End of validity, exclusive, milliseconds since 1970 UTC; None until a rotation sets an end."""


def valid_tokens(tokens: Sequence[DeviceToken], now_ms: int) -> list[DeviceToken]:
    """The tokens that are valid at a moment, milliseconds since 1970 UTC."""
    return [token for token in tokens if token.valid_until_ms is None or token.valid_until_ms > now_ms]


def rotated_tokens(
    tokens: Sequence[DeviceToken], new: bytes, now_ms: int, *, keep_older_for_s: int
) -> list[DeviceToken]:
    """The tokens of a device after a new one was issued, oldest first. A rotation never prolongs an older token.

    `new` is the SHA-256 of the new token, `keep_older_for_s` the time for which older tokens stay valid.
    """
    until_ms = now_ms + keep_older_for_s * 1000
    older = [
        replace(token, valid_until_ms=until_ms if token.valid_until_ms is None else min(token.valid_until_ms, until_ms))
        for token in tokens
    ]
    return [*valid_tokens(older, now_ms), DeviceToken(new, None)][-MAX_VALID_TOKENS:]


ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Characters of a code, without those that are easily misread: 0 O, 1 I L, U."""
CODE_LENGTH = 12
"""Number of characters of a code: 59 bits, so that a guess within the validity is hopeless even for somebody who has the hashes."""
CODE_GROUP = 4
DEFAULT_VALID_S = 900
MIN_VALID_S = 60
MAX_VALID_S = 86_400
"""Validity of a code, seconds."""


class EnrolledDevice(NamedTuple):
    """A protective device and its person."""

    device_id: str
    person_id: str


@dataclass(frozen=True, slots=True)
class EnrolmentCode:
    """A stored code. The code itself isn't stored."""

    sha256: bytes
    device_id: str
    expires_ms: int
    """End of validity, exclusive, milliseconds of mesh time."""
    used_ms: int | None
    """When the code was used, or ended by a newer one, mesh time; None if neither."""
    issued_by: str
    """SPIFFE id of the caller who issued it."""


def written_code(indices: Sequence[int]) -> str:
    """The code of CODE_LENGTH random indices, as people read it: `7KQ2-MXRA-93TD`."""
    text = "".join(ALPHABET[index % len(ALPHABET)] for index in indices)
    return "-".join(text[start : start + CODE_GROUP] for start in range(0, len(text), CODE_GROUP))


def parse_code(text: str) -> str:
    """The characters of a code that somebody typed: without spaces and hyphens, in capitals. Raises InvalidField."""
    code = "".join(character for character in text if character not in " -").upper()
    if len(code) != CODE_LENGTH or any(character not in ALPHABET for character in code):
        raise InvalidField(
            "code",
            f"must be {CODE_LENGTH} characters of {ALPHABET[:8]} A-Z without I, L, O and U (example: 7KQ2-MXRA-93TD)",
        )
    return code


def code_valid_for_s(asked_s: int) -> int:
    """Validity of a code, seconds. Raises InvalidField if it is out of bounds."""
    if asked_s and not MIN_VALID_S <= asked_s <= MAX_VALID_S:
        raise InvalidField("valid_for_s", f"must be from {MIN_VALID_S} to {MAX_VALID_S}, or 0 for {DEFAULT_VALID_S}")
    return asked_s or DEFAULT_VALID_S


def check_code(code: EnrolmentCode | None, now_ms: int) -> EnrolmentCode:
    """The code, if it may be used now. Raises NotFound if it is unknown, FailedPrecondition if it was used or has expired."""
    if code is None:
        raise NotFound("code: this code was not issued here: check it, or ask the police for another one")
    if code.used_ms is not None:
        raise FailedPrecondition("code: was used or replaced already: ask the police for another one", code="CODE_USED")
    if code.expires_ms <= now_ms:
        raise FailedPrecondition("code: has expired: ask the police for another one", code="CODE_EXPIRED")
    return code
