"""The chosen incident on the live page: its notes, tracks and rings, and the names of its people by disclosure.

Each call goes to the user's own leg under the user's name. That leg doesn't know another leg's incidents.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio
from aiohttp import web

from services.common import times
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate
from services.console.domain.desk import BadField
from services.console.domain.notes import read_note
from services.console.domain.people import DESKS, VIEWERS, Role
from services.console.guard import Ask, RouteGuard
from services.console.live.feed import Feed
from services.console.mesh import MeshClient
from services.console.review import refusals
from services.console.review.refusals import AnswerRefusal
from services.console.review.views import id_of
from tandem.dispatch.v1 import dispatch_pb2, notes_pb2
from tandem.registry.v1 import disclosure_pb2, parties_pb2, registry_pb2

READ_NAMES, ADD_NOTE = "names", "note"
"""Acts that can be refused."""


def order_bases() -> list[str]:
    """Returns the codes of the articles that allow to read who the people of an order are."""
    return codes_for(RecordKind.ORDER)


class IncidentCards:
    """Endpoints of the chosen incident."""

    def __init__(self, guard: RouteGuard, mesh: MeshClient, feeds: Mapping[Role, Feed]) -> None:
        self._guard, self._mesh, self._feeds = guard, mesh, feeds

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        guard = self._guard
        return [
            guard.get("/incidents/{id}/card", VIEWERS, self.card),
            guard.post("/incidents/{id}/names", DESKS, self.names),
            guard.post("/incidents/{id}/notes", DESKS, self.add_note),
        ]

    async def card(self, ask: Ask) -> web.StreamResponse:
        """Sends the notes, the tracks and the rings of an incident of the user's leg."""
        incident_id = id_of(ask)
        try:
            answer = await self._mesh.leg_of(ask.user.role).notes.ListNotes(
                notes_pb2.ListNotesRequest(incident_id=incident_id),
                metadata=self._mesh.identity(ask.user),
                timeout=UNARY_DEADLINE_S,
            )
        except grpc.aio.AioRpcError as error:
            return _refused(ask, refusals.of_leg(error, ADD_NOTE, {}))
        around = self._feeds[ask.user.role].around(incident_id)
        return web.json_response({**around, "notes": [_note(note) for note in answer.notes]})

    async def names(self, ask: Ask) -> web.StreamResponse:
        """Sends the names behind the orders of an open incident. Each order read is one row of the ledger."""
        incident_id = id_of(ask)
        metadata = self._mesh.identity(ask.user)
        try:
            listed = await self._mesh.leg_of(ask.user.role).dispatch.ListIncidents(
                dispatch_pb2.ListIncidentsRequest(incident_id=incident_id), metadata=metadata, timeout=UNARY_DEADLINE_S
            )
            if not listed.incidents:
                return _refused(ask, AnswerRefusal(404, "answer_404", act=READ_NAMES))
            if listed.incidents[0].HasField("ended_at"):
                return _refused(ask, AnswerRefusal(409, "names_ended", act=READ_NAMES))
            orders = [await self._order(ask, order_id, incident_id) for order_id in listed.incidents[0].order_ids]
        except grpc.aio.AioRpcError as error:
            logger().info("names_refused", incident_id=incident_id, code=error.code().name)
            return _refused(ask, refusals.of_leg(error, READ_NAMES, {}))
        return web.json_response({"orders": orders})

    async def _order(self, ask: Ask, order_id: str, incident_id: str) -> dict[str, Any]:
        grounds = disclosure_pb2.Grounds(
            legal_basis=ask.form.get("legal_basis", ""),
            purpose=disclosure_pb2.PURPOSE_ENFORCEMENT,
            reference=incident_id,
        )
        read = await self._mesh.order_people.ReadParties(
            parties_pb2.ReadPartiesRequest(order_id=order_id, grounds=grounds),
            metadata=self._mesh.identity(ask.user),
            timeout=UNARY_DEADLINE_S,
        )
        return {
            "id": order_id,
            "article": read.article,
            "respondent": _party(read.respondent),
            "persons": [_party(person) for person in read.protected_persons],
            "rings": list(read.rings_m),
            "disclosure": read.disclosure_id,
        }

    async def add_note(self, ask: Ask) -> web.StreamResponse:
        """Adds a note to the chain of the user's leg."""
        incident_id = id_of(ask)
        try:
            note = read_note(ask.form)
            request = notes_pb2.AddNoteRequest(
                incident_id=incident_id,
                note_key=note.key,
                kind=notes_pb2.NoteKind.Value(note.kind),
                result=notes_pb2.NotedResult.Value(note.result or "NOTED_RESULT_UNSPECIFIED"),
                text=note.text,
                kept=note.kept,
            )
            answer = await self._mesh.leg_of(ask.user.role).notes.AddNote(
                request, metadata=self._mesh.identity(ask.user), timeout=UNARY_DEADLINE_S
            )
        except BadField as error:
            return _refused(ask, refusals.of_field(error, ADD_NOTE, ask.form))
        except grpc.aio.AioRpcError as error:
            logger().info("note_refused", incident_id=incident_id, code=error.code().name)
            return _refused(ask, refusals.of_leg(error, ADD_NOTE, ask.form))
        return web.json_response(_note(answer.note))


def _refused(ask: Ask, refusal: AnswerRefusal) -> web.StreamResponse:
    return web.Response(status=refusal.status, text=refusal.words(ask.texts))


def _note(note: notes_pb2.IncidentNote) -> dict[str, Any]:
    return {
        "id": note.note_id,
        "leg": translate.leg_name(note.leg),
        "at": times.from_timestamp(note.at),
        "by": note.by.rpartition("/")[2],
        "kind": notes_pb2.NoteKind.Name(note.kind),
        "result": notes_pb2.NotedResult.Name(note.result) if note.result else "",
        "text": note.text,
        "kept": note.kept,
    }


def _party(party: parties_pb2.Party) -> dict[str, str]:
    return {
        "id": party.person_id,
        "name": party.name,
        "birth": party.birth_date,
        "sex": registry_pb2.Sex.Name(party.sex).removeprefix("SEX_") if party.sex else "",
        "phone": party.phone,
    }
