"""What each alert, deadline and acknowledgement does to a leg's assignments. Pure.

`decide` says what happens, `incident.evolve` says what that makes of the incident.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain.events import (
    Acknowledged,
    AlertFolded,
    Cause,
    Demand,
    Escalated,
    Event,
    Notified,
    Offered,
    OfferedAgain,
    Place,
    Step,
    StoodDown,
)
from services.dispatch.domain.incident import (
    FIRST_STATE,
    UNANSWERED,
    Assignment,
    Incident,
    State,
    assignment_id,
    evolve,
)

LONGEST_WAIT_MS = 3_600_000
"""Longest time between two escalations of one assignment."""


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


@dataclass(frozen=True, slots=True)
class FoldAlert:
    """An alert arrived."""

    alert: Alert
    now_ms: int
    within_ms: int
    """How long the desk has to acknowledge."""


@dataclass(frozen=True, slots=True)
class PassDeadline:
    """The time to acknowledge may be over."""

    assignment_id: str
    now_ms: int
    within_ms: int
    """How long until it is escalated again, the first time; then twice as long each time, up to an hour."""


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """The desk takes an assignment."""

    assignment_id: str
    by: str
    """SPIFFE id of who takes it."""
    now_ms: int


Command: TypeAlias = FoldAlert | PassDeadline | Acknowledge


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
    assignment = incident.assignments.get(command.assignment_id)
    if isinstance(command, PassDeadline):
        if assignment is None or assignment.due_ms is None or assignment.due_ms > command.now_ms:
            return ()
        # Again and again, but ever more rarely: who hasn't answered for an hour isn't moved by a message every 10 s.
        escalations = assignment.number - assignment.offer_number
        within_ms = min(command.within_ms << min(escalations, 16), max(LONGEST_WAIT_MS, command.within_ms))
        return (Escalated(command.now_ms, assignment.assignment_id, command.now_ms + within_ms),)
    if assignment is None:
        raise NotFound("no such assignment")
    if assignment.state is State.ACKNOWLEDGED:
        return ()
    if assignment.state not in UNANSWERED:
        raise FailedPrecondition(f"the assignment is {assignment.state.name}: there is nothing to acknowledge")
    return (Acknowledged(command.now_ms, assignment.assignment_id, command.by),)


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
    )
    yield folded
    incident = evolve(incident, folded)
    due_ms = now_ms + command.within_ms
    for id_, subject in by_id.items():
        if not _leads_to(wanted, incident.assignments.get(id_), alert.place, incident.end):
            continue
        step: Step
        if wanted is State.OFFERED:
            step = Offered(now_ms, id_, subject, alert.demand, alert.place, alert.cause, due_ms, alert.kind)
        else:
            step = Notified(now_ms, id_, subject, alert.demand, alert.place, alert.cause, alert.kind)
        yield step
        incident = evolve(incident, step)
    # One that waits for an answer is offered all the time, and one that was escalated is not taken from the supervisor.
    for id_, assignment in incident.assignments.items():
        if assignment.state is State.ACKNOWLEDGED and (id_ in graver or incident.is_asked_anew(id_)):
            asking = folded if id_ in graver else incident.asked[id_].last
            again = OfferedAgain(now_ms, id_, asking.alert_id, asking.demand, asking.kind, asking.cause, due_ms)
            yield again
            incident = evolve(incident, again)
    for assignment in incident.assignments.values():
        if assignment.state is not State.STOOD_DOWN and assignment.demanded <= incident.end:
            yield StoodDown(now_ms, assignment.assignment_id)


def _leads_to(wanted: State | None, assignment: Assignment | None, place: Place, end: Place) -> bool:
    if assignment is None:
        return True
    if assignment.state is State.STOOD_DOWN:
        # A demand that its own end has overtaken still shows in the record as offered. One that follows the end would
        # be against the contract of the fold, but a demand is never lost.
        return place > end or (wanted is State.OFFERED and assignment.offered_ms is None)
    return assignment.state is State.NOTIFIED and wanted is State.OFFERED
