"""Notes and calls as a desk enters them on the live page. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.console.domain.desk import MAX_NOTE, BadField

NOTE_KINDS = ("NOTE", "CALLED_WEARER", "CALLED_PROTECTED_PERSON", "CALLED_OTHER_DESK", "CALLED_UNIT", "CALLED_OTHER")
"""Kinds of notes; all but the first are calls."""
NOTED_RESULTS = ("NOTED_SPOKEN", "NOTED_NO_ANSWER")
"""What came of a call."""
_NEED_TEXT = ("NOTE", "CALLED_OTHER")


@dataclass(frozen=True, slots=True)
class EnteredNote:
    """A note from the form."""

    key: str
    """Id that the page chose, so that the same form sent twice is one note."""
    kind: str
    result: str
    """One of NOTED_RESULTS for a call; else empty."""
    text: str
    kept: bool
    """Whether the note stays with the own agency."""


def read_note(form: Mapping[str, str]) -> EnteredNote:
    """Reads a note from the form. Raises BadField."""
    kind, result, text = form.get("kind", ""), form.get("result", ""), form.get("text", "").strip()
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
    if not text and kind in _NEED_TEXT:
        raise BadField("text", "missing")
    if len(text) > MAX_NOTE:
        raise BadField("text", "too_long")
    if not text.isprintable():
        raise BadField("text", "unreadable")
    return EnteredNote(key=key, kind=kind, result=result, text=text, kept=form.get("kept") == "yes")
