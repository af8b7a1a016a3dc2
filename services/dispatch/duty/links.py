"""Links by which units sign in to their page, and the tokens of their shifts: validity, and the reasons for a refusal. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.errors import FailedPrecondition, InvalidField, NotFound
from services.dispatch.domain.roster import Unit

DEFAULT_VALID_S = 900
MIN_VALID_S = 60
MAX_VALID_S = 86_400
"""Validity of a link, seconds."""
MAX_SECRET_CHARS = 64
"""Maximum length of a code or token that is looked up. A genuine one has at most 53 characters."""
LINK_USED = "LINK_USED"
LINK_EXPIRED = "LINK_EXPIRED"
SIGN_IN_ENDED = "SIGN_IN_ENDED"
SHIFT_OVER, UNIT_REMOVED = "SHIFT_OVER", "UNIT_REMOVED"
"""Machine-readable reasons for refusing a link or a token."""


@dataclass(frozen=True, slots=True)
class UnitLink:
    """A stored link. Its code isn't stored."""

    sha256: bytes
    unit_id: str
    shift_until_ms: int
    """End of the shift that the link was issued for, exclusive, mesh time."""
    expires_ms: int
    """End of validity, exclusive, mesh time."""
    used_ms: int | None
    """When the link was used, or ended by a newer one, mesh time; None if neither."""
    issued_by: str
    """SPIFFE id of the caller who issued it."""


@dataclass(frozen=True, slots=True)
class UnitSignIn:
    """A stored token of a unit's page. The token itself isn't stored."""

    sha256: bytes
    unit_id: str
    shift_until_ms: int
    """End of the shift, and of the token of a unit without an assignment, exclusive, mesh time."""
    ended_ms: int | None = None
    """When the unit or a newer sign-in ended it, mesh time; None if neither did."""


def valid_for_s(asked_s: int) -> int:
    """Validity of a link, seconds. Raises InvalidField if it is out of bounds."""
    if asked_s and not MIN_VALID_S <= asked_s <= MAX_VALID_S:
        raise InvalidField(
            "valid_for_s", f"must be from {MIN_VALID_S} to {MAX_VALID_S}, or 0 for {DEFAULT_VALID_S} (example: 900)"
        )
    return asked_s or DEFAULT_VALID_S


def check_unit(unit: Unit | None, now_ms: int) -> Unit:
    """The unit, if it may sign in now or get a link. Raises FailedPrecondition if it was removed or its shift is over."""
    if unit is None or unit.removed:
        raise FailedPrecondition("unit_id: this unit was removed from the roster", UNIT_REMOVED)
    if unit.shift_until_ms <= now_ms:
        raise FailedPrecondition("unit_id: the shift of this unit is over: enter its next one first", SHIFT_OVER)
    return unit


def check_link(link: UnitLink | None, now_ms: int) -> UnitLink:
    """The link, if it may be used now. Raises NotFound if it is unknown, FailedPrecondition if it was used or has expired."""
    if link is None:
        raise NotFound("code: this link is unknown here: ask the desk of your unit for another one")
    if link.used_ms is not None:
        raise FailedPrecondition("code: was used or replaced already: ask your desk for another one", LINK_USED)
    if link.shift_until_ms <= now_ms:
        raise FailedPrecondition("code: is of a shift that is over: ask your desk for another one", SHIFT_OVER)
    if link.expires_ms <= now_ms:
        raise FailedPrecondition("code: has expired: ask your desk for another one", LINK_EXPIRED)
    return link


def check_sign_in(
    sign_in: UnitSignIn | None, unit: Unit | None, now_ms: int, *, has_assignment: Callable[[], bool]
) -> Unit:
    """The unit whose page has a token. Raises FailedPrecondition if the token, the shift or the place on the roster has ended.

    A unit that has an assignment at the end of its shift keeps its page until the assignment is over: an officer on the scene must be
    able to call for help.
    """
    if sign_in is None or sign_in.ended_ms is not None:
        raise FailedPrecondition("token: this sign-in has ended: ask the desk for a link", SIGN_IN_ENDED)
    if unit is None or unit.removed:
        raise FailedPrecondition("token: the unit was removed from the roster", UNIT_REMOVED)
    # A desk may end a shift earlier; a later end needs another link.
    if min(sign_in.shift_until_ms, unit.shift_until_ms) <= now_ms and not has_assignment():
        raise FailedPrecondition("token: the shift is over: ask the desk for a link", SHIFT_OVER)
    return unit
