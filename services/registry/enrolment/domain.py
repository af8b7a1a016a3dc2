"""Enrolment codes: their form, their validity, and the reasons why one is refused. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common.rpc.errors import FailedPrecondition, InvalidField, NotFound

ALPHABET = "23456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Characters of a code, without those that are easily misread: 0 O, 1 I L, U."""
CODE_LENGTH = 12
"""Number of characters of a code: 59 bits, so that a guess within the validity is hopeless even for somebody who has the hashes."""
GROUP = 4
DEFAULT_VALID_S, MIN_VALID_S, MAX_VALID_S = 900, 60, 86_400
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


def written(indices: Sequence[int]) -> str:
    """The code of CODE_LENGTH random indices, as people read it: `7KQ2-MXRA-93TD`."""
    text = "".join(ALPHABET[index % len(ALPHABET)] for index in indices)
    return "-".join(text[start : start + GROUP] for start in range(0, len(text), GROUP))


def parse(text: str) -> str:
    """The characters of a code that somebody typed: without spaces and hyphens, in capitals. Raises InvalidField."""
    code = "".join(character for character in text if character not in " -").upper()
    if len(code) != CODE_LENGTH or any(character not in ALPHABET for character in code):
        raise InvalidField(
            "code",
            f"must be {CODE_LENGTH} characters of {ALPHABET[:8]} A-Z without I, L, O and U (example: 7KQ2-MXRA-93TD)",
        )
    return code


def valid_for_s(asked_s: int) -> int:
    """Validity of a code, seconds. Raises InvalidField if it is out of bounds."""
    if asked_s and not MIN_VALID_S <= asked_s <= MAX_VALID_S:
        raise InvalidField("valid_for_s", f"must be from {MIN_VALID_S} to {MAX_VALID_S}, or 0 for {DEFAULT_VALID_S}")
    return asked_s or DEFAULT_VALID_S


def check(code: EnrolmentCode | None, now_ms: int) -> EnrolmentCode:
    """The code, if it may be used now. Raises NotFound if it is unknown, FailedPrecondition if it was used or has expired."""
    if code is None:
        raise NotFound("code: this code was not issued here: check it, or ask the police for another one")
    if code.used_ms is not None:
        raise FailedPrecondition("code: was used or replaced already: ask the police for another one", code="CODE_USED")
    if code.expires_ms <= now_ms:
        raise FailedPrecondition("code: has expired: ask the police for another one", code="CODE_EXPIRED")
    return code
