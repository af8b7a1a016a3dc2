"""What each alert, deadline and acknowledgement does to a leg's assignments. Pure.

`decide` says what happens, `evolving.evolve` says what that makes of the incident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from services.dispatch.domain import answers, escalation, flags, following
from services.dispatch.domain.answers import Answering
from services.dispatch.domain.escalation import Deadlines
from services.dispatch.domain.events import (
    SPOOFING_SUSPECTED,
    AlertFolded,
    AlertWasMissing,
    Cause,
    Demand,
    EscalationReason,
    Event,
    Exercise,
    LegAbsent,
    LegReturned,
    Notified,
    Offered,
    Place,
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
    FIRST_STATE,
    OVER,
    TAKEN,
    UNANSWERED,
    Assignment,
    AssignmentState,
    Incident,
    assignment_id,
)
from services.dispatch.domain.roster import NO_ROSTER, Board


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an incident, as far as one leg is concerned."""

    alert_id: str
    incident_id: str
    place: Place
    kind: int
    """Number of the tandem.common.v1.AlertKind, which may be one that this leg doesn't know yet."""
    demand: Demand
    order_id: str
    threat: str
    """Names what it is about, the same where that begins and where it is over: a RECORD of a threat says that it is over."""
    subject_ids: tuple[str, ...]
    """This leg's destinations, each once."""
    ends: bool
    """The incident ends with it."""
    cause: Cause | None
    legs: tuple[str, ...] = ()
    """Other legs that it demands a response of, as far as this leg looks after them."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 where the alert isn't of a ring."""
    exercise: Exercise = Exercise.NONE


@dataclass(frozen=True, slots=True)
class FoldAlert:
    """An alert arrived."""

    alert: Alert
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER
    was_missing: bool = False
    """It didn't arrive by itself: a comparison found it."""


@dataclass(frozen=True, slots=True)
class PassDeadline:
    """The time for the next step may be over."""

    assignment_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board = NO_ROSTER


@dataclass(frozen=True, slots=True)
class LoseUnit:
    """The roster changed: the unit that has a part in an assignment may be gone."""

    assignment_id: str
    now_ms: int
    deadlines: Deadlines
    board: Board


@dataclass(frozen=True, slots=True)
class LookForLeg:
    """Another leg should have shown a step of what an alert of the incident demands of it."""

    leg: str
    seen: bool
    """It shows some now, having been absent; else its time for that is over."""
    now_ms: int


@dataclass(frozen=True, slots=True)
class FindSteps:
    """INCIDENTS holds steps of an assignment up to a number."""

    assignment_id: str
    number: int
    now_ms: int


Command: TypeAlias = (
    FoldAlert | PassDeadline | LoseUnit | LookForLeg | FindSteps | Flag | Follow | ShowTargets | Answering
)


def concerns(leg: str, alert: Alert) -> bool:
    """Whether an alert demands something of a leg, says that what may have done so is over, or ends the incident."""
    return alert.ends or (
        (alert.demand in FIRST_STATE[leg] or alert.demand is Demand.RECORD) and bool(alert.subject_ids)
    )


def decide(incident: Incident, command: Command) -> tuple[Event, ...]:
    """What a command leads to; nothing where it was done before.

    Raises NotFound or FailedPrecondition where the desk asks for what isn't possible.
    """
    if isinstance(command, FoldAlert):
        return tuple(_fold(incident, command))
    if isinstance(command, PassDeadline):
        return tuple(_pass(incident, command))
    if isinstance(command, LoseUnit):
        return tuple(_lose(incident, command))
    if isinstance(command, LookForLeg):
        return tuple(_look_for_leg(incident, command))
    if isinstance(command, FindSteps):
        found = incident.assignments.get(command.assignment_id)
        if found is None or found.number >= command.number:
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
    yield escalation.climbed(incident, assignment, escalation_reason, command.now_ms, command.deadlines, command.board)


def _lose(incident: Incident, command: LoseUnit) -> Iterator[Event]:
    assignment = incident.assignments.get(command.assignment_id)
    # Who is there already may go off the roster while the rest is written down.
    if (
        assignment is None
        or not assignment.unit_id
        or command.board.can_go(assignment.unit_id)
        or assignment.state in (AssignmentState.ON_SCENE, AssignmentState.APPREHENDED)
    ):
        return
    yield escalation.climbed(
        incident, assignment, EscalationReason.UNIT_GONE, command.now_ms, command.deadlines, command.board
    )


def _look_for_leg(incident: Incident, command: LookForLeg) -> Iterator[Event]:
    leg, now_ms = command.leg, command.now_ms
    for id_, assignment in incident.assignments.items():
        if command.seen and leg in assignment.absent_legs:
            yield LegReturned(now_ms, id_, leg)
        elif not command.seen and leg not in assignment.absent_legs and assignment.state not in OVER:
            yield LegAbsent(now_ms, id_, leg)


def _fold(incident: Incident, command: FoldAlert) -> Iterator[Event]:
    alert, now_ms = command.alert, command.now_ms
    if alert.alert_id in incident.alert_ids or not concerns(incident.leg, alert):
        return
    wanted = FIRST_STATE[incident.leg].get(alert.demand)
    subjects = alert.subject_ids if wanted else ()
    by_id = {assignment_id(incident.incident_id, incident.leg, subject): subject for subject in subjects}
    # Who was warned of a wide ring and confirmed it must be warned again of a nearer one; a unit that is on its way isn't sent twice.
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
        if not _leads_to(wanted, incident.assignments.get(id_), alert.place, incident.end):
            continue
        step: Step
        if wanted is AssignmentState.OFFERED:
            first = escalation.first(incident, id_, subject, alert.kind, now_ms, command.deadlines, command.board)
            step = Offered(
                *(now_ms, id_, subject, alert.demand, alert.place, alert.cause, first.due_ms, alert.kind, first.choice)
            )
        else:
            first = None
            step = Notified(now_ms, id_, subject, alert.demand, alert.place, alert.cause, alert.kind)
        yield step
        incident = evolve(incident, step)
        if first:
            for event in first.then:
                yield event
                incident = evolve(incident, event)
    # One that waits for an answer is offered all the time, and one that was escalated is not taken from the supervisor.
    for id_, assignment in incident.assignments.items():
        if assignment.state in TAKEN and (id_ in graver or incident.is_asked_anew(id_)):
            asking = folded if id_ in graver else incident.asked[id_].last
            first = escalation.first(
                *(incident, id_, assignment.subject_id, asking.kind, now_ms, command.deadlines, command.board)
            )
            again = Reoffered(
                *(now_ms, id_, asking.alert_id, asking.demand, asking.kind, asking.cause, first.due_ms, first.choice)
            )
            for event in (again, *first.then):
                yield event
                incident = evolve(incident, event)
    if alert.kind == SPOOFING_SUSPECTED and wanted is AssignmentState.NOTIFIED:
        # Where somebody goes already a notice makes no step, and this one must not be missed: positions say that the wearer has left.
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


def _leads_to(wanted: AssignmentState | None, assignment: Assignment | None, place: Place, end: Place) -> bool:
    if assignment is None:
        return True
    if assignment.state is AssignmentState.STOOD_DOWN:
        # A demand that its own end has overtaken still shows in the record as offered. One that follows the end would
        # be against the contract of the fold, but a demand is never lost.
        return place > end or (wanted is AssignmentState.OFFERED and assignment.offered_ms is None)
    if assignment.state is AssignmentState.CLOSED:
        # The desk knew of what was asked by then; whatever follows asks anew, since nobody is on the way any more.
        return place > max(end, assignment.closed_place) or (
            wanted is AssignmentState.OFFERED and assignment.offered_ms is None
        )
    return assignment.state is AssignmentState.NOTIFIED and wanted is AssignmentState.OFFERED
