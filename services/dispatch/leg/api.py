"""gRPC edge of a leg. Each leg serves its own desk and refuses the other agency's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, assert_never

import grpc.aio

from services.common import fields, times
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, PermissionDenied
from services.common.rpc.identity import Role
from services.dispatch.domain.answers import Close, Progress, Receive, Reject
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import translate
from services.dispatch.leg.rows import ListedIncident
from services.dispatch.leg.service import LegService
from services.dispatch.leg.subscriptions import is_canary, is_no_canary
from services.dispatch.publications.steps import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc

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
        async for item in self._leg.follow(
            request.after_sequence,
            request.others,
            request.new_only,
            wants=is_canary if _is_watch() else is_no_canary,
            desk=server.caller().spiffe_id,
        ):
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
        assignment = await self._leg.acknowledge(
            assignment_id, server.caller().spiffe_id, request.offer_number, canary=_is_watch()
        )
        return dispatch_pb2.AcknowledgeResponse(assignment=assignment)

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
