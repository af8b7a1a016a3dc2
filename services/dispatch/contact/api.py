"""gRPC edge of the officers' calls to wearers. Only the desk of the leg that contacts wearers is served."""

from __future__ import annotations

from services.common import fields
from services.common.rpc import server
from services.common.rpc.errors import PermissionDenied
from services.dispatch.contact import translate
from services.dispatch.contact.domain.decisions import RecordCall
from services.dispatch.domain.enums import ContactState
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.service import LegService
from services.dispatch.leg.translate import assignment_message
from tandem.dispatch.v1 import calls_pb2, calls_pb2_grpc

MAX_CALLS = 1_000
"""Maximum number of calls in an answer."""


class ContactApi(calls_pb2_grpc.ContactServiceServicer):
    """Lists the calls that are due, and records their results."""

    def __init__(self, leg: LegService) -> None:
        self._leg = leg

    async def ListCalls(self, request: calls_pb2.ListCallsRequest, context: Context) -> calls_pb2.ListCallsResponse:
        """Lists the calls that are due, the oldest first."""
        self._admit()
        due = [
            (assignment.contact.since_ms, assignment.assignment_id, incident, assignment)
            for incident in await self._leg.record.open_incidents()
            for assignment in incident.assignments.values()
            if assignment.contact and assignment.contact.state is ContactState.CALL_DUE
        ]
        due.sort(key=lambda call: call[:2])
        return calls_pb2.ListCallsResponse(
            assignments=[
                assignment_message(incident, assignment, None) for _, _, incident, assignment in due[:MAX_CALLS]
            ]
        )

    async def RecordCall(self, request: calls_pb2.RecordCallRequest, context: Context) -> calls_pb2.RecordCallResponse:
        """Records the result of a call."""
        self._admit()
        command = RecordCall(
            assignment_id=fields.required_id("assignment_id", request.assignment_id),
            by=server.caller().spiffe_id,
            contact_id=fields.required_id("contact_id", request.contact_id),
            spoken=translate.spoken(request.result),
        )
        return calls_pb2.RecordCallResponse(assignment=await self._leg.answer(command))

    def _admit(self) -> None:
        admit(self._leg.name)
        if not self._leg.name.policy.contacts_wearer:
            raise PermissionDenied(f"the {self._leg.name} leg contacts no wearers")
