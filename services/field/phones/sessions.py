"""The cookie of an enrolled phone: encrypted, bound to the person's id, the device and the phone's own key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from services.field.cookies import SealedCookies

COOKIE = "app"
LASTS_S = 180 * 86_400
"""Lifetime of the cookie, seconds. Then the phone is enrolled again."""


@dataclass(frozen=True, slots=True)
class PhoneSession:
    """An enrolled phone."""

    device_id: str
    person_id: str
    token: str
    """Token of the device. Only field and ingest see it, and the phone has it in encrypted form."""
    key: str
    """Public key of the phone, base64url of the uncompressed point on P-256. Its private key never leaves the phone."""


class PhoneCookies:
    """Seals and opens cookies. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealed = SealedCookies(keys, LASTS_S)

    def seal(self, session: PhoneSession) -> str:
        """The value of a phone's cookie."""
        return self._sealed.seal(asdict(session))

    def open(self, cookie: str) -> PhoneSession | None:
        """The phone of a cookie; None if the cookie is none of ours or too old."""
        content = self._sealed.open(cookie)
        try:
            return None if content is None else PhoneSession(**content)
        except TypeError:
            return None
