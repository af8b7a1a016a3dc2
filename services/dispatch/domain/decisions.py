"""Decisions on a leg's assignments after each alert, deadline and answer. Pure.

`decide` turns a command into events, and `evolving.evolve` applies an event to the incident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from services.dispatch.domain import answers, escalation, flags, following
from services.dispatch.domain.answers import Answering
from services.dispatch.domain.enums import Demand, EscalationReason, Exercise
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import (
    SPOOFING_SUSPECTED,
    AlertFolded,
    AlertWasMissing,
    Cause,
    Event,
    LegAbsent,
    LegReturned,
    LogPosition,
    Notified,
    Offered,
    Reoffered,
    SpoofingSuspected,
    Step,
    StepsLost,
    StoodDown,
)
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, ShowTargets
from services.dispatch.domain.incident import (
    ACCEPTED,
    FIRST_STATE,
    OVER,
    UNANSWERED,
    Assignment,
    AssignmentState,
    Incident,
    assignment_id,
)
from services.dispatch.domain.roster import NO_ROSTER, Board


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an incident, reduced to the fields that one leg needs."""

    alert_id: str
    incident_id: str
    place: LogPosition
    kind: int
    """Number of the tandem.common.v1.AlertKind, which may be newer than this leg."""
    demand: Demand
    order_id: str
    threat: str
    """Key of the threat, the same at its begin and at its end. An alert with demand RECORD says that its threat is over."""
    subject_ids: tuple[str, ...]
    """This leg's destinations, without duplicates."""
    ends: bool
    """The alert ends the incident."""
    cause: Cause | None
    legs: tuple[str, ...] = ()
    """Other legs whose response the alert demands, as far as this leg watches them."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 where the alert concerns no ring."""
    exercise: Exercise = Exercise.NONE


@dataclass(frozen=True, slots=True)
class FoldAlert:
    """Command: apply an alert that arrived."""

    alert: Alert
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER
    was_missing: bool = False
    """The alert was found by the comparison with ALERTS, not by the reader of the stream."""


@dataclass(frozen=True, slots=True)
class PassDeadline:
    """Command: check whether the deadline of an assignment has passed."""

    assignment_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


@dataclass(frozen=True, slots=True)
class LoseUnit:
    """Command: check after a roster change whether the unit of an assignment is gone."""

    assignment_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board


@dataclass(frozen=True, slots=True)
class ReportLeg:
    """Command: report that another leg is absent, or has returned."""

    leg: str
    returned: bool
    """True if the leg was absent and shows steps now; False if it showed no step by its deadline."""
    now_ms: int


@dataclass(frozen=True, slots=True)
class CompareSteps:
    """Command: compare an assignment with the number of its last step on INCIDENTS."""

    assignment_id: str
    number: int
    """Number of the last step of the assignment on INCIDENTS."""
    now_ms: int


Command: TypeAlias = (
    FoldAlert | PassDeadline | LoseUnit | ReportLeg | CompareSteps | Flag | Follow | ShowTargets | Answering
)


def concerns(leg: str, alert: Alert) -> bool:
    """Whether an alert matters to a leg: it demands a reaction, says that a threat is over, or ends the incident."""
    return alert.ends or (
        (alert.demand in FIRST_STATE[leg] or alert.demand is Demand.RECORD) and bool(alert.subject_ids)
    )


def decide(incident: Incident, command: Command) -> tuple[Event, ...]:
    """Events that a command leads to; empty where the command was applied before.

    Raises NotFound or FailedPrecondition where the desk asks for an impossible change.
    """
    if isinstance(command, FoldAlert):
        return tuple(_fold(incident, command))
    if isinstance(command, PassDeadline):
        return tuple(_pass(incident, command))
    if isinstance(command, LoseUnit):
        return tuple(_lose(incident, command))
    if isinstance(command, ReportLeg):
        return tuple(_report_leg(incident, command))
    if isinstance(command, CompareSteps):
        assignment = incident.assignments.get(command.assignment_id)
        if assignment is None or assignment.number >= command.number:
            return ()
        return (StepsLost(command.now_ms, command.assignment_id, command.number),)
    if isinstance(command, Flag):
        return tuple(flags.decide(incident, command))
    if isinstance(command, Follow | ShowTargets):
        return tuple(following.decide(incident, command))
    return tuple(answers.decide(incident, command))


def _pass(incident: Incident, command: PassDeadline) -> Iterator[Event]:
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is None or assignment.due_ms is None or assignment.due_ms > command.now_ms:
        return
    escalation_reason = EscalationReason.NOT_ACKNOWLEDGED
    if assignment.state not in UNANSWERED:
        escalation_reason = EscalationReason.NOT_DISPATCHED
    elif assignment.choice and assignment.received_ms is None:
        escalation_reason = EscalationReason.NOT_RECEIVED
    yield escalation.escalated(
        incident, assignment, escalation_reason, now_ms=command.now_ms, deadlines=command.deadlines, board=command.board
    )


def _lose(incident: Incident, command: LoseUnit) -> Iterator[Event]:
    assignment = incident.assignments.get(command.assignment_id)
    # A unit on the scene may end its shift while the paperwork goes on.
    if (
        assignment is None
        or not assignment.unit_id
        or command.board.can_go(assignment.unit_id)
        or assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)
    ):
        return
    yield escalation.escalated(
        incident,
        assignment,
        EscalationReason.UNIT_GONE,
        now_ms=command.now_ms,
        deadlines=command.deadlines,
        board=command.board,
    )


def _report_leg(incident: Incident, command: ReportLeg) -> Iterator[Event]:
    leg, now_ms = command.leg, command.now_ms
    for id_, assignment in incident.assignments.items():
        if command.returned and leg in assignment.absent_legs:
            yield LegReturned(now_ms, id_, leg)
        elif not command.returned and leg not in assignment.absent_legs and assignment.state not in OVER:
            yield LegAbsent(now_ms, id_, leg)


def _fold(incident: Incident, command: FoldAlert) -> Iterator[Event]:
    alert, now_ms = command.alert, command.now_ms
    if alert.alert_id in incident.alert_ids or not concerns(incident.leg, alert):
        return
    wanted = FIRST_STATE[incident.leg].get(alert.demand)
    subjects = alert.subject_ids if wanted else ()
    by_id = {assignment_id(incident.incident_id, incident.leg, subject): subject for subject in subjects}
    # A person who confirmed the warning of a wide ring must also be warned of a nearer one. A unit on its way isn't sent twice.
    graver = {
        id_
        for id_ in by_id
        if incident.leg == "warning"
        and id_ in incident.assignments
        and alert.demand > incident.assignments[id_].offer_demand
    }
    if command.was_missing:
        yield AlertWasMissing(now_ms, alert.alert_id)
    folded = AlertFolded(
        at_ms=now_ms,
        alert_id=alert.alert_id,
        place=alert.place,
        demand=alert.demand,
        order_id=alert.order_id,
        assignment_ids=tuple(by_id),
        ends=alert.ends,
        kind=alert.kind,
        threat=alert.threat,
        cause=alert.cause,
        legs=alert.legs if wanted else (),
        wearer_id=alert.wearer_id,
        ring_m=alert.ring_m,
        exercise=alert.exercise,
    )
    yield folded
    incident = evolve(incident, folded)
    for id_, subject in by_id.items():
        if not _leads_to(wanted, incident.assignments.get(id_), alert.place, end=incident.end):
            continue
        step: Step
        if wanted is AssignmentState.OFFERED:
            first = escalation.first(
                incident, id_, subject, kind=alert.kind, now_ms=now_ms, deadlines=command.deadlines, board=command.board
            )
            step = Offered(
                *(now_ms, id_, subject, alert.demand, alert.place, alert.cause, first.due_ms, alert.kind, first.choice)
            )
        else:
            first = None
            step = Notified(
                at_ms=now_ms,
                assignment_id=id_,
                subject_id=subject,
                demand=alert.demand,
                place=alert.place,
                cause=alert.cause,
                kind=alert.kind,
            )
        yield step
        incident = evolve(incident, step)
        if first:
            for event in first.then:
                yield event
                incident = evolve(incident, event)
    # Only accepted assignments are re-offered: an unanswered offer is still open, and an escalated one stays with the supervisor.
    for id_, assignment in incident.assignments.items():
        if assignment.state in ACCEPTED and (id_ in graver or incident.needs_reoffer(id_)):
            asking = folded if id_ in graver else incident.asked[id_].last
            first = escalation.first(
                incident,
                id_,
                assignment.subject_id,
                kind=asking.kind,
                now_ms=now_ms,
                deadlines=command.deadlines,
                board=command.board,
            )
            reoffered = Reoffered(
                *(now_ms, id_, asking.alert_id, asking.demand, asking.kind, asking.cause, first.due_ms, first.choice)
            )
            for event in (reoffered, *first.then):
                yield event
                incident = evolve(incident, event)
    if alert.kind == SPOOFING_SUSPECTED and wanted is AssignmentState.NOTIFIED:
        # A notice makes no step where a unit is already going. This one must: spoofed positions may show that the wearer has left.
        for id_, assignment in incident.assignments.items():
            if assignment.state not in OVER:
                suspected = SpoofingSuspected(now_ms, id_, alert.alert_id)
                yield suspected
                incident = evolve(incident, suspected)
    for assignment in incident.assignments.values():
        if assignment.state not in OVER and assignment.demanded <= incident.end:
            stood_down = StoodDown(now_ms, assignment.assignment_id, incident.end_kind)
            yield stood_down
            incident = evolve(incident, stood_down)
    yield from following.scenes(incident, now_ms)


def _leads_to(
    wanted: AssignmentState | None, assignment: Assignment | None, place: LogPosition, *, end: LogPosition
) -> bool:
    if assignment is None:
        return True
    if assignment.state is AssignmentState.STOOD_DOWN:
        # A demand whose end arrived first is still recorded as offered. A demand after the end would break the contract of the
        # fold, but a demand is never lost.
        return place > end or (wanted is AssignmentState.OFFERED and assignment.offered_ms is None)
    if assignment.state is AssignmentState.CLOSED:
        # When the desk closed the assignment it knew all demands up to closed_place. A later demand needs a new offer, since no
        # unit is on the way any more.
        return place > max(end, assignment.closed_place) or (
            wanted is AssignmentState.OFFERED and assignment.offered_ms is None
        )
    return assignment.state is AssignmentState.NOTIFIED and wanted is AssignmentState.OFFERED
