"""Answers of a desk to the destinations of its own leg, and the forms for them. Pure.

A form carries the offer and the state that its page showed. The leg refuses an answer if either has changed since.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.console.domain.board import OFFERS, ON_THE_WAY, AssignmentCard

PROGRESSION = ("ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE", "ON_SCENE", "APPREHENDED")
"""States after an acknowledgement, one step after the other."""
CAN_BE_REFUSED = OFFERS | {"ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE"}
"""States in which a desk can refuse. A unit on the scene can't."""
CAN_BE_CLOSED = ON_THE_WAY | {"STOOD_DOWN"}
SEEN = tuple(sorted(CAN_BE_REFUSED | CAN_BE_CLOSED))
"""States in which a page shows forms for an answer."""
CAUSES = (
    *("BREACH_CONFIRMED", "NOBODY_FOUND", "FALSE_POSITION", "EQUIPMENT", "AUTHORISED", "EXERCISE"),
    "OTHER",
)
MAX_REASON, MAX_NOTE = 200, 500
"""Maximum lengths of texts, in characters."""
ACTS = ("acknowledge", "reject", "progress", "close")
ACKNOWLEDGE, REJECT, PROGRESS, CLOSE = ACTS


@dataclass(frozen=True, slots=True)
class Choices:
    """Answers that a state allows."""

    acknowledge: bool = False
    reject: bool = False
    next_state: str = ""
    """Next state of the progression; empty if there is none."""
    close: bool = False

    @property
    def any(self) -> bool:
        """Whether the state allows any answer."""
        return self.acknowledge or self.reject or bool(self.next_state) or self.close


@dataclass(frozen=True, slots=True)
class DeskAnswer:
    """Answer of a desk, read from a form. Fields that its act doesn't use are empty."""

    act: str
    """One of ACTS."""
    assignment_id: str
    offer: int
    """Number of the offer that the page showed, from 1."""
    seen: str
    """State that the page showed."""
    state: str = ""
    """New state of the unit, for PROGRESS."""
    reason: str = ""
    cause: str = ""
    note: str = ""


class BadField(Exception):
    """A field of a form is wrong."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why
        """Code of the reason: missing, too_long or unreadable."""


def choices(assignment: AssignmentCard) -> Choices:
    """Returns the answers that the destination's own desk can give now."""
    state = assignment.state
    later = PROGRESSION[PROGRESSION.index(state) + 1 :] if state in PROGRESSION else ()
    return Choices(
        acknowledge=state in OFFERS,
        reject=state in CAN_BE_REFUSED,
        next_state=later[0] if later else "",
        close=state in CAN_BE_CLOSED,
    )


def read(act: str, form: Mapping[str, str]) -> DeskAnswer:
    """Reads an answer from a form. Raises BadField."""
    try:
        assignment_id = fields.required_id("assignment", form.get("assignment", ""))
    except InvalidField:
        raise BadField("assignment", "unreadable" if form.get("assignment") else "missing") from None
    answer = DeskAnswer(
        act=act, assignment_id=assignment_id, offer=_offer(form.get("offer", "")), seen=_one_of("seen", form, SEEN)
    )
    if act == PROGRESS:
        return replace(answer, state=_one_of("state", form, PROGRESSION[1:]))
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


def _text(field: str, form: Mapping[str, str], max_chars: int, *, needed: bool) -> str:
    text = form.get(field, "").strip()
    if needed and not text:
        raise BadField(field, "missing")
    if len(text) > max_chars:
        raise BadField(field, "too_long")
    if not text.isprintable():
        raise BadField(field, "unreadable")
    return text
