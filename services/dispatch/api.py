"""The gRPC edge. Each leg serves its own desk; the other agency's is refused."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from services.common import fields, rpc
from services.common.errors import InvalidField, PermissionDenied
from services.common.identity import Role
from services.dispatch import translate
from services.dispatch.leg import Leg
from tandem.common.v1 import access_pb2
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc

PAGE_SIZE = 100
PAGE_SIZE_MAX = 1_000
DESKS = {
    "probation": Role.ROLE_MOJ_DESK,
    "police": Role.ROLE_NPA_DESK,
    "warning": Role.ROLE_WARNING_GATEWAY,
}
"""Whose desk a leg serves."""

Context = grpc.aio.ServicerContext[Any, Any]


class DispatchApi(dispatch_pb2_grpc.DispatchServiceServicer):
    """DispatchService of one leg."""

    def __init__(self, leg: Leg) -> None:
        self._leg = leg

    async def Subscribe(
        self, request: dispatch_pb2.SubscribeRequest, context: Context
    ) -> AsyncIterator[dispatch_pb2.SubscribeResponse]:
        """Streams steps to the leg's desk."""
        self._admit(DESKS[self._leg.name])
        async for one in self._leg.follow(request.after_sequence):
            yield dispatch_pb2.SubscribeResponse(sequence=one.sequence, step=one.step)

    async def Acknowledge(
        self, request: dispatch_pb2.AcknowledgeRequest, context: Context
    ) -> dispatch_pb2.AcknowledgeResponse:
        """The desk takes an assignment."""
        self._admit(DESKS[self._leg.name])
        assignment_id = fields.required_id("assignment_id", request.assignment_id)
        assignment = await self._leg.acknowledge(assignment_id, rpc.caller().spiffe_id)
        return dispatch_pb2.AcknowledgeResponse(assignment=assignment)

    async def ListIncidents(
        self, request: dispatch_pb2.ListIncidentsRequest, context: Context
    ) -> dispatch_pb2.ListIncidentsResponse:
        """Pages through incidents, newest first. A page's token is the id of its last incident."""
        self._admit(DESKS[self._leg.name], Role.ROLE_REVIEWER)
        if request.page_size > PAGE_SIZE_MAX:
            raise InvalidField("page_size", f"must be at most {PAGE_SIZE_MAX}")
        if request.incident_id:
            fields.required_id("incident_id", request.incident_id)
        if request.page_token:
            fields.required_id("page_token", request.page_token)
        size = request.page_size or PAGE_SIZE
        found = await self._leg.store.incidents(request.incident_id, size + 1, request.page_token)
        page = found[:size]
        return dispatch_pb2.ListIncidentsResponse(
            incidents=[translate.listed_incident(one) for one in page],
            next_page_token=page[-1].row.incident_id if len(found) > size else "",
        )

    def _admit(self, *roles: access_pb2.Role.ValueType) -> None:
        role = rpc.caller().role
        if role not in roles:
            raise PermissionDenied(f"{access_pb2.Role.Name(role)} has no part in the {self._leg.name} leg")
