"""Translation of notes between messages, the domain, and rows. Parsing validates."""

from __future__ import annotations

from services.common import fields, times
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.rows import NoteRow
from services.dispatch.notes.domain.decisions import AddNote
from services.dispatch.notes.domain.note import NoteAdded, NotedResult, NoteKind
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2, notes_pb2

TEXT_MAX_CHARS = 500
_NEED_TEXT = (NoteKind.NOTE, NoteKind.CALLED_OTHER)


def command(request: notes_pb2.AddNoteRequest, by: str) -> AddNote:
    """The validated command of a request. Raises InvalidField."""
    if request.kind not in {int(kind) for kind in NoteKind}:
        raise InvalidField("kind", "is missing or unknown (example: NOTE)")
    kind = NoteKind(request.kind)
    if request.result not in {int(result) for result in NotedResult}:
        raise InvalidField("result", "is unknown (example: NOTED_SPOKEN)")
    result = NotedResult(request.result)
    if (kind is NoteKind.NOTE) is not (result is NotedResult.UNSPECIFIED):
        needed = "must be unspecified for NOTE" if result else "is missing: say what came of the call"
        raise InvalidField("result", f"{needed} (example of a call: NOTED_SPOKEN)")
    text = request.text.strip()
    if not text and kind in _NEED_TEXT:
        raise InvalidField("text", f"is missing: {kind.name} needs one")
    if len(text) > TEXT_MAX_CHARS:
        raise InvalidField("text", f"must be at most {TEXT_MAX_CHARS} characters")
    if not text.isprintable():
        raise InvalidField("text", "must be one line of printable characters")
    return AddNote(
        by=by,
        note_key=fields.required_id("note_key", request.note_key),
        kind=kind,
        result=result,
        text=text,
        kept=request.kept,
    )


def message(incident_id: str, leg: Leg, event: NoteAdded) -> notes_pb2.IncidentNote:
    """The message of a note."""
    return notes_pb2.IncidentNote(
        note_id=event.note_id,
        incident_id=incident_id,
        leg=alert_pb2.Leg.Value(leg.name),
        at=times.to_timestamp(event.at_ms),
        by=event.by,
        kind=notes_pb2.NoteKind.ValueType(event.kind),
        result=notes_pb2.NotedResult.ValueType(event.result),
        text=event.text,
        kept=event.kept,
    )


def row(note: notes_pb2.IncidentNote) -> NoteRow:
    """The row of a note."""
    return NoteRow(
        note_id=note.note_id,
        incident_id=note.incident_id,
        at_ms=times.from_timestamp(note.at),
        payload=note.SerializeToString(),
    )


def shared(step: dispatch_pb2.Step, leg: Leg) -> NoteRow | None:
    """The row of the note in another leg's step; None without one, and for a leg whose desk reads no notes. Raises InvalidField."""
    if not step.HasField("note") or not leg.policy.is_staffed:
        return None
    note = step.note
    if note.kept or note.incident_id != step.assignment.incident_id or note.leg != step.assignment.leg:
        raise InvalidField("note", "isn't a shared note of the step's incident and leg")
    fields.required_id("note.note_id", note.note_id)
    if len(note.text) > TEXT_MAX_CHARS:
        raise InvalidField("note.text", f"must be at most {TEXT_MAX_CHARS} characters")
    return row(note)
