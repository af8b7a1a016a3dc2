"""First contacts with wearers: the gRPC edge of the officers' calls, and what becomes of the messages to the tags.

Only the desk of the leg that contacts wearers is served. Ingest says whether a tag confirmed or refused its message, or let it expire.
The leg may not read the stream of commands, because that holds the warnings of protected persons. It asks for the commands of a tag
while a message to it is open, 2 minutes at most. If ingest doesn't answer, the deadline of the contact brings the call onto the list.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import grpc.aio

from services.client.calls import call_once
from services.common import fields
from services.common.clock import MeshClock, Moments
from services.common.errors import PermissionDenied
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc import client, server
from services.dispatch.domain.assignment import OVER
from services.dispatch.domain.contact import Confirm, RecordCall
from services.dispatch.domain.enums import CallReason, ContactState
from services.dispatch.domain.incident import Incident
from services.dispatch.following.targets import CALLERS
from services.dispatch.leg import translate
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.service import LegService
from services.dispatch.leg.translate import assignment_message
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import command_pb2
from tandem.dispatch.v1 import calls_pb2, calls_pb2_grpc
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

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


CHECK_INTERVAL_S = 1.0
"""Interval at which the commands of a tag with a new message are read, seconds of wall time."""
QUICK_CHECKS = 6
"""Number of readings at that interval: most tags confirm within seconds. Each later interval is twice as long as the one before."""
MAX_CHECK_INTERVAL_S = 10.0
"""Maximum interval between two readings, seconds of wall time. A tag that is away mustn't cost a call each second."""
_REASONS = {
    command_pb2.COMMAND_STATE_RECEIVED: None,
    command_pb2.COMMAND_STATE_REFUSED: CallReason.TAG_REFUSED,
    command_pb2.COMMAND_STATE_EXPIRED: CallReason.NOT_CONFIRMED,
}
"""Why an officer has to call, by the final state of the command; None if the tag confirmed it."""


class _ContactKey(NamedTuple):
    """Key of an open message to a wearer."""

    incident_id: str
    contact_id: str


@dataclass(slots=True)
class _UnconfirmedContact:
    """A message that its tag hasn't confirmed yet."""

    device_id: str
    confirm: Confirm
    """The command that confirms it."""
    checks: int = 0
    """Number of readings so far."""


class ContactConfirmations:
    """Records what became of the messages to the wearers of open incidents."""

    def __init__(self, leg: LegService, settings: DispatchSettings) -> None:
        self._leg, self._settings = leg, settings
        self._open: dict[str, dict[str, _UnconfirmedContact]] = {}
        """Open messages by incident and contact id."""
        self._due: Moments[_ContactKey] = Moments()
        """When the commands of each message's tag are read next."""
        self._wake = asyncio.Event()

    async def run(self) -> None:
        """Follows the messages until cancelled."""
        connection = client.connection(self._settings, self._settings.ingest, CALLERS[self._leg.name])
        async with connection as (channel, metadata), asyncio.TaskGroup() as tasks:
            stub = ingest_pb2_grpc.CommandServiceStub(channel)
            tasks.create_task(self._follow_record())
            while True:
                self._wake.clear()
                while await self._due.sleep(self._wake, self._settings.clock):
                    self._wake.clear()
                for message in self._due.pop_due(self._settings.clock.now_ms()):
                    if opened := self._open.get(message.incident_id, {}).get(message.contact_id):
                        await self._check(stub, metadata, message.incident_id, opened=opened)
                        opened.checks += 1
                        self._set_due(message, opened)

    async def _follow_record(self) -> None:
        async with self._leg.record.changes() as changes:
            while True:
                for incident in (await changes.next()).incidents.values():
                    self._apply(incident)
                self._wake.set()

    def _apply(self, incident: Incident) -> None:
        before = self._open.pop(incident.incident_id, {})
        for id_, assignment in incident.assignments.items():
            contact = assignment.contact
            if contact and contact.device_id and contact.state is ContactState.SENT and assignment.state not in OVER:
                message = _ContactKey(incident.incident_id, contact.contact_id)
                opened = before.get(contact.contact_id)
                if opened is None:
                    opened = _UnconfirmedContact(contact.device_id, Confirm(id_, contact.contact_id, None))
                    self._due.set(message, self._settings.clock.now_ms())
                self._open.setdefault(incident.incident_id, {})[contact.contact_id] = opened

    def _set_due(self, message: _ContactKey, opened: _UnconfirmedContact) -> None:
        interval_s = Backoff(CHECK_INTERVAL_S, MAX_CHECK_INTERVAL_S).delay_s(max(0, opened.checks - QUICK_CHECKS))
        clock: MeshClock = self._settings.clock
        self._due.set(message, clock.now_ms() + round(1000 * interval_s * clock.rate))

    async def _check(
        self,
        stub: ingest_pb2_grpc.CommandServiceStub,
        metadata: server.Metadata,
        incident_id: str,
        *,
        opened: _UnconfirmedContact,
    ) -> None:
        confirm, request = opened.confirm, ingest_pb2.ListCommandsRequest(device_id=opened.device_id)
        try:
            answer = await call_once(stub.ListCommands, request, metadata)
        except grpc.aio.AioRpcError as error:
            logger().warning("contact_not_followed", code=error.code().name, incident_id=incident_id)
            if error.code() in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED):
                # The tag isn't registered any more, or its order has ended: nobody will confirm.
                await self._leg.confirm(
                    incident_id, Confirm(confirm.assignment_id, confirm.contact_id, CallReason.NO_TAG)
                )
            return
        for status in answer.commands:
            if status.command.command_id == confirm.contact_id and status.state in _REASONS:
                done = Confirm(confirm.assignment_id, confirm.contact_id, _REASONS[status.state])
                await self._leg.confirm(incident_id, done)
