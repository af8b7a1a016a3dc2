"""gRPC edge of notes: each leg's own desk writes and reads them; reviewers read them."""

from __future__ import annotations

from functools import partial

import sqlalchemy as sa

from services.common import fields
from services.common.rpc import server
from services.common.rpc.errors import NotFound
from services.common.rpc.identity import Role
from services.dispatch.leg import tables
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.change import IncidentCommand
from services.dispatch.leg.service import LegService
from services.dispatch.notes import translate
from services.dispatch.notes.domain.decisions import note_id
from tandem.dispatch.v1 import notes_pb2, notes_pb2_grpc


class NoteApi(notes_pb2_grpc.NoteServiceServicer):
    """NoteService of one leg."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg

    async def AddNote(self, request: notes_pb2.AddNoteRequest, context: Context) -> notes_pb2.AddNoteResponse:
        """Adds a note to the chain, durable on return."""
        admit(self._leg.name)
        incident_id = fields.required_id("incident_id", request.incident_id)
        command = translate.command(request, server.caller().spiffe_id)
        committed = await self._leg.record.handle([IncidentCommand(incident_id, command)], self._leg.now())
        id_ = note_id(committed[incident_id].incident, command.note_key)
        payload = await self._leg.store.transaction(partial(_payload, id_=id_))
        return notes_pb2.AddNoteResponse(note=notes_pb2.IncidentNote.FromString(payload))

    async def ListNotes(self, request: notes_pb2.ListNotesRequest, context: Context) -> notes_pb2.ListNotesResponse:
        """Lists the notes of an incident that this leg has."""
        admit(self._leg.name, Role.ROLE_REVIEWER)
        incident_id = fields.required_id("incident_id", request.incident_id)
        payloads = await self._leg.store.reading_history(partial(_payloads, incident_id=incident_id))
        if payloads is None:
            raise NotFound(f"no incident {incident_id} in the {self._leg.name} leg")
        return notes_pb2.ListNotesResponse(notes=map(notes_pb2.IncidentNote.FromString, payloads))


def _payloads(connection: sa.Connection, *, incident_id: str) -> list[bytes] | None:
    """The notes of an incident, oldest first; None if the leg doesn't have the incident."""
    if connection.scalar(sa.select(sa.true()).where(tables.incidents.c.incident_id == incident_id)) is None:
        return None
    notes = tables.notes.c
    query = sa.select(notes.payload).where(notes.incident_id == incident_id).order_by(notes.at_ms, notes.note_id)
    return list(connection.scalars(query))


def _payload(connection: sa.Connection, *, id_: str) -> bytes:
    """The stored note with this id. Raises NotFound."""
    payload = connection.scalar(sa.select(tables.notes.c.payload).where(tables.notes.c.note_id == id_))
    if payload is None:
        raise NotFound(f"no note {id_}")
    return bytes(payload)
