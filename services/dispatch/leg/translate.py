"""Translation between protobuf messages and the domain of a leg. Parsing validates: every parsed object is well formed."""

from __future__ import annotations

from dataclasses import dataclass

from services.common import fields, ids, times
from services.common.messaging import stored
from services.common.rpc.errors import InvalidField
from services.dispatch.domain.decisions import Alert
from services.dispatch.domain.enums import CloseCause, Demand, Exercise, WarningFlag
from services.dispatch.domain.events import Cause, Choice, Flagged, LogPosition, Raced
from services.dispatch.domain.incident import PROGRESS, Assignment, AssignmentState, Incident, step_id
from services.dispatch.leg.store import AssignmentRow, ListedIncident, PeerRow, StepRow
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, following_pb2

LEGS: dict[str, alert_pb2.Leg.ValueType] = {
    "probation": alert_pb2.PROBATION,
    "police": alert_pb2.POLICE,
    "warning": alert_pb2.WARNING,
}

AGENCIES = ("probation", "police")
"""Legs with staffed desks, which can telephone another leg that shows no steps."""
_RINGS = (alert_pb2.RING_ENTERED, alert_pb2.RING_CLEARED)
REASON_MAX_CHARS = 200
NOTE_MAX_CHARS = 500
_DEMANDS = frozenset(int(demand) for demand in Demand)


def alert(payload: bytes, leg: str, subject: str | None = None) -> Alert | None:
    """The alert of a payload stored under `subject`, as one leg sees it; None where the alert belongs to no incident.

    Raises InvalidField where the payload can't be parsed or lacks a field that a leg needs.
    """
    message = stored.alert(payload, subject)
    if int(message.demand) not in _DEMANDS:
        raise InvalidField("demand", "is missing or unknown")
    if not message.incident_id:
        if message.incident_ends:
            raise InvalidField("incident_id", "is missing")
        return None
    subjects: dict[str, None] = {}
    others: set[str] = set()
    for number, destination in enumerate(message.destinations):
        if destination.leg not in LEGS.values():
            raise InvalidField(f"destinations[{number}].leg", "is missing or unknown")
        for part in destination.subject_id.split("/", 1):  # a place is `order/place`
            fields.required_id(f"destinations[{number}].subject_id", part)
        subject_id = destination.subject_id
        if destination.leg == LEGS[leg]:
            subjects[subject_id] = None
        else:
            others.add(leg_name(destination.leg))
    cause = None
    if message.HasField("cause"):
        report = message.cause
        if leg == "probation" and not report.of_wearer:
            # Probation's desk must not learn of the protected person's devices; the time alone serves to measure latency.
            cause = Cause("", "", report.received_wall_us)
        else:
            cause = Cause(report.device_id, report.report_id, report.received_wall_us)
    return Alert(
        alert_id=message.alert_id,
        incident_id=message.incident_id,
        place=(message.sequence, message.ordinal),
        kind=message.kind,
        demand=Demand(message.demand),
        order_id=fields.required_id("order_id", message.order_id),
        threat=_threat(message),
        subject_ids=tuple(subjects),
        ends=message.incident_ends,
        cause=cause,
        legs=tuple(sorted(others)) if leg in AGENCIES and _is_live(message) else (),
        wearer_id=_followed(message),
        ring_m=message.ring_m if message.kind in _RINGS else 0.0,
        exercise=_exercise(message.exercise),
    )


def _is_live(message: alert_pb2.Alert) -> bool:
    """Whether the other legs' steps are awaited. For canaries the watch checks all legs."""
    return message.demand == geometry_pb2.RESPOND and message.exercise != exercise_pb2.CANARY


def _followed(message: alert_pb2.Alert) -> str:
    """The wearer whom units follow; empty where there is none, and for a canary, which sends nobody and shares no position."""
    if not message.wearer_id or message.exercise == exercise_pb2.CANARY:
        return ""
    return fields.required_id("wearer_id", message.wearer_id)


def _exercise(number: int) -> Exercise:
    """The exercise of a number. An unknown kind of exercise, of a newer fold, becomes a drill and never a live alert."""
    return Exercise(number) if number in {int(known) for known in Exercise} else Exercise.DRILL


def _threat(message: alert_pb2.Alert) -> str:
    """Key of an alert's threat: a ring around a target, or a kind of event under an order.

    The key is hashed, since another leg's destination must not be in this leg's record.
    """
    if message.kind in _RINGS:
        return ids.hash_id("threat", message.order_id, message.target_id, str(message.ring_m))
    # The target is left out: the end alert of a device that the case has given up has no target.
    return ids.hash_id("threat", message.order_id, message.kind)


def peer(payload: bytes, subject: str, leg: str) -> PeerRow:
    """The assignment of another leg's step, published on `subject`, without fields that this leg may not see.

    Raises InvalidField where the payload can't be parsed.
    """
    message = stored.step(payload, subject)
    assignment = message.assignment
    # Only that leg's own desk may see which device reported, and that it was a protective one.
    assignment.ClearField("cause")
    assignment.ClearField("kind")
    assignment.ClearField("stood_down_kind")
    if leg != "police":
        assignment.ClearField("person_flag")  # it says that her phone is off, or not in her hands
    _remove_private_fields(assignment)
    return PeerRow(
        assignment_id=assignment.assignment_id,
        incident_id=assignment.incident_id,
        number=message.number,
        payload=assignment.SerializeToString(deterministic=True),
    )


def outward(step: dispatch_pb2.Step) -> bytes:
    """A step without private fields, serialised for INCIDENTS, where the other agency's leg reads it."""
    message = dispatch_pb2.Step()
    message.CopyFrom(step)
    _remove_private_fields(message.assignment)
    return message.SerializeToString()


def _remove_private_fields(assignment: dispatch_pb2.Assignment) -> None:
    """Clears the fields that stay with the leg: free text, which may contain an address, and facts about units and targets.

    A unit's travel time reveals the protected person's distance, and so does a race that is being lost.
    """
    if assignment.leg != alert_pb2.WARNING:
        assignment.ClearField("person_flag")
    for name in ("rejected_reason", "close_note", "retargeted_at", "race", "one_scene_at", "spoofing_suspected_at"):
        assignment.ClearField(name)
    if assignment.escalation_reason in (dispatch_pb2.TARGET_MOVED, dispatch_pb2.RACE_LOST):
        assignment.ClearField("escalation_reason")
    if assignment.HasField("choice"):
        choice = dispatch_pb2.Choice(level=assignment.choice.level, unit_class=assignment.choice.unit_class)
        assignment.choice.CopyFrom(choice)


def leg_name(leg: alert_pb2.Leg.ValueType) -> str:
    """The name of a leg in flow.LEGS."""
    return next(name for name, value in LEGS.items() if value == leg)


def advice(step: dispatch_pb2.Step) -> bytes | None:
    """The serialised advice of a police step for the warning leg; None where the step carries no new advice."""
    assignment = step.assignment
    if assignment.leg != alert_pb2.POLICE or not step.kept or assignment.race.since != step.at:
        return None
    return following_pb2.AdviceGiven(
        advice_id=step.step_id,
        incident_id=assignment.incident_id,
        order_ids=assignment.order_ids,
        subject_id=assignment.subject_id,
        advice=assignment.race.advice,
        at=step.at,
        number=step.number,
        sequence=assignment.race.sequence,
        ordinal=assignment.race.ordinal,
    ).SerializeToString()


def step(
    incident: Incident, assignment: Assignment, at_ms: int, *, latency_ms: float | None, kept: bool = False
) -> dispatch_pb2.Step:
    """The message of an assignment's last step. A step that is `kept` isn't published to other legs."""
    return dispatch_pb2.Step(
        step_id=step_id(assignment),
        at=times.to_timestamp(at_ms),
        assignment=assignment_message(incident, assignment, latency_ms),
        number=assignment.number,
        kept=kept,
    )


def assignment_message(incident: Incident, assignment: Assignment, latency_ms: float | None) -> dispatch_pb2.Assignment:
    """The message of an assignment, with the latency of its offer in milliseconds where it is known."""
    message = dispatch_pb2.Assignment(
        assignment_id=assignment.assignment_id,
        incident_id=incident.incident_id,
        leg=LEGS[incident.leg],
        subject_id=assignment.subject_id,
        order_ids=incident.order_ids,
        state=dispatch_pb2.AssignmentState.ValueType(assignment.state),
        demand=geometry_pb2.Demand.ValueType(assignment.demand),
        acknowledged_by=assignment.acknowledged_by,
        kind=alert_pb2.AlertKind.ValueType(assignment.kind),
        offer_number=assignment.offer_number,
        escalation_reason=dispatch_pb2.EscalationReason.ValueType(assignment.escalation_reason),
        rejected_reason=assignment.rejected_reason,
        stood_down_kind=alert_pb2.AlertKind.ValueType(assignment.stood_down_kind),
        close_cause=dispatch_pb2.CloseCause.ValueType(assignment.close_cause or 0),
        close_note=assignment.close_note,
        absent_legs=[LEGS[leg] for leg in sorted(assignment.absent_legs)],
        exercise=exercise_pb2.Exercise.ValueType(incident.exercise),
    )
    for field, ms in (
        (message.offered_at, assignment.offered_ms),
        (message.acknowledged_at, assignment.acknowledged_ms),
        (message.received_at, assignment.received_ms),
        (message.due_at, assignment.due_ms),
        (message.nobody_available_at, assignment.nobody_ms),
        (message.retargeted_at, assignment.retargeted_ms),
        (message.one_scene_at, assignment.one_scene_ms),
        (message.spoofing_suspected_at, assignment.spoofing_suspected_ms),
    ):
        if ms is not None:
            field.CopyFrom(times.to_timestamp(ms))
    if assignment.flag is not None:
        message.person_flag.CopyFrom(_flag(assignment.flag))
    if assignment.choice is not None:
        message.choice.CopyFrom(_choice(assignment.choice))
    if assignment.raced is not None:
        message.race.CopyFrom(_race(assignment.raced, assignment.demanded))
    if latency_ms is not None:
        message.report_to_published_ms = latency_ms
    if assignment.cause is not None:
        message.cause.device_id = assignment.cause.device_id
        message.cause.report_id = assignment.cause.report_id
        message.cause.received_wall_us = assignment.cause.received_wall_us
    return message


def _flag(flag: Flagged) -> dispatch_pb2.PersonFlag:
    sequence, ordinal = flag.place
    return dispatch_pb2.PersonFlag(
        flag=dispatch_pb2.WarningFlag.ValueType(flag.flag),
        at=times.to_timestamp(flag.flagged_ms),
        alert_id=flag.alert_id,
        sequence=sequence,
        ordinal=ordinal,
    )


@dataclass(frozen=True, slots=True)
class PeerFlag:
    """Flag of a protected person in the warning leg's assignment, as the police read it."""

    incident_id: str
    order_id: str
    subject_id: str
    flag: WarningFlag
    flagged_ms: int
    """When the warning leg raised the flag, mesh time."""
    alert_id: str
    place: LogPosition


def peer_flag(row: PeerRow) -> PeerFlag | None:
    """The flag of another leg's assignment; None where it has none, or one that is unknown to this version."""
    assignment = dispatch_pb2.Assignment.FromString(row.payload)
    flag = assignment.person_flag
    if not assignment.HasField("person_flag") or int(flag.flag) not in {int(known) for known in WarningFlag}:
        return None
    return PeerFlag(
        incident_id=assignment.incident_id,
        order_id=assignment.order_ids[0] if assignment.order_ids else "",
        subject_id=assignment.subject_id,
        flag=WarningFlag(flag.flag),
        flagged_ms=times.from_timestamp(flag.at),
        alert_id=flag.alert_id,
        place=(flag.sequence, flag.ordinal),
    )


def _choice(choice: Choice) -> dispatch_pb2.Choice:
    return dispatch_pb2.Choice(
        level=dispatch_pb2.EscalationLevel.ValueType(choice.level),
        office_id=choice.office_id,
        unit_id=choice.unit_id,
        unit_class=choice.unit_class,
        desk=choice.desk,
        travel_s=choice.travel_s,
        estimate=dispatch_pb2.Estimate.ValueType(choice.estimate),
        candidates=choice.candidates,
        busy_in_incident_id=choice.busy_in,
        busy=choice.busy,
    )


def _race(raced: Raced, demanded: LogPosition) -> dispatch_pb2.Race:
    return dispatch_pb2.Race(
        losing=raced.losing,
        since=times.to_timestamp(raced.at_ms),
        advice=dispatch_pb2.Advice.ValueType(raced.advice),
        supervisor_desk=raced.supervisor_desk,
        wearer_s=raced.wearer_s,
        responder_s=raced.responder_s,
        by_ring=raced.by_ring,
        sequence=demanded[0],
        ordinal=demanded[1],
    )


def reason(text: str) -> str:
    """The validated reason of a rejection. Raises InvalidField."""
    if not text.strip():
        raise InvalidField("reason", "is missing: state why the desk refuses")
    return _text("reason", text, REASON_MAX_CHARS)


def progress(state: dispatch_pb2.AssignmentState.ValueType) -> AssignmentState:
    """The validated state of a unit's progress. Raises InvalidField."""
    if int(state) not in {int(known) for known in PROGRESS[1:]}:
        raise InvalidField("state", "must be DISPATCHED, EN_ROUTE, ON_SCENE or APPREHENDED")
    return AssignmentState(state)


def seen(state: dispatch_pb2.AssignmentState.ValueType) -> AssignmentState | None:
    """The validated state that a caller saw; None where the request has none. Raises InvalidField."""
    if not state:
        return None
    if int(state) not in {int(known) for known in AssignmentState}:
        raise InvalidField("seen_state", "is unknown")
    return AssignmentState(state)


def close_cause(cause: dispatch_pb2.CloseCause.ValueType, note: str) -> tuple[CloseCause, str]:
    """The validated cause and note of a closed assignment. Raises InvalidField."""
    if int(cause) not in {int(known) for known in CloseCause}:
        raise InvalidField("cause", "is missing or unknown")
    if cause == dispatch_pb2.OTHER and not note.strip():
        raise InvalidField("note", "is missing: describe the cause, since `cause` is OTHER")
    return CloseCause(cause), _text("note", note, NOTE_MAX_CHARS)


def _text(field: str, text: str, max_chars: int) -> str:
    if len(text) > max_chars:
        raise InvalidField(field, f"must be at most {max_chars} characters")
    if not text.isprintable():
        raise InvalidField(field, "must be one line of printable characters")
    return text


def stored_step(row: StepRow) -> dispatch_pb2.Step:
    """The message of a stored step, with the latency that became known after the step was stored."""
    message = dispatch_pb2.Step.FromString(row.payload)
    if row.report_to_published_ms is not None and message.assignment.HasField("offered_at"):
        message.assignment.report_to_published_ms = row.report_to_published_ms
    return message


def stored_assignment(row: AssignmentRow) -> dispatch_pb2.Assignment:
    """The message of a stored assignment, with the latency of its offer where it is known."""
    message = dispatch_pb2.Assignment.FromString(row.payload)
    if row.report_to_published_ms is not None:
        message.report_to_published_ms = row.report_to_published_ms
    return message


def listed_incident(listed: ListedIncident) -> dispatch_pb2.Incident:
    """The message of an incident: this leg's assignments first, then other legs' assignments by leg."""
    peers = [dispatch_pb2.Assignment.FromString(payload) for payload in listed.peers]
    message = dispatch_pb2.Incident(
        incident_id=listed.row.incident_id,
        order_ids=listed.row.order_ids,
        opened_at=times.to_timestamp(listed.row.opened_ms),
        assignments=[stored_assignment(row) for row in listed.own] + sorted(peers, key=lambda peer: peer.leg),
    )
    if listed.row.ended_ms is not None:
        message.ended_at.CopyFrom(times.to_timestamp(listed.row.ended_ms))
    return message
