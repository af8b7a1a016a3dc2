"""Translation of units' requests and answers between messages and the domain of a leg."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from services.common import fields
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.answers import Acknowledge, Assure, Close, Progress, Receive, Reject
from services.dispatch.domain.assignment import OVER, AssignmentState
from services.dispatch.duty.access import OnDuty
from services.dispatch.leg import translate
from services.dispatch.leg.rows import ListedIncident
from services.dispatch.leg.service import DeskAnswer
from services.dispatch.roster import translate as roster
from tandem.dispatch.v1 import dispatch_pb2, unit_duty_pb2

SHOWN_MAX = 20
"""Maximum number of assignments that a page names."""
_BY_UNIT = (AssignmentState.EN_ROUTE, AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)


def shown_ids(given: Sequence[str]) -> list[str]:
    """The validated ids of assignments that a page shows. Raises InvalidField."""
    fields.at_most("shown_assignment_ids", given, SHOWN_MAX)
    return [fields.required_id(f"shown_assignment_ids[{n}]", id_) for n, id_ in enumerate(given)]


def command(request: unit_duty_pb2.AnswerTaskRequest, by: str) -> DeskAnswer:
    """The command of a unit's answer. Raises InvalidField."""
    id_, number = fields.required_id("assignment_id", request.assignment_id), request.offer_number
    if not number:
        raise InvalidField("offer_number", "is missing (example: 1)")
    match request.WhichOneof("answer"):
        case "received":
            return Receive(id_, by, number)
        case "accepted":
            return Acknowledge(id_, by, number)
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


def duty(on_duty: OnDuty, asked: Sequence[str], incidents: Iterable[ListedIncident]) -> unit_duty_pb2.GetDutyResponse:
    """The message of a unit's duty. `asked` are the ids of the assignments that its page shows."""
    unit_id = on_duty.unit.unit_id
    read = {row.assignment_id: (row, translate.stored_assignment(row)) for row in on_duty.rows}
    others = {listed.row.incident_id: _others(listed.peers) for listed in incidents}
    answer = unit_duty_pb2.GetDutyResponse(unit=roster.listed_unit(on_duty.unit, on_duty.report, ""))
    for id_, (row, assignment) in read.items():
        if assignment.choice.unit_id == unit_id and assignment.state != dispatch_pb2.CLOSED:
            if row.unit_id == unit_id or id_ in asked:
                task = unit_duty_pb2.UnitTask(assignment=assignment, others=others.get(row.incident_id, ()))
                answer.tasks.append(task)
        elif id_ in asked:
            closed = assignment.state == dispatch_pb2.CLOSED
            reason = unit_duty_pb2.TASK_CLOSED if closed else unit_duty_pb2.TASK_OFFERED_ON
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


def change(assignment: dispatch_pb2.Assignment, own_leg: int) -> unit_duty_pb2.WatchUnitsResponse:
    """The message of a change that concerns units' pages, without content."""
    if assignment.leg != own_leg:
        return unit_duty_pb2.WatchUnitsResponse(incident_id=assignment.incident_id)
    is_open = AssignmentState(assignment.state) not in OVER
    return unit_duty_pb2.WatchUnitsResponse(
        incident_id=assignment.incident_id,
        assignment_id=assignment.assignment_id,
        unit_id=assignment.choice.unit_id if is_open else "",
        is_offer=assignment.state in (dispatch_pb2.OFFERED, dispatch_pb2.ESCALATED),
        offer_number=assignment.offer_number,
    )
