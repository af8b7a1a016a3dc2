"""What a desk enters on the live page: answers to the destinations of its own leg, notes and calls, and the forms for them. Pure.

A form carries the offer and the state that its page showed. The leg refuses an answer if either has changed since. A form that sends a
unit carries the newest offer to any unit, since several may be asked at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.common import fields
from services.common.errors import InvalidField
from services.console.domain.board import ACCEPTED_BY_UNIT, OFFERS, ON_THE_WAY, AssignmentCard

DISPATCHED, EN_ROUTE = "DISPATCHED", "EN_ROUTE"
PROGRESSION = (DISPATCHED, EN_ROUTE, "ON_SCENE", "APPREHENDED")
"""States of a unit that goes, one step after the other. No form reports the first: a desk sends a unit."""
CAN_BE_REFUSED = OFFERS | {"ACKNOWLEDGED", "DISPATCHED", "EN_ROUTE"}
"""States in which a desk can refuse. A unit on the scene can't."""
CAN_BE_SENT = OFFERS | {"ACKNOWLEDGED"}
"""States in which a desk can send a unit, unless one has accepted."""
CAN_BE_CLOSED = ON_THE_WAY | {"STOOD_DOWN"}
SEEN = tuple(sorted(CAN_BE_REFUSED | CAN_BE_CLOSED))
"""States in which a page shows forms for an answer."""
CAUSES = (
    *("BREACH_CONFIRMED", "NOBODY_FOUND", "FALSE_POSITION", "EQUIPMENT", "AUTHORISED", "EXERCISE"),
    "OTHER",
)
MAX_REASON, MAX_NOTE = 200, 500
MAX_UNIT_NAME = 60
"""Maximum lengths of texts, in characters."""
ACTS = ("acknowledge", "reject", "progress", "close", "send", "radio")
ACKNOWLEDGE, REJECT, PROGRESS, CLOSE, SEND, RADIO = ACTS


@dataclass(frozen=True, slots=True)
class Choices:
    """Answers that a state allows."""

    acknowledge: bool = False
    reject: bool = False
    send: bool = False
    """Whether the desk can ask a unit, or record one that it sent by radio."""
    next_state: str = ""
    """Next state of the progression; empty if there is none."""
    close: bool = False

    @property
    def any(self) -> bool:
        """Whether the state allows any answer."""
        return self.acknowledge or self.reject or self.send or bool(self.next_state) or self.close


@dataclass(frozen=True, slots=True)
class DeskAnswer:
    """Answer of a desk, read from a form. Fields that its act doesn't use are empty."""

    act: str
    """One of ACTS."""
    assignment_id: str
    offer: int
    """Number of the offer that the page showed, from 1. For SEND and RADIO, the newest offer to any unit or desk, or 0."""
    seen: str = ""
    """State that the page showed; empty for SEND and RADIO."""
    state: str = ""
    """New state of the unit, for PROGRESS."""
    reason: str = ""
    cause: str = ""
    note: str = ""
    unit: str = ""
    """Unit of the roster, or the name of the unit that was sent by radio."""


class BadField(Exception):
    """A field of a form is wrong."""

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field, self.why = field, why
        """Code of the reason: missing, too_long or unreadable."""


def choices(assignment: AssignmentCard) -> Choices:
    """Returns the answers that the destination's own desk can give now."""
    state = assignment.state
    # A unit that has accepted was ordered to go by that: the next report is that it is on its way.
    at = DISPATCHED if state == "ACKNOWLEDGED" and assignment.unit_id else state
    later = PROGRESSION[PROGRESSION.index(at) + 1 :] if at in PROGRESSION else ()
    return Choices(
        acknowledge=state in OFFERS,
        reject=state in CAN_BE_REFUSED,
        send=state in CAN_BE_SENT and not assignment.unit_id and not assignment.is_contact,
        next_state=later[0] if later else "",
        close=state in CAN_BE_CLOSED,
    )


class SentUnit(NamedTuple):
    """Unit that was sent to a destination since a page was shown."""

    how: str
    """RADIO, ACCEPTED (the unit has the assignment) or ASKED."""
    unit: str
    by: str
    """Name of the officer; empty if the leg asked the unit by itself."""
    at_ms: int


def sent_since(assignment: AssignmentCard, offer: int) -> SentUnit | None:
    """Returns the unit that has the assignment, else the one that an officer asked last after a page's newest offer; else None."""
    if radio := assignment.radio:
        return SentUnit(how="RADIO", unit=radio.unit_name, by=radio.by, at_ms=radio.at_ms)
    offers = assignment.unit_offers
    accepted = [("ACCEPTED", asked) for asked in offers if asked.state == ACCEPTED_BY_UNIT]
    newer = [("ASKED", asked) for asked in reversed(offers) if asked.number > offer and asked.asked_by]
    for how, asked in accepted + newer:
        return SentUnit(how=how, unit=asked.unit_id, by=asked.asked_by, at_ms=asked.asked_ms)
    return None


def read_answer(act: str, form: Mapping[str, str]) -> DeskAnswer:
    """Reads an answer from a form. Raises BadField."""
    try:
        assignment_id = fields.required_id("assignment", form.get("assignment", ""))
    except InvalidField:
        raise BadField("assignment", "unreadable" if form.get("assignment") else "missing") from None
    if act in (SEND, RADIO):
        offer = _offer(form.get("offer", ""), least=0)
        unit = _unit(form) if act == SEND else _unit_name(form)
        return DeskAnswer(act=act, assignment_id=assignment_id, offer=offer, unit=unit)
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


def _unit(form: Mapping[str, str]) -> str:
    try:
        return fields.required_id("unit", form.get("unit", ""))
    except InvalidField:
        raise BadField("unit", "unreadable" if form.get("unit") else "missing") from None


def _unit_name(form: Mapping[str, str]) -> str:
    return _text("unit_name", form, MAX_UNIT_NAME, needed=True)


def _offer(text: str, least: int = 1) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10 and least <= int(text) < 1 << 32):
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


NOTE_KINDS = ("NOTE", "CALLED_WEARER", "CALLED_PROTECTED_PERSON", "CALLED_OTHER_DESK", "CALLED_UNIT", "CALLED_OTHER")
"""Kinds of notes; all but the first are calls."""
NOTED_RESULTS = ("NOTED_SPOKEN", "NOTED_NO_ANSWER")
"""What came of a call."""
_KINDS_WITH_TEXT = ("NOTE", "CALLED_OTHER")
KEPT_KINDS = frozenset({"CALLED_PROTECTED_PERSON"})
"""Kinds of notes that stay with the own agency unless the desk shares them: what she says on the telephone may tell where she is."""
_KEPT = {"": None, "yes": False, "no": True}
"""Whether a note is kept, by the form's field `share`."""


@dataclass(frozen=True, slots=True)
class EnteredNote:
    """A note from the form."""

    key: str
    """Id that the page chose, so that the same form sent twice is one note."""
    kind: str
    result: str
    """One of NOTED_RESULTS for a call; else empty."""
    text: str
    kept: bool | None
    """Whether the note stays with the own agency; None if its kind decides, as in KEPT_KINDS."""


def read_note(form: Mapping[str, str]) -> EnteredNote:
    """Reads a note from the form. Raises BadField."""
    kind = form.get("kind", "")
    result = form.get("result", "")
    text = form.get("text", "").strip()
    try:
        key = fields.required_id("key", form.get("key", ""))
    except InvalidField:
        raise BadField("key", "unreadable" if form.get("key") else "missing") from None
    if kind not in NOTE_KINDS:
        raise BadField("kind", "unreadable" if kind else "missing")
    if kind == "NOTE":
        result = ""
    elif result not in NOTED_RESULTS:
        raise BadField("result", "unreadable" if result else "missing")
    if not text and kind in _KINDS_WITH_TEXT:
        raise BadField("text", "missing")
    share = form.get("share", "")
    if share not in _KEPT:
        raise BadField("share", "unreadable")
    if len(text) > MAX_NOTE:
        raise BadField("text", "too_long")
    if not text.isprintable():
        raise BadField("text", "unreadable")
    return EnteredNote(key=key, kind=kind, result=result, text=text, kept=_KEPT[share])
