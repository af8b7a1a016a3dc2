"""The cookie of a unit's page: encrypted, bound to the unit, its shift and the phone's own key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from services.field.cookies import SealedCookies

COOKIE = "unit"
LASTS_S = 2 * 86_400
"""Longest lifetime of the cookie, seconds. The shift ends it sooner."""
PURPOSE = "unit page"
"""Part of each cookie, so that no other cookie of field opens as one of a unit."""


@dataclass(frozen=True, slots=True)
class UnitSession:
    """A unit's page on a phone."""

    leg: str
    """Leg that the unit belongs to: probation or police."""
    unit_id: str
    token: str
    """Token of the unit's shift. Only field and the leg see it, and the phone has it in encrypted form."""
    key: str
    """Public key of the phone, base64url of the uncompressed point on P-256. Its private key never leaves the phone."""

    @property
    def device_id(self) -> str:
        """Key of the page among those that are woken. No device's id has a slash."""
        return device_id(self.leg, self.unit_id)


def device_id(leg: str, unit_id: str) -> str:
    """Key of a unit's page among those that are woken."""
    return f"unit/{leg}/{unit_id}"


class UnitCookies:
    """Seals and opens the cookies of units' pages. The newest key seals, and all open."""

    def __init__(self, keys: Sequence[bytes]) -> None:
        self._sealed = SealedCookies(keys, LASTS_S)

    def seal(self, session: UnitSession) -> str:
        """The value of a page's cookie."""
        return self._sealed.seal({"purpose": PURPOSE, **asdict(session)})

    def open(self, cookie: str) -> UnitSession | None:
        """The page of a cookie; None if the cookie is none of a unit or too old."""
        content = self._sealed.open(cookie)
        if content is None or content.pop("purpose", "") != PURPOSE:
            return None
        try:
            return UnitSession(**content)
        except TypeError:
            return None
