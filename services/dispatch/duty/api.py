"""gRPC edge of the units' pages. The legs that send units serve it; the warning leg refuses it.

A unit gets its own offers and assignments. The live positions of the targets of its assignment each have a row of the ledger before the
first position leaves.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import aclosing
from typing import NamedTuple

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, PermissionDenied, Unavailable
from services.common.ids import PlaceId
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc import server
from services.dispatch.domain.answers import Acknowledge, Assure, Close, Progress, Receive, Reject
from services.dispatch.domain.assignment import ACCEPTED, AssignmentState
from services.dispatch.duty import links
from services.dispatch.duty.access import OnDuty, UnitAccess, assignment_for_unit, holder_of, offer_to, unit_name
from services.dispatch.following.api import DeskStream
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.targets import CALLERS, FOLLOWING_BASES
from services.dispatch.leg import roster, translate
from services.dispatch.leg.api import Context, admit
from services.dispatch.leg.publications import LegDisclosures
from services.dispatch.leg.service import DeskAnswer, LegService
from services.dispatch.leg.tables import ListedIncident
from services.dispatch.leg.translate import LEG_NUMBERS
from tandem.common.v1 import ledger_pb2, subject_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2, roster_pb2, unit_duty_pb2, unit_duty_pb2_grpc


class UnitDutyApi(unit_duty_pb2_grpc.UnitDutyServiceServicer):
    """UnitDutyService of one leg."""

    def __init__(self, leg: LegService, access: UnitAccess, targets: TaskTargets) -> None:
        self._leg = leg
        self._access = access
        self._targets = targets

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
        async with aclosing(self._access.changes(server.caller().spiffe_id)) as changes:
            async for assignment in changes:
                yield _change_message(assignment, LEG_NUMBERS[self._leg.name])

    async def GetDuty(self, request: unit_duty_pb2.GetDutyRequest, context: Context) -> unit_duty_pb2.GetDutyResponse:
        """Returns the unit with its offers and assignments."""
        self._admit_page()
        shown = shown_ids(request.shown_assignment_ids)
        on_duty = await self._access.duty(request.token, shown)
        unit_id = on_duty.unit.unit_id
        incidents = [
            listed
            for incident_id in dict.fromkeys(row.incident_id for row in on_duty.rows if row.engages(unit_id))
            for listed in await self._leg.store.incidents(incident_id, 1, "")
        ]
        return _duty_message(on_duty, shown, incidents)

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
        _, report = roster.parse_report(own, self._access.now_ms())
        outcome = await self._access.report(unit, report)
        return unit_duty_pb2.ReportDutyResponse(outcome=roster_pb2.RosterOutcome.ValueType(outcome))

    async def AnswerTask(
        self, request: unit_duty_pb2.AnswerTaskRequest, context: Context
    ) -> unit_duty_pb2.AnswerTaskResponse:
        """Applies the answer of the unit to its own offer or assignment."""
        self._admit_page()
        unit = await self._access.unit(request.token)
        command = parse_answer(request, unit.unit_id, by=unit_name(self._leg.name, unit.unit_id))
        assignment = await self._access.answer(unit, command, request.offer_number)
        return unit_duty_pb2.AnswerTaskResponse(assignment=assignment_for_unit(assignment))

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


SHOWN_MAX = 20
"""Maximum number of assignments that a page names."""
_BY_UNIT = (AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)


def shown_ids(given: Sequence[str]) -> list[str]:
    """The validated ids of assignments that a page shows. Raises InvalidField."""
    fields.at_most("shown_assignment_ids", given, SHOWN_MAX)
    return [fields.required_id(f"shown_assignment_ids[{n}]", id_) for n, id_ in enumerate(given)]


def parse_answer(request: unit_duty_pb2.AnswerTaskRequest, unit_id: str, *, by: str) -> DeskAnswer:
    """The command of a unit's answer. `by` is the unit's name as author. Raises InvalidField."""
    id_, number = fields.required_id("assignment_id", request.assignment_id), request.offer_number
    if not number:
        raise InvalidField("offer_number", "is missing (example: 1)")
    match request.WhichOneof("answer"):
        case "received":
            return Receive(id_, by, number)
        case "accepted":
            return Acknowledge(id_, by, number, unit_id=unit_id)
        case "rejected":
            try:
                reason = translate.reason(request.rejected.reason)
            except InvalidField as error:
                raise error.under("rejected") from None
            return Reject(assignment_id=id_, by=by, offer_number=number, reason=reason)
        case "progress":
            return Progress(assignment_id=id_, by=by, state=_state(request.progress), offer_number=number)
        case "assured":
            return Assure(id_, by, number)
        case "closed":
            try:
                cause, note = translate.close_cause(request.closed.cause, request.closed.note)
            except InvalidField as error:
                raise error.under("closed") from None
            return Close(assignment_id=id_, by=by, cause=cause, note=note, offer_number=number)
        case _:
            raise InvalidField(
                "answer",
                "is missing: set received, accepted, rejected, progress, assured or closed (example: accepted)",
            )


def _state(state: dispatch_pb2.AssignmentState.ValueType) -> AssignmentState:
    if int(state) not in {int(known) for known in _BY_UNIT}:
        raise InvalidField("progress", "must be EN_ROUTE, ON_SCENE or APPREHENDED (example: EN_ROUTE)")
    return AssignmentState(state)


def _duty_message(
    on_duty: OnDuty, asked: Sequence[str], incidents: Iterable[ListedIncident]
) -> unit_duty_pb2.GetDutyResponse:
    """The message of a unit's duty. `asked` are the ids of the assignments that its page shows."""
    unit_id = on_duty.unit.unit_id
    read = {row.assignment_id: (row, translate.stored_assignment(row)) for row in on_duty.rows}
    others = {listed.row.incident_id: _others(listed.peers) for listed in incidents}
    answer = unit_duty_pb2.GetDutyResponse(unit=roster.listed_unit(on_duty.unit, on_duty.report, ""))
    for id_, (row, assignment) in read.items():
        offer = offer_to(assignment, unit_id)
        # A unit that had the assignment when the threat ended closes it, so it keeps its card.
        to_close = offer is not None and offer.state == dispatch_pb2.UNIT_ACCEPTED and id_ in asked
        if row.engages(unit_id) or (assignment.state == dispatch_pb2.STOOD_DOWN and to_close):
            answer.tasks.add(
                assignment=assignment_for_unit(assignment), others=others.get(row.incident_id, ()), offer=offer
            )
        elif id_ in asked:
            reason = unit_duty_pb2.TaskEndReason.Value(f"TASK_{holder_of(assignment)}")
            answer.ends.append(unit_duty_pb2.TaskEnd(assignment_id=id_, reason=reason))
    answer.ends.extend(
        unit_duty_pb2.TaskEnd(assignment_id=id_, reason=unit_duty_pb2.TASK_UNKNOWN) for id_ in asked if id_ not in read
    )
    return answer


def _others(peers: Iterable[bytes]) -> list[unit_duty_pb2.OtherLegStep]:
    found = []
    for payload in peers:
        assignment = dispatch_pb2.Assignment.FromString(payload)
        step = unit_duty_pb2.OtherLegStep(
            leg=assignment.leg, state=assignment.state, unit_class=assignment.choice.unit_class
        )
        if assignment.HasField("distress_at"):
            step.distress_at.CopyFrom(assignment.distress_at)
        found.append(step)
    return sorted(found, key=lambda step: (step.leg, step.state))


def _change_message(assignment: dispatch_pb2.Assignment, own_leg: int) -> unit_duty_pb2.WatchUnitsResponse:
    """The message of a change that concerns units' pages, without content."""
    if assignment.leg != own_leg:
        return unit_duty_pb2.WatchUnitsResponse(incident_id=assignment.incident_id)
    message = unit_duty_pb2.WatchUnitsResponse(
        incident_id=assignment.incident_id, assignment_id=assignment.assignment_id
    )
    is_accepted = AssignmentState(assignment.state) in ACCEPTED
    for offer in assignment.unit_offers:
        has_it = is_accepted and offer.state == dispatch_pb2.UNIT_ACCEPTED
        if has_it or offer.state == dispatch_pb2.UNIT_ASKED:
            message.units.add(unit_id=offer.choice.unit_id, is_offer=not has_it, offer_number=offer.offer_number)
    return message


NOT_ACCEPTED = "NOT_ACCEPTED"
"""Machine-readable reason for refusing positions: the unit has accepted no assignment of the incident."""


class _Destinations(NamedTuple):
    """Targets that a unit may follow in an incident: the wearer and its own destinations, under these orders."""

    subject_ids: frozenset[str]
    order_ids: Sequence[str]


class TaskTargets:
    """Shows units the targets of the assignments that they accepted, as the leg follows them for its desk."""

    def __init__(
        self, leg: LegService, follower: TargetFollower | None, clock: MeshClock, *, disclosures: LegDisclosures
    ) -> None:
        self._leg = leg
        self._follower = follower
        self._clock = clock
        self._disclosures = disclosures
        self._bus: Bus | None = None

    def connected(self, bus: Bus) -> None:
        """Sets the bus on which disclosures are published."""
        self._bus = bus

    async def follow(self, unit_id: str, incident_id: str) -> AsyncGenerator[list[following_pb2.TargetEvent]]:
        """Yields events of the incident's targets until the unit hasn't the assignment any more.

        Raises FailedPrecondition if it never had it, Unavailable if the leg follows nobody or can't record the disclosure.
        """
        if self._follower is None:
            raise Unavailable("this leg has no target positions", retry_after_s=60.0)
        await self._required(unit_id, incident_id)
        if not await self._leg.show_targets([incident_id], unit_name(self._leg.name, unit_id)):
            raise FailedPrecondition("the incident isn't open in this leg", NOT_ACCEPTED)
        stream, recorded = DeskStream(self._follower, self._clock), set[str]()
        with stream.watching():
            stream.add(incident_id)
            stream.finish(None)
            async for response in stream.responses():
                may_follow = await self._destinations(unit_id, incident_id)
                if may_follow is None:
                    return
                shown = [
                    event
                    for event in response.events
                    if event.HasField("not_followed") or event.target.subject_id in may_follow.subject_ids
                ]
                new = [event.target for event in shown if event.HasField("target")]
                await self._record(
                    unit_id, incident_id, may_follow, new=[t for t in new if t.subject_id not in recorded]
                )
                recorded |= {target.subject_id for target in new}
                if shown:
                    yield shown

    async def _required(self, unit_id: str, incident_id: str) -> _Destinations:
        found = await self._destinations(unit_id, incident_id)
        if found is None:
            raise FailedPrecondition("the unit has accepted no assignment of this incident", NOT_ACCEPTED)
        return found

    async def _destinations(self, unit_id: str, incident_id: str) -> _Destinations | None:
        """The targets that the unit may follow; None if it has accepted no assignment of the incident, or has it no longer."""
        for incident in await self._leg.record.open_incidents():
            if incident.incident_id == incident_id:
                own = {
                    assignment.subject_id
                    for assignment in incident.assignments.values()
                    if assignment.unit_id == unit_id and assignment.state in ACCEPTED
                }
                return _Destinations(frozenset({*own, incident.wearer_id}), incident.order_ids) if own else None
        return None

    async def _record(
        self,
        unit_id: str,
        incident_id: str,
        destinations: _Destinations,
        *,
        new: Sequence[following_pb2.TargetPosition],
    ) -> None:
        """Stores a row of the ledger for each target and order. Raises Unavailable; then no position leaves."""
        if not new:
            return
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        now_ms = self._clock.now_ms()
        who = CALLERS[self._leg.name]
        recipient = unit_name(self._leg.name, unit_id)
        rows = [
            ledger_pb2.Disclosure(
                disclosure_id=ids.hash_id("unit", recipient, incident_id, order_id, kind.value, record_id, now_ms),
                at_ms=now_ms,
                who=who,
                legal_basis=FOLLOWING_BASES[self._leg.name],
                purpose=Purpose.ENFORCEMENT.value,
                reference=incident_id,
                record_kind=kind.value,
                record_id=record_id,
                order_id=order_id,
                recipient=recipient,
            )
            for target in new
            for kind, record_id, order_id in _records(target, destinations.order_ids)
        ]
        await self._disclosures.record(self._bus, rows)


def _records(target: following_pb2.TargetPosition, order_ids: Sequence[str]) -> list[tuple[RecordKind, str, str]]:
    """Kind and id of the record of a target, for each order under which it is shown. A place is part of its order."""
    if target.kind == subject_pb2.WEARER:
        return [(RecordKind.WEARER, target.subject_id, order_id) for order_id in order_ids]
    if (place := PlaceId.parse(target.subject_id)) is not None:
        return [(RecordKind.ORDER, place.order_id, place.order_id)]
    return [(RecordKind.PROTECTED_PERSON, target.subject_id, order_id) for order_id in order_ids]
