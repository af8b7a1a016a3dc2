"""The live page of a desk or a reviewer with its streams, and its chosen incident: notes, tracks, rings, units to send, and names.

Each call goes to the user's own leg under the user's name. That leg doesn't know another leg's incidents.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import grpc.aio
from aiohttp import web

from services.client.calls import call_once
from services.common import fields
from services.common.errors import InvalidField
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, codes_for
from services.console import translate
from services.console.domain import desk, units
from services.console.domain.desk import BadField, read_note
from services.console.domain.people import ALL_ROLES, DESKS, RECORD_CLERKS, VIEWERS, Role
from services.console.live.feed import Feed
from services.console.mesh import MeshClient
from services.console.pages import assets, refusals
from services.console.pages.guard import Ask, RouteGuard, see_other
from services.console.pages.live_texts import LIVE_SHORTCUTS
from services.console.pages.refusals import PageRefusal, answer_refusal
from services.console.review import views
from services.console.review.views import IncidentPages, id_of, note_item, read_notes, wants_json
from services.console.settings import ConsoleSettings
from tandem.dispatch.v1 import dispatch_pb2, notes_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import disclosure_pb2, parties_pb2, registry_pb2

READ_NAMES, ADD_NOTE = "names", "note"
"""Acts that can be refused."""


DISTURBED = (
    "SILENT",
    "JAMMED",
    "DEVICE_OFF",
    "TAMPERED",
    "PROTECTED_DEVICE_LOST",
    "IMPLAUSIBLE",
    "LOW_BATTERY",
    "PHONE_LOCATION_OFF",
    "SPOOFING_SUSPECTED",
    "TAG_REMOVED",
)
"""Kinds of alerts that say that a device is silent or disturbed."""


class LivePages:
    """The live page with its streams of changes, the bar of open incidents, and the alerts of disturbed devices."""

    def __init__(
        self, settings: ConsoleSettings, guard: RouteGuard, mesh: MeshClient, *, feeds: Mapping[Role, Feed]
    ) -> None:
        self._settings, self._guard = settings, guard
        self._mesh, self._feeds = mesh, feeds

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        guard = self._guard
        return [
            guard.get("/", ALL_ROLES, self.live),
            guard.get("/stream", VIEWERS, self.stream),
            guard.get("/stream/bar", DESKS, self.bar_stream),
            guard.get("/devices", ALL_ROLES - RECORD_CLERKS, self.devices),
        ]

    async def live(self, ask: Ask) -> web.StreamResponse:
        """Shows the live page; operators are sent to the devices."""
        if ask.user.role not in VIEWERS:
            return see_other("/records" if ask.user.role in RECORD_CLERKS else "/devices")
        page = {
            **assets.island(ask, self._settings.tiles),
            "leg": ask.user.role.leg if ask.user.role in DESKS else "",
            "name": ask.user.name,
            "streets": self._settings.streets,
            "streetsAttribution": self._settings.streets_attribution,
        }
        return assets.page(
            ask,
            "live.html",
            page=page,
            bases=codes_for(RecordKind.ORDER),
            causes=desk.CAUSES,
            max_reason=desk.MAX_REASON,
            max_note=desk.MAX_NOTE,
            max_unit_name=desk.MAX_UNIT_NAME,
            note_kinds=desk.NOTE_KINDS,
            kept_kinds=desk.KEPT_KINDS,
            noted_results=desk.NOTED_RESULTS,
            shortcuts=LIVE_SHORTCUTS,
        )

    async def stream(self, ask: Ask) -> web.StreamResponse:
        """Sends the live page's changes as server-sent events. A browser that reconnects names the last event that it saw."""
        feed = self._feeds[ask.user.role]
        with feed.viewed():
            return await self._send_events(ask, feed.changes(ask.request.headers.get("Last-Event-ID", "")))

    async def bar_stream(self, ask: Ask) -> web.StreamResponse:
        """Sends the bar of open incidents, which all other pages of a desk show, as server-sent events."""
        # Somebody else may have signed in since the page was opened: its bar must not become another user's.
        if ask.request.query.get("user") != assets.bar_user(ask):
            raise web.HTTPForbidden(text="403: another user has signed in since: load the page again")
        feed = self._feeds[ask.user.role]
        with feed.bar_viewed():
            return await self._send_events(ask, (("", bar) async for bar in feed.bars()))

    async def _send_events(self, ask: Ask, events: AsyncIterator[tuple[str, dict[str, Any]]]) -> web.StreamResponse:
        """Sends messages with their ids until the session is over."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        self._guard.protect(response)
        await response.prepare(ask.request)
        async for id_, message in events:
            if self._guard.is_over(ask.session):
                await response.write(b"event: ended\ndata:\n\n")
                break
            text = json.dumps(message, separators=(",", ":"))
            name = f"id: {id_}\n" if id_ else ""
            await response.write(f"{name}data: {text}\n\n".encode())
        return response

    async def devices(self, ask: Ask) -> web.StreamResponse:
        """Shows refused reports to operators, and alerts of silent and disturbed devices to the other roles."""
        refused: list[dict[str, Any]] | None = None
        if ask.user.role is Role.OPERATOR:
            answer = await call_once(
                self._mesh.ingest.ListQuarantine, ingest_pb2.ListQuarantineRequest(), self._mesh.identity(ask.user)
            )
            refused = [
                {
                    "device": entry.device_id,
                    "sender": entry.sender,
                    "code": ingest_pb2.RefusalCode.Name(entry.code),
                    "count": entry.count,
                    "last": translate.moment(entry, "last"),
                }
                for entry in answer.quarantined
            ]
        feed = self._feeds.get(ask.user.role)
        notices = [alert for alert in feed.alerts() if alert["kind"] in DISTURBED] if feed else None
        return assets.page(ask, "devices.html", refused=refused, notices=notices)


class IncidentCards:
    """Endpoints of the chosen incident."""

    def __init__(
        self, guard: RouteGuard, mesh: MeshClient, feeds: Mapping[Role, Feed], *, incidents: IncidentPages
    ) -> None:
        self._guard = guard
        self._mesh = mesh
        self._feeds = feeds
        self._incidents = incidents

    def routes(self) -> list[web.RouteDef]:
        """Makes the routes."""
        guard = self._guard
        return [
            guard.get("/incidents/{id}/card", VIEWERS, self.card),
            guard.get("/incidents/{id}/candidates", DESKS, self.candidates),
            guard.post("/incidents/{id}/names", DESKS, self.names),
            guard.post("/incidents/{id}/notes", DESKS, self.add_note),
        ]

    async def card(self, ask: Ask) -> web.StreamResponse:
        """Sends the notes, the tracks and the rings of an incident of the user's leg."""
        incident_id = id_of(ask)
        try:
            notes = await read_notes(self._mesh, ask, incident_id)
        except grpc.aio.AioRpcError as error:
            return _refused(ask, refusals.of_leg(error, ADD_NOTE, {}))
        around = self._feeds[ask.user.role].around(incident_id)
        return web.json_response({**around, "notes": notes})

    async def candidates(self, ask: Ask) -> web.StreamResponse:
        """Sends the units that can go to a destination of the incident, named by `assignment`. Raises HTTPBadRequest, HTTPNotFound."""
        incident_id = id_of(ask)
        try:
            assignment_id = fields.required_id("assignment", ask.request.query.get("assignment", ""))
        except InvalidField as error:
            raise web.HTTPBadRequest(text=f"400: {error} (example: assignment=0f3a-1)") from None
        try:
            listed = await views.read_candidates(self._mesh, ask, assignment_id)
        except grpc.aio.AioRpcError as error:
            return _refused(ask, refusals.of_leg(error, desk.SEND, {}))
        if listed.assignment.incident_id != incident_id:
            raise web.HTTPNotFound(text="404: assignment: is none of this incident")
        open_ = desk.choices(listed.assignment).send
        return web.json_response({**units.candidates_as_json(listed), "open": open_})

    async def names(self, ask: Ask) -> web.StreamResponse:
        """Sends the names behind the orders of an open incident. Each order read is one row of the ledger."""
        incident_id = id_of(ask)
        metadata = self._mesh.identity(ask.user)
        try:
            listed = await call_once(
                self._mesh.leg_of(ask.user.role).dispatch.ListIncidents,
                dispatch_pb2.ListIncidentsRequest(incident_id=incident_id),
                metadata,
            )
            if not listed.incidents:
                return _refused(ask, answer_refusal(404, "answer_404", act=READ_NAMES))
            if listed.incidents[0].HasField("ended_at"):
                return _refused(ask, answer_refusal(409, "names_ended", act=READ_NAMES))
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
        read = await call_once(
            self._mesh.order_people.ReadParties,
            parties_pb2.ReadPartiesRequest(order_id=order_id, grounds=grounds),
            self._mesh.identity(ask.user),
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
        """Adds a note to the chain of the user's leg. The live page's script gets the note, and a form the page of the incident."""
        incident_id = id_of(ask)
        try:
            note = read_note(ask.form)
            request = notes_pb2.AddNoteRequest(
                incident_id=incident_id,
                note_key=note.key,
                kind=notes_pb2.NoteKind.Value(note.kind),
                result=notes_pb2.NotedResult.Value(note.result or "NOTED_RESULT_UNSPECIFIED"),
                text=note.text,
                kept=note.kept,  # None leaves it to the leg, by the kind of the note
            )
            answer = await call_once(
                self._mesh.leg_of(ask.user.role).notes.AddNote, request, self._mesh.identity(ask.user)
            )
        except BadField as error:
            return await self._note_refused(ask, refusals.of_field(error, ADD_NOTE, ask.form))
        except grpc.aio.AioRpcError as error:
            logger().info("note_refused", incident_id=incident_id, code=error.code().name)
            return await self._note_refused(ask, refusals.of_leg(error, ADD_NOTE, ask.form))
        if wants_json(ask):
            return web.json_response(note_item(answer.note))
        return see_other(f"/incidents/{incident_id}#h-notes")

    async def _note_refused(self, ask: Ask, refusal: PageRefusal) -> web.StreamResponse:
        return _refused(ask, refusal) if wants_json(ask) else await self._incidents.refused(ask, refusal)


def _refused(ask: Ask, refusal: PageRefusal) -> web.StreamResponse:
    return web.Response(status=refusal.status, text=refusal.words(ask.texts))


def _party(party: parties_pb2.Party) -> dict[str, str]:
    return {
        "id": party.person_id,
        "name": party.name,
        "birth": party.birth_date,
        "sex": registry_pb2.Sex.Name(party.sex).removeprefix("SEX_") if party.sex else "",
        "phone": party.phone,
    }
