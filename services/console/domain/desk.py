"""What a desk can answer to a destination of its own leg, and what its forms say. Pure.

A form carries what was seen when its page was made: which offer, and which state. The leg refuses it where either is another by now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.console.domain.board import OFFERS, ON_THE_WAY, Assignment

WAY = ("ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED")
"""How what was taken goes on, one step after the other."""
CAN_BE_REFUSED = OFFERS | {"ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE"}
"""Who is there sees it through."""
CAN_BE_CLOSED = ON_THE_WAY | {"STOOD_DOWN"}
SEEN = tuple(sorted(CAN_BE_REFUSED | CAN_BE_CLOSED))
"""States in which a page has a form."""
CAUSES = (
    *("BREACH_CONFIRMED", "NOBODY_FOUND", "FALSE_POSITION", "EQUIPMENT", "AUTHORISED", "EXERCISE"),
    "OTHER",
)
MAX_REASON, MAX_NOTE = 200, 500
"""Characters."""
ACTS = ("acknowledge", "reject", "progress", "close")
TAKE, REJECT, PROGRESS, CLOSE = ACTS


@dataclass(frozen=True, slots=True)
class Choices:
    """What can be answered in a state."""

    take: bool = False
    reject: bool = False
    next_state: str = ""
    """The step that comes next; empty where there is none."""
    close: bool = False

    @property
    def any(self) -> bool:
        """Whether there is anything to answer."""
        return self.take or self.reject or bool(self.next_state) or self.close


@dataclass(frozen=True, slots=True)
class DeskAnswer:
    """What a form says. Fields that its act has no use for are empty."""

    act: str
    """One of ACTS."""
    assignment_id: str
    offer: int
    """Number of the offer that was seen, from 1."""
    seen: str
    """The state that was seen."""
    state: str = ""
    """The step that the unit has made."""
    reason: str = ""
    cause: str = ""
    note: str = ""


class BadField(Exception):
    """A field of a form isn't such as it must be."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why
        """`why` is one of missing, too_long, unreadable."""


def choices(assignment: Assignment) -> Choices:
    """What the desk whose destination it is can answer now."""
    state = assignment.state
    later = WAY[WAY.index(state) + 1 :] if state in WAY else ()
    return Choices(
        take=state in OFFERS,
        reject=state in CAN_BE_REFUSED,
        next_state=later[0] if later else "",
        close=state in CAN_BE_CLOSED,
    )


def read(act: str, form: Mapping[str, str]) -> DeskAnswer:
    """What a form says. Raises BadField."""
    try:
        assignment_id = fields.required_id("assignment", form.get("assignment", ""))
    except InvalidField:
        raise BadField("assignment", "unreadable" if form.get("assignment") else "missing") from None
    answer = DeskAnswer(act, assignment_id, _offer(form.get("offer", "")), _one_of("seen", form, SEEN))
    if act == PROGRESS:
        return replace(answer, state=_one_of("state", form, WAY[1:]))
    if act == REJECT:
        return replace(answer, reason=_text("reason", form, MAX_REASON, needed=True))
    if act == CLOSE:
        cause = _one_of("cause", form, CAUSES)
        return replace(answer, cause=cause, note=_text("note", form, MAX_NOTE, needed=cause == "OTHER"))
    return answer


def _offer(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and 0 < int(text) < 1 << 32):
        raise BadField("offer", "unreadable" if text else "missing")
    return int(text)


def _one_of(field: str, form: Mapping[str, str], known: tuple[str, ...]) -> str:
    value = form.get(field, "")
    if value not in known:
        raise BadField(field, "unreadable" if value else "missing")
    return value


def _text(field: str, form: Mapping[str, str], most: int, *, needed: bool) -> str:
    text = form.get(field, "").strip()
    if needed and not text:
        raise BadField(field, "missing")
    if len(text) > most:
        raise BadField(field, "too_long")
    if not text.isprintable():
        raise BadField(field, "unreadable")
    return text
