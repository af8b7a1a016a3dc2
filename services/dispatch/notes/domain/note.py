"""A note or a call that a desk records in an incident. Pure. It is an event of the chain, so nobody changes or removes it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class NoteKind(IntEnum):
    """Kind of a note; numbers of tandem.dispatch.v1.NoteKind."""

    NOTE = 1
    CALLED_WEARER = 2
    CALLED_PROTECTED_PERSON = 3
    CALLED_OTHER_DESK = 4
    CALLED_UNIT = 5
    CALLED_OTHER = 6


class NotedResult(IntEnum):
    """Result of a call; numbers of tandem.dispatch.v1.NotedResult."""

    UNSPECIFIED = 0
    NOTED_SPOKEN = 1
    NOTED_NO_ANSWER = 2


@dataclass(frozen=True, slots=True)
class NoteAdded:
    """The desk wrote a note. It changes no state and no deadline."""

    at_ms: int
    assignment_id: str
    """The assignment whose step publishes the note: the first of the incident."""
    note_id: str
    by: str
    """SPIFFE id of the writer."""
    kind: NoteKind
    result: NotedResult
    text: str
    kept: bool
    """Whether the note stays with the leg."""
