"""gRPC edge of the units' pages. The legs that send units serve it; the warning leg refuses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from services.common import fields, times
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, PermissionDenied
from services.dispatch.duty import links, translate
from services.dispatch.duty.access import UnitAccess, unit_name
from services.dispatch.duty.task_targets import TaskTargets
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.service import LegService
from services.dispatch.leg.translate import LEG_NUMBERS
from services.dispatch.roster import translate as roster
from tandem.dispatch.v1 import roster_pb2, unit_duty_pb2, unit_duty_pb2_grpc


class UnitDutyApi(unit_duty_pb2_grpc.UnitDutyServiceServicer):
    """UnitDutyService of one leg."""

    def __init__(self, leg: LegService, access: UnitAccess, targets: TaskTargets) -> None:
        self._leg, self._access, self._targets = leg, access, targets

    async def IssueUnitLink(
        self, request: unit_duty_pb2.IssueUnitLinkRequest, context: Context
    ) -> unit_duty_pb2.IssueUnitLinkResponse:
        """Issues a link for a unit of the desk's own leg."""
        admit(self._leg.name)
        unit_id = fields.required_id("unit_id", request.unit_id)
        valid_for_s = links.valid_for_s(request.valid_for_s)
        issued = await self._access.issue(unit_id, valid_for_s, by=server.caller().spiffe_id)
        return unit_duty_pb2.IssueUnitLinkResponse(code=issued.code, expires_at=times.to_timestamp(issued.expires_ms))

    async def SignInUnit(
        self, request: unit_duty_pb2.SignInUnitRequest, context: Context
    ) -> unit_duty_pb2.SignInUnitResponse:
        """Exchanges the code of a link for a token."""
        self._admit_page()
        if not request.code:
            raise InvalidField("code", "is missing: open the link that your desk sent")
        made = await self._access.sign_in(request.code)
        return unit_duty_pb2.SignInUnitResponse(
            token=made.token, unit_id=made.unit_id, shift_until=times.to_timestamp(made.shift_until_ms)
        )

    async def SignOutUnit(
        self, request: unit_duty_pb2.SignOutUnitRequest, context: Context
    ) -> unit_duty_pb2.SignOutUnitResponse:
        """Ends a token."""
        self._admit_page()
        await self._access.sign_out(request.token)
        return unit_duty_pb2.SignOutUnitResponse()

    async def CheckSignIn(
        self, request: unit_duty_pb2.CheckSignInRequest, context: Context
    ) -> unit_duty_pb2.CheckSignInResponse:
        """Fails unless a token is valid."""
        self._admit_page()
        await self._access.unit(request.token)
        return unit_duty_pb2.CheckSignInResponse()

    async def WatchUnits(
        self, request: unit_duty_pb2.WatchUnitsRequest, context: Context
    ) -> AsyncIterator[unit_duty_pb2.WatchUnitsResponse]:
        """Streams an entry for each change that concerns a unit's page."""
        self._admit_page()
        yield unit_duty_pb2.WatchUnitsResponse()
        async with aclosing(self._access.changes()) as changes:
            async for assignment in changes:
                yield translate.change(assignment, LEG_NUMBERS[self._leg.name])

    async def GetDuty(self, request: unit_duty_pb2.GetDutyRequest, context: Context) -> unit_duty_pb2.GetDutyResponse:
        """Returns the unit with its offers and assignments."""
        self._admit_page()
        shown = translate.shown_ids(request.shown_assignment_ids)
        on_duty = await self._access.duty(request.token, shown)
        unit_id = on_duty.unit.unit_id
        incidents = [
            listed
            for incident_id in dict.fromkeys(row.incident_id for row in on_duty.rows if row.unit_id == unit_id)
            for listed in await self._leg.store.incidents(incident_id, 1, "")
        ]
        return translate.duty(on_duty, shown, incidents)

    async def ReportDuty(
        self, request: unit_duty_pb2.ReportDutyRequest, context: Context
    ) -> unit_duty_pb2.ReportDutyResponse:
        """Stores the status and position that the unit reports."""
        self._admit_page()
        unit = await self._access.unit(request.token)
        own = roster_pb2.ReportUnitRequest(unit_id=unit.unit_id, status=request.status)
        if request.HasField("position"):
            own.position.CopyFrom(request.position)
        if request.HasField("at"):
            own.at.CopyFrom(request.at)
        _, report = roster.report(own, self._access.now_ms())
        outcome = await self._access.report(unit, report)
        return unit_duty_pb2.ReportDutyResponse(outcome=roster_pb2.RosterOutcome.ValueType(outcome))

    async def AnswerTask(
        self, request: unit_duty_pb2.AnswerTaskRequest, context: Context
    ) -> unit_duty_pb2.AnswerTaskResponse:
        """Applies the answer of the unit to its own offer or assignment."""
        self._admit_page()
        unit = await self._access.unit(request.token)
        command = translate.command(request, unit_name(self._leg.name, unit.unit_id))
        return unit_duty_pb2.AnswerTaskResponse(assignment=await self._access.answer(unit, command))

    async def FollowTask(
        self, request: unit_duty_pb2.FollowTaskRequest, context: Context
    ) -> AsyncIterator[unit_duty_pb2.FollowTaskResponse]:
        """Streams the positions of the targets of the unit's assignment."""
        self._admit_page()
        unit = await self._access.unit(request.token)
        incident_id = fields.required_id("incident_id", request.incident_id)
        async with aclosing(self._targets.follow(unit.unit_id, incident_id)) as targets:
            async for events in targets:
                await self._access.unit(request.token)  # it may have ended since
                yield unit_duty_pb2.FollowTaskResponse(events=events)

    async def RaiseDistress(
        self, request: unit_duty_pb2.RaiseDistressRequest, context: Context
    ) -> unit_duty_pb2.RaiseDistressResponse:
        """Alarms the desks."""
        self._admit_page()
        return unit_duty_pb2.RaiseDistressResponse(other_desk=await self._access.raise_distress(request.token))

    async def EndDistress(
        self, request: unit_duty_pb2.EndDistressRequest, context: Context
    ) -> unit_duty_pb2.EndDistressResponse:
        """Ends the alarm of a unit of the desk's own leg."""
        admit(self._leg.name)
        unit_id = fields.required_id("unit_id", request.unit_id)
        await self._access.end_distress(unit_id, server.caller().spiffe_id)
        return unit_duty_pb2.EndDistressResponse()

    async def Assure(self, request: unit_duty_pb2.AssureRequest, context: Context) -> unit_duty_pb2.AssureResponse:
        """Records for a unit that it goes on."""
        admit(self._leg.name)
        assignment_id = fields.required_id("assignment_id", request.assignment_id)
        by = server.caller().spiffe_id
        assignment = await self._access.assure(assignment_id, by, request.offer_number)
        return unit_duty_pb2.AssureResponse(assignment=assignment)

    def _admit_page(self) -> None:
        """Raises PermissionDenied in a leg without units. The protos admit the service that faces phones alone."""
        if not self._leg.name.policy.has_units:
            raise PermissionDenied(f"the {self._leg.name} leg sends nobody")
