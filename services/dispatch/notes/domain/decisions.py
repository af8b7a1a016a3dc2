"""Decision to add a desk's note to an incident. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from services.common import ids
from services.common.rpc.errors import FailedPrecondition, NotFound
from services.dispatch.domain.enums import Exercise
from services.dispatch.domain.incident import Incident
from services.dispatch.notes.domain.note import NoteAdded, NotedResult, NoteKind

MAX_INCIDENT_NOTES = 500
"""Maximum number of notes of one leg in an incident."""
TOO_MANY_NOTES = "TOO_MANY_NOTES"
"""Machine-readable reason for refusing a note."""


@dataclass(frozen=True, slots=True)
class AddNote:
    """Command: add a note to an incident."""

    by: str
    """SPIFFE id of the caller."""
    note_key: str
    """Id that the caller chose. A second note with the same key isn't added."""
    kind: NoteKind
    result: NotedResult
    text: str
    kept: bool


def note_id(incident: Incident, note_key: str) -> str:
    """Id of a note of an incident."""
    return ids.hash_id("note", incident.incident_id, incident.leg, note_key)


def decide(incident: Incident, command: AddNote, now_ms: int) -> Iterator[NoteAdded]:
    """Event that a note leads to; none if the incident has the note. Raises NotFound or FailedPrecondition."""
    # A canary has no desk that could write about it.
    first = next(iter(incident.assignments), "") if incident.exercise is not Exercise.CANARY else ""
    if not first:
        raise NotFound(f"no incident {incident.incident_id} in the {incident.leg} leg")
    id_ = note_id(incident, command.note_key)
    if id_ in incident.note_ids:
        return
    if len(incident.note_ids) >= MAX_INCIDENT_NOTES:
        raise FailedPrecondition(
            f"the incident has {MAX_INCIDENT_NOTES} notes of this leg: it takes no more", TOO_MANY_NOTES
        )
    yield NoteAdded(
        at_ms=now_ms,
        assignment_id=first,
        note_id=id_,
        by=command.by,
        kind=command.kind,
        result=command.result,
        text=command.text,
        kept=command.kept,
    )
