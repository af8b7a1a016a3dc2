"""gRPC edge of a leg: its incidents, their notes, and its offices and units.

Each leg serves its own desk and refuses the other agency's. Reviewers read the notes, too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any, assert_never

import grpc.aio
import sqlalchemy as sa

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.errors import InvalidField, NotFound, PermissionDenied
from services.common.geometry import great_circle_m
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.dispatch.domain import escalation
from services.dispatch.domain.answers import Close, Progress, Receive, Reject, SendByRadio, SendUnit
from services.dispatch.domain.decisions import note_id
from services.dispatch.domain.leg import Leg
from services.dispatch.domain.roster import Board, Choice, Status, units_on_duty
from services.dispatch.leg import roster, tables, translate
from services.dispatch.leg.change import IncidentCommand
from services.dispatch.leg.feed import is_canary
from services.dispatch.leg.service import DecisionFacts, LegService
from services.dispatch.leg.tables import ListedIncident
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc, notes_pb2, notes_pb2_grpc, roster_pb2, roster_pb2_grpc

PAGE_SIZE = 50
MAX_PAGE_SIZE = 100
"""Maximum number of incidents in a page. A page is a unit of the history's budget, so it must cost little."""
YIELD_INCIDENTS = 10
"""Incidents after which the building of a page yields to the event loop."""
Context = grpc.aio.ServicerContext[Any, Any]


class DispatchApi(dispatch_pb2_grpc.DispatchServiceServicer):
    """DispatchService of one leg."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg

    async def Subscribe(
        self, request: dispatch_pb2.SubscribeRequest, context: Context
    ) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
        """Streams steps to the leg's desk, and steps of canaries to the watch."""
        self._admit(Role.ROLE_WATCH)
        following = self._leg.follow(
            request.after_sequence,
            request.others,
            request.new_only,
            wants=is_canary if _is_watch() else self._leg.is_outward,
            desk=server.caller().spiffe_id,
        )
        async with aclosing(following) as items:
            async for item in items:
                match item:
                    case NumberedStep():
                        yield self._stepped(item)
                    case dispatch_pb2.Assignment():
                        yield dispatch_pb2.SubscribeResponse(other=item)
                    case _:
                        assert_never(item)

    async def Acknowledge(
        self, request: dispatch_pb2.AcknowledgeRequest, context: Context
    ) -> dispatch_pb2.AcknowledgeResponse:
        """Records that the desk accepts an assignment, or the watch a canary."""
        self._admit(Role.ROLE_WATCH)
        assignment_id = fields.required_id("assignment_id", request.assignment_id)
        unit_id = fields.required_id("unit_id", request.unit_id) if request.unit_id else ""
        assignment = await self._leg.acknowledge(
            assignment_id, server.caller().spiffe_id, request.offer_number, unit_id=unit_id, canary=_is_watch()
        )
        return dispatch_pb2.AcknowledgeResponse(assignment=assignment)

    async def SendUnit(self, request: dispatch_pb2.SendUnitRequest, context: Context) -> dispatch_pb2.SendUnitResponse:
        """Asks a unit of the roster for the desk."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        unit_id = fields.required_id("unit_id", request.unit_id)
        send = SendUnit(id_, by=server.caller().spiffe_id, unit_id=unit_id, offer_number=request.offer_number)
        return dispatch_pb2.SendUnitResponse(assignment=await self._leg.answer(send))

    async def SendByRadio(
        self, request: dispatch_pb2.SendByRadioRequest, context: Context
    ) -> dispatch_pb2.SendByRadioResponse:
        """Records that the desk ordered a unit to go by radio."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        name = translate.unit_name(request.unit_name)
        send = SendByRadio(id_, by=server.caller().spiffe_id, unit_name=name, offer_number=request.offer_number)
        return dispatch_pb2.SendByRadioResponse(assignment=await self._leg.answer(send))

    async def Receive(self, request: dispatch_pb2.ReceiveRequest, context: Context) -> dispatch_pb2.ReceiveResponse:
        """Records that the desk's machine has received an offer."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        by, number = server.caller().spiffe_id, _offer_number(request.offer_number)
        assignment = await self._leg.answer(Receive(id_, by, number))
        return dispatch_pb2.ReceiveResponse(assignment=assignment)

    async def Reject(self, request: dispatch_pb2.RejectRequest, context: Context) -> dispatch_pb2.RejectResponse:
        """Records that the desk refuses an offer, or gives an assignment back."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        by, number = server.caller().spiffe_id, _offer_number(request.offer_number)
        reason, seen = translate.reason(request.reason), translate.seen(request.seen_state)
        rejection = Reject(assignment_id=id_, by=by, offer_number=number, reason=reason, seen=seen)
        return dispatch_pb2.RejectResponse(assignment=await self._leg.answer(rejection))

    async def Progress(self, request: dispatch_pb2.ProgressRequest, context: Context) -> dispatch_pb2.ProgressResponse:
        """Records that the unit reached the next state."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        by, state = server.caller().spiffe_id, translate.progress(request.state)
        number, seen = request.offer_number, translate.seen(request.seen_state)
        progress = Progress(assignment_id=id_, by=by, state=state, offer_number=number, seen=seen)
        return dispatch_pb2.ProgressResponse(assignment=await self._leg.answer(progress))

    async def Close(self, request: dispatch_pb2.CloseRequest, context: Context) -> dispatch_pb2.CloseResponse:
        """Closes an assignment with the cause that the desk states."""
        self._admit()
        id_ = fields.required_id("assignment_id", request.assignment_id)
        by, (cause, note) = server.caller().spiffe_id, translate.close_cause(request.cause, request.note)
        number, seen = request.offer_number, translate.seen(request.seen_state)
        close = Close(assignment_id=id_, by=by, cause=cause, note=note, offer_number=number, seen=seen)
        return dispatch_pb2.CloseResponse(assignment=await self._leg.answer(close))

    async def ListIncidents(
        self, request: dispatch_pb2.ListIncidentsRequest, context: Context
    ) -> dispatch_pb2.ListIncidentsResponse:
        """Lists incidents, at most MAX_PAGE_SIZE: newest first, or those that changed after a point.

        The token of a page is the id of its last incident.
        """
        self._admit(Role.ROLE_REVIEWER)
        size = min(request.page_size or PAGE_SIZE, MAX_PAGE_SIZE)
        if request.changed_after:
            return await self._changed(request, size)
        if request.incident_id:
            fields.required_id("incident_id", request.incident_id)
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        point = self._leg.record.listing.point
        incidents = await self._leg.store.incidents(
            request.incident_id, size + 1, request.page_token, only_open=request.only_open
        )
        page = incidents[:size]
        return dispatch_pb2.ListIncidentsResponse(
            incidents=await _messages(page),
            next_page_token=page[-1].row.incident_id if len(incidents) > size else "",
            changes=point,
        )

    async def _changed(
        self, request: dispatch_pb2.ListIncidentsRequest, size: int
    ) -> dispatch_pb2.ListIncidentsResponse:
        """The incidents that changed after a point, or the answer that the changes since then aren't known."""
        if request.incident_id or request.page_token or request.only_open:
            raise InvalidField("changed_after", "goes only with page_size: leave the other fields empty")
        changed = self._leg.record.listing.since(request.changed_after, size)
        if changed is None:
            return dispatch_pb2.ListIncidentsResponse(changes_unknown=True)
        incidents = await self._leg.store.incidents_by_id(changed.incident_ids) if changed.incident_ids else []
        return dispatch_pb2.ListIncidentsResponse(
            incidents=await _messages(incidents), changes=changed.point, more_changes=changed.has_more
        )

    def _stepped(self, step: NumberedStep) -> dispatch_pb2.SubscribeResponse:
        """The message of a step, with the times of its incident if that is in memory. So a desk needn't read the incident after it."""
        message = dispatch_pb2.SubscribeResponse(sequence=step.sequence, step=step.step)
        known = self._leg.record.memory.known.get(step.step.assignment.incident_id)
        if known and known.incident.opened_ms is not None:
            message.incident_opened_at.CopyFrom(times.to_timestamp(known.incident.opened_ms))
            if known.incident.ended_ms is not None:
                message.incident_ended_at.CopyFrom(times.to_timestamp(known.incident.ended_ms))
        return message

    def _admit(self, *others: Role.ValueType) -> None:
        admit(self._leg.name, *others)


async def _messages(incidents: Sequence[ListedIncident]) -> list[dispatch_pb2.Incident]:
    """The messages of listed incidents. It yields to the event loop between them."""
    messages: list[dispatch_pb2.Incident] = []
    for first in range(0, len(incidents), YIELD_INCIDENTS):
        messages += map(translate.listed_incident, incidents[first : first + YIELD_INCIDENTS])
        await asyncio.sleep(0)
    return messages


def admit(leg: Leg, *others: Role.ValueType) -> None:
    """Checks the caller's role. Raises PermissionDenied unless the caller is the leg's desk or has one of the roles `others`."""
    role = server.caller().role
    if role not in (leg.policy.desk_role, *others):
        raise PermissionDenied(f"{Role.Name(role)} has no part in the {leg} leg")


def _is_watch() -> bool:
    return server.caller().role == Role.ROLE_WATCH


def _offer_number(number: int) -> int:
    if not number:
        raise InvalidField("offer_number", "is missing")
    return number


class NoteApi(notes_pb2_grpc.NoteServiceServicer):
    """NoteService of one leg."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg

    async def AddNote(self, request: notes_pb2.AddNoteRequest, context: Context) -> notes_pb2.AddNoteResponse:
        """Adds a note to the chain, durable on return."""
        admit(self._leg.name)
        incident_id = fields.required_id("incident_id", request.incident_id)
        command = translate.add_note_command(request, server.caller().spiffe_id)
        committed = await self._leg.record.handle([IncidentCommand(incident_id, command)], self._leg.now())
        id_ = note_id(committed[incident_id].incident, command.note_key)
        payload = await self._leg.store.transaction(partial(_note_payload, id_=id_))
        return notes_pb2.AddNoteResponse(note=notes_pb2.IncidentNote.FromString(payload))

    async def ListNotes(self, request: notes_pb2.ListNotesRequest, context: Context) -> notes_pb2.ListNotesResponse:
        """Lists the notes of an incident that this leg has."""
        admit(self._leg.name, Role.ROLE_REVIEWER)
        incident_id = fields.required_id("incident_id", request.incident_id)
        payloads = await self._leg.store.reading_history(partial(_note_payloads, incident_id=incident_id))
        if payloads is None:
            raise NotFound(f"no incident {incident_id} in the {self._leg.name} leg")
        return notes_pb2.ListNotesResponse(notes=map(notes_pb2.IncidentNote.FromString, payloads))


def _note_payloads(connection: sa.Connection, *, incident_id: str) -> list[bytes] | None:
    """The notes of an incident, oldest first; None if the leg doesn't have the incident."""
    if connection.scalar(sa.select(sa.true()).where(tables.incidents.c.incident_id == incident_id)) is None:
        return None
    notes = tables.notes.c
    query = sa.select(notes.payload).where(notes.incident_id == incident_id).order_by(notes.at_ms, notes.note_id)
    return list(connection.scalars(query))


def _note_payload(connection: sa.Connection, *, id_: str) -> bytes:
    """The stored note with this id. Raises NotFound."""
    payload = connection.scalar(sa.select(tables.notes.c.payload).where(tables.notes.c.note_id == id_))
    if payload is None:
        raise NotFound(f"no note {id_}")
    return bytes(payload)


_OUTCOME = roster_pb2.RosterOutcome.ValueType


class RosterApi(roster_pb2_grpc.RosterServiceServicer):
    """RosterService of one leg."""

    def __init__(self, leg: LegService, clock: MeshClock) -> None:
        self._leg = leg
        self._clock = clock

    async def PutOffices(
        self, request: roster_pb2.PutOfficesRequest, context: Context
    ) -> roster_pb2.PutOfficesResponse:
        """Stores offices, all of them or none."""
        admit(self._leg.name)
        given = roster.parse_offices(request.offices)
        outcomes = await self._leg.change_roster(lambda connection: roster.put_offices(connection, given))
        return roster_pb2.PutOfficesResponse(outcomes=[_OUTCOME(outcome) for outcome in outcomes])

    async def PutUnits(self, request: roster_pb2.PutUnitsRequest, context: Context) -> roster_pb2.PutUnitsResponse:
        """Stores units, all of them or none."""
        admit(self._leg.name)
        given = roster.parse_units(request.units)
        outcomes = await self._leg.change_roster(
            lambda connection: roster.put_units(connection, given), [unit.unit_id for unit in given if unit.removed]
        )
        return roster_pb2.PutUnitsResponse(outcomes=[_OUTCOME(outcome) for outcome in outcomes])

    async def ReportUnit(
        self, request: roster_pb2.ReportUnitRequest, context: Context
    ) -> roster_pb2.ReportUnitResponse:
        """Stores the status and the position that a unit reports."""
        admit(self._leg.name)
        unit_id, report = roster.parse_report(request, self._clock.now_ms())
        leaving = [unit_id] if report.status is Status.OFF else []
        outcome = await self._leg.change_roster(
            lambda connection: roster.report_unit(connection, unit_id, report), leaving
        )
        return roster_pb2.ReportUnitResponse(outcome=_OUTCOME(outcome))

    async def ListUnits(self, request: roster_pb2.ListUnitsRequest, context: Context) -> roster_pb2.ListUnitsResponse:
        """Returns the offices and units of this leg, with the last report of each unit."""
        admit(self._leg.name)
        office_id = fields.required_id("office_id", request.office_id) if request.office_id else ""
        offices, units, engaged = await self._leg.store.transaction(
            lambda connection: (
                roster.read_offices(connection),
                roster.read_units(connection),
                roster.read_engaged(connection),
            )
        )
        return roster_pb2.ListUnitsResponse(
            offices=[roster.office_message(office) for office in offices.values()],
            units=[
                roster.listed_unit(unit, report, next(iter(engaged.get(unit_id, {}).values()), ""))
                for unit_id, (unit, report) in units.items()
                if office_id in ("", unit.office_id)
            ],
        )

    async def ListCandidates(
        self, request: roster_pb2.ListCandidatesRequest, context: Context
    ) -> roster_pb2.ListCandidatesResponse:
        """Returns the units that can be sent to an assignment's destination, free ones and nearer ones first."""
        admit(self._leg.name)
        assignment_id = fields.required_id("assignment_id", request.assignment_id)
        return candidates_message(await self._leg.scene(assignment_id))


MAX_CANDIDATES = 200
"""Maximum number of units in the list. The ones that are left out are the farthest."""


def candidates_message(scene: DecisionFacts) -> roster_pb2.ListCandidatesResponse:
    """The message of the list, with the assignment as it is now."""
    incident, assignment, situation = scene
    query = escalation.query(
        incident, assignment.assignment_id, assignment.subject_id, kind=assignment.kind, now_ms=situation.now_ms
    )
    next_id = escalation.next_unit_id(incident, assignment, situation)
    on_duty = units_on_duty(situation.board, query)
    message = roster_pb2.ListCandidatesResponse(
        has_roster=situation.board.asks_units(),
        assignment=translate.assignment_message(incident, assignment, None),
    )
    for choice in on_duty[:MAX_CANDIDATES]:
        candidate = _candidate(choice, situation.board, assignment.subject_id, now_ms=situation.now_ms)
        candidate.is_next = choice.unit_id == next_id
        if offer := assignment.offer_to(choice.unit_id):
            candidate.offer.CopyFrom(translate.unit_offer(offer))
        message.candidates.append(candidate)
    return message


def _candidate(choice: Choice, board: Board, subject_id: str, *, now_ms: int) -> roster_pb2.Candidate:
    unit, report = board.units[choice.unit_id]
    incident_id = next(iter(board.engaged.get(choice.unit_id, {}).values()), "")
    candidate = roster_pb2.Candidate(
        unit=roster.listed_unit(unit, report, incident_id),
        estimate=dispatch_pb2.Estimate.ValueType(choice.estimate),
    )
    if choice.travel_s is not None:
        candidate.travel_s = choice.travel_s
    place, to = report.place(now_ms), board.positions.get(subject_id)
    if place and to:
        candidate.distance_m = round(great_circle_m(place, to))
    return candidate
