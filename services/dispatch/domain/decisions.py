"""Decisions on a leg's assignments after each alert, deadline and answer, and on the notes of its desk. Pure.

`decide` turns a command into events, and `incident.evolve` applies an event to the incident.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias, assert_never

from services.common import ids
from services.common.errors import FailedPrecondition, NotFound
from services.dispatch.domain import answers, contact, escalation, flags, following
from services.dispatch.domain.answers import (
    Acknowledge,
    Answering,
    Assure,
    Close,
    EndDistress,
    Progress,
    RaiseDistress,
    Receive,
    Reject,
    SendByRadio,
    Sending,
    SendUnit,
)
from services.dispatch.domain.assignment import ACCEPTED, OVER, Assignment, AssignmentState, assignment_id
from services.dispatch.domain.contact import Confirm, ContactCommand, RecordCall
from services.dispatch.domain.enums import Demand, Exercise, SubjectKind, Task
from services.dispatch.domain.escalation import LoseUnit, PassDeadline, Situation
from services.dispatch.domain.events import (
    SPOOFING_SUSPECTED,
    AlertFolded,
    AlertWasMissing,
    Event,
    LegAbsent,
    LegReturned,
    LogPosition,
    NoteAdded,
    NotedResult,
    NoteKind,
    Notified,
    Offered,
    PanicCalled,
    PanicWithdrawn,
    Reoffered,
    SpoofingSuspected,
    StepsLost,
    StoodDown,
)
from services.dispatch.domain.flags import Flag
from services.dispatch.domain.following import Follow, ShowTargets
from services.dispatch.domain.incident import Alert, Decided, Incident, Panic
from services.dispatch.domain.leg import Leg

MAX_INCIDENT_NOTES = 500
"""Maximum number of notes of one leg in an incident."""


TOO_MANY_NOTES = "TOO_MANY_NOTES"
"""Machine-readable reason for refusing a note."""


@dataclass(frozen=True, slots=True)
class AddNote:
    """Command: add a note to an incident."""

    by: str
    """SPIFFE id of the caller."""
    note_key: str
    """Id that the caller chose. A second note with the same key isn't added."""
    kind: NoteKind
    result: NotedResult
    text: str
    kept: bool


@dataclass(frozen=True, slots=True)
class FoldAlert:
    """Command: apply an alert that arrived."""

    alert: Alert
    was_missing: bool = False
    """True if the reader of ALERTS missed the alert and the later comparison with the stream found it."""


@dataclass(frozen=True, slots=True)
class ReportLeg:
    """Command: report that another leg is absent, or has returned."""

    leg: Leg
    returned: bool
    """True if the leg was absent and shows steps now; False if it showed no step by its deadline."""


@dataclass(frozen=True, slots=True)
class CompareSteps:
    """Command: compare an assignment with the number of its last step on INCIDENTS."""

    assignment_id: str
    number: int
    """Number of the last step of the assignment on INCIDENTS."""


Command: TypeAlias = (
    FoldAlert
    | PassDeadline
    | LoseUnit
    | ReportLeg
    | CompareSteps
    | Flag
    | Follow
    | ShowTargets
    | Answering
    | Sending
    | ContactCommand
    | AddNote
)


def concerns(leg: Leg, alert: Alert) -> bool:
    """Whether a leg must apply an alert: it demands something of the leg, says that a threat is over, or ends the incident."""
    matters = alert.demand in leg.policy.offers | leg.policy.notifies or alert.demand is Demand.RECORD
    return alert.ends or bool(alert.check_subject_ids) or (matters and bool(alert.subject_ids))


def decide(incident: Incident, command: Command, situation: Situation) -> tuple[Event, ...]:
    """Events that a command leads to; empty if the command was applied before.

    Raises NotFound or FailedPrecondition if the desk asks for an impossible change.
    """
    return tuple(_events(incident, command, situation))


def _events(incident: Incident, command: Command, situation: Situation) -> Iterable[Event]:
    match command:
        case FoldAlert():
            return _fold(incident, command, situation)
        case PassDeadline() | LoseUnit():
            return escalation.decide(incident, command, situation)
        case ReportLeg() | CompareSteps():
            return _find(incident, command, situation.now_ms)
        case Flag():
            return flags.decide(incident, command, situation)
        case Follow() | ShowTargets():
            return following.decide(incident, command, situation)
        case Receive() | Acknowledge() | Reject() | Progress() | Assure() | Close() | RaiseDistress() | EndDistress():
            return answers.decide(incident, command, situation)
        case SendUnit() | SendByRadio():
            return answers.decide_sending(incident, command, situation)
        case AddNote():
            return _add_note(incident, command, situation.now_ms)
        case Confirm() | RecordCall():
            return contact.decide_contact(incident, command, situation.now_ms)
        case _:
            assert_never(command)


def _find(incident: Incident, command: ReportLeg | CompareSteps, now_ms: int) -> Iterator[Event]:
    """Findings of the leg about its own record and the other legs."""
    match command:
        case ReportLeg():
            return _report_leg(incident, command, now_ms)
        case CompareSteps():
            return _compare_steps(incident, command, now_ms)
        case _:
            assert_never(command)


def _report_leg(incident: Incident, command: ReportLeg, now_ms: int) -> Iterator[Event]:
    leg = command.leg
    for id_, assignment in incident.assignments.items():
        if assignment.contact:
            continue  # no other leg takes part in a contact
        if command.returned and leg in assignment.absent_legs:
            yield LegReturned(now_ms, id_, leg)
        elif not command.returned and leg not in assignment.absent_legs and assignment.state not in OVER:
            yield LegAbsent(now_ms, id_, leg)


def _compare_steps(incident: Incident, command: CompareSteps, now_ms: int) -> Iterator[Event]:
    assignment = incident.assignments.get(command.assignment_id)
    if assignment is not None and assignment.number < command.number:
        yield StepsLost(now_ms, command.assignment_id, command.number)


# ── an alert ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def _fold(incident: Incident, command: FoldAlert, situation: Situation) -> Iterable[Event]:
    alert, leg = command.alert, incident.leg
    if alert.alert_id in incident.alerts or not concerns(leg, alert):
        return ()
    matters = alert.demand in leg.policy.offers | leg.policy.notifies
    subjects = {
        assignment_id(incident.incident_id, leg, subject_id): subject_id
        for subject_id in (alert.subject_ids if matters else ())
    }
    checks = {
        assignment_id(incident.incident_id, leg, subject_id, task=Task.CHECK): subject_id
        for subject_id in alert.check_subject_ids
    }
    graver = _graver(incident, alert, subjects)
    decided = Decided(incident)
    if command.was_missing:
        decided.add(AlertWasMissing(situation.now_ms, alert.alert_id))
    folded = _folded(alert, tuple(subjects), alert.legs if matters else (), now_ms=situation.now_ms)
    decided.add(replace(folded, check_ids=tuple(checks)))
    _begin(decided, alert, subjects, task=Task.RESPOND, situation=situation)
    _begin(decided, alert, checks, task=Task.CHECK, situation=situation)
    _reoffer(decided, graver, situation)
    decided.add(*contact.fold_contact(decided.incident, alert, situation.now_ms))
    if alert.kind == SPOOFING_SUSPECTED and alert.demand in leg.policy.notifies:
        _suspect_spoofing(decided, alert, situation.now_ms)
    decided.add(*_panic_steps(decided.incident, alert, situation.now_ms))
    _stand_down(decided, situation.now_ms)
    decided.add(*following.scenes(decided.incident, situation.now_ms))
    return decided.events


def _graver(incident: Incident, alert: Alert, assignment_ids: Collection[str]) -> Mapping[str, Alert]:
    """The alert, under the id of each assignment that is re-offered because the alert demands more than the last offer did."""
    if not incident.leg.policy.reoffers_graver:
        return {}
    known = (incident.assignments[id_] for id_ in assignment_ids if id_ in incident.assignments)
    return {assignment.assignment_id: alert for assignment in known if alert.demand > assignment.offer_demand}


def _folded(alert: Alert, assignment_ids: tuple[str, ...], legs: tuple[Leg, ...], *, now_ms: int) -> AlertFolded:
    return AlertFolded(
        at_ms=now_ms,
        alert_id=alert.alert_id,
        place=alert.place,
        demand=alert.demand,
        order_id=alert.order_id,
        assignment_ids=assignment_ids,
        ends=alert.ends,
        kind=alert.kind,
        threat=alert.threat,
        cause=alert.cause,
        legs=legs,
        wearer_id=alert.wearer_id,
        ring_m=alert.ring_m,
        exercise=alert.exercise,
    )


def _begin(decided: Decided, alert: Alert, subjects: Mapping[str, str], *, task: Task, situation: Situation) -> None:
    """Adds an offer or a notice for each assignment that the alert begins. `subjects` is the destination by assignment id.

    A check is always offered: the law wants it at once, whatever the demand of the alert.
    """
    offers = task is Task.CHECK or alert.demand in decided.incident.leg.policy.offers
    for id_, subject_id in subjects.items():
        present = decided.incident.assignments.get(id_)
        kind = (
            SubjectKind.WEARER if task is Task.CHECK else alert.subject_kinds.get(subject_id, SubjectKind.UNSPECIFIED)
        )
        if present and not _begins_once_more(present, alert.place, decided.incident.end, offers=offers):
            continue
        if not offers:
            decided.add(
                Notified(
                    at_ms=situation.now_ms,
                    assignment_id=id_,
                    subject_id=subject_id,
                    demand=alert.demand,
                    place=alert.place,
                    cause=alert.cause,
                    kind=alert.kind,
                    subject_kind=kind,
                )
            )
            continue
        first = escalation.first(decided.incident, id_, subject_id, kind=alert.kind, situation=situation)
        offered = Offered(
            at_ms=situation.now_ms,
            assignment_id=id_,
            subject_id=subject_id,
            demand=alert.demand,
            place=alert.place,
            cause=alert.cause,
            due_ms=first.due_ms,
            open_until_ms=first.open_until_ms,
            kind=alert.kind,
            choice=first.choice,
            task=task,
            subject_kind=kind,
        )
        decided.add(offered, *first.then)


def _begins_once_more(assignment: Assignment, place: LogPosition, end: LogPosition, *, offers: bool) -> bool:
    """Whether a demand at log position `place` restarts an existing assignment. `end` is the last end of the incident."""
    # No demand is lost. Alerts come in any order, so a demand that arrives after the end of the incident is still offered once. The
    # fold never puts a demand after the end in the log; if it did, the demand would be offered too.
    never_offered = offers and assignment.offered_ms is None
    match assignment.state:
        case AssignmentState.STOOD_DOWN:
            return place > end or never_offered
        case AssignmentState.CLOSED:
            # When the desk closed the assignment, the desk knew all demands up to closed_place. A later demand needs a new offer:
            # no unit is on the way any more.
            return place > max(end, assignment.closed_place) or never_offered
        case AssignmentState.NOTIFIED:
            return offers
        case (
            AssignmentState.OFFERED
            | AssignmentState.ESCALATED
            | AssignmentState.NOBODY_AVAILABLE
            | AssignmentState.REJECTED
            | AssignmentState.ACKNOWLEDGED
            | AssignmentState.DISPATCHED
            | AssignmentState.EN_ROUTE
            | AssignmentState.ON_SCENE
            | AssignmentState.APPREHENDED
        ):
            return False
        case _:
            assert_never(assignment.state)


def _reoffer(decided: Decided, graver: Mapping[str, Alert], situation: Situation) -> None:
    # Only accepted assignments are re-offered: an unanswered offer, escalated or not, already asks somebody.
    # Nor is a check re-offered: nobody turns back from it when the threat is over.
    for id_, assignment in decided.incident.assignments.items():
        if assignment.state not in ACCEPTED or assignment.task is Task.CHECK:
            continue
        if not (id_ in graver or decided.incident.needs_reoffer(id_)):
            continue
        asking = graver.get(id_) or decided.incident.asked[id_].last
        first = escalation.first(decided.incident, id_, assignment.subject_id, kind=asking.kind, situation=situation)
        reoffered = Reoffered(
            at_ms=situation.now_ms,
            assignment_id=id_,
            alert_id=asking.alert_id,
            demand=asking.demand,
            kind=asking.kind,
            cause=asking.cause,
            due_ms=first.due_ms,
            open_until_ms=first.open_until_ms,
            choice=first.choice,
        )
        decided.add(reoffered, *first.then)


def _suspect_spoofing(decided: Decided, alert: Alert, now_ms: int) -> None:
    # Other notices make no step while a unit is on the way. This notice must: spoofed positions may show that the wearer has left.
    for id_, assignment in decided.incident.assignments.items():
        if assignment.state not in OVER and not assignment.contact:
            decided.add(SpoofingSuspected(now_ms, id_, alert.alert_id))


def _panic_steps(incident: Incident, alert: Alert, now_ms: int) -> Iterator[PanicCalled | PanicWithdrawn]:
    """Steps by which the desk and the units of open assignments learn that a protected person called for help, or took a call back.

    A unit that has accepted gets no other step by then: its assignment isn't re-offered. A repeated call is a step of its own.
    """
    panic = alert.panic
    if panic is None or not incident.leg.policy.has_units:
        return
    known = incident.panics.get(panic.caller, Panic())
    if alert.place <= (known.ended if panic.withdrawn else known.called):
        return
    for id_, assignment in incident.assignments.items():
        if assignment.state in OVER or assignment.contact:
            continue
        if panic.withdrawn:
            yield PanicWithdrawn(
                at_ms=now_ms,
                assignment_id=id_,
                alert_id=alert.alert_id,
                caller=panic.caller,
                withdrawn_ms=panic.at_ms,
                place=alert.place,
            )
        else:
            yield PanicCalled(
                at_ms=now_ms,
                assignment_id=id_,
                alert_id=alert.alert_id,
                caller=panic.caller,
                called_ms=panic.at_ms,
                place=alert.place,
            )


def _stand_down(decided: Decided, now_ms: int) -> None:
    end, end_kind = decided.incident.end, decided.incident.end_kind
    for id_, assignment in decided.incident.assignments.items():
        # The duty to look into an act outlives the threat.
        is_over = assignment.state in OVER or assignment.task is Task.CHECK
        if not is_over and assignment.demanded <= end:
            decided.add(StoodDown(now_ms, id_, end_kind))


def note_id(incident: Incident, note_key: str) -> str:
    """Id of a note of an incident."""
    return ids.hash_id("note", incident.incident_id, incident.leg, note_key)


def _add_note(incident: Incident, command: AddNote, now_ms: int) -> Iterator[NoteAdded]:
    """Event that a note leads to; none if the incident has the note. Raises NotFound or FailedPrecondition."""
    # A canary has no desk that could write about it.
    first = next(iter(incident.assignments), "") if incident.exercise is not Exercise.CANARY else ""
    if not first:
        raise NotFound(f"no incident {incident.incident_id} in the {incident.leg} leg")
    id_ = note_id(incident, command.note_key)
    if id_ in incident.note_ids:
        return
    if len(incident.note_ids) >= MAX_INCIDENT_NOTES:
        raise FailedPrecondition(
            f"the incident has {MAX_INCIDENT_NOTES} notes of this leg: it takes no more", TOO_MANY_NOTES
        )
    yield NoteAdded(
        at_ms=now_ms,
        assignment_id=first,
        note_id=id_,
        by=command.by,
        kind=command.kind,
        result=command.result,
        text=command.text,
        kept=command.kept,
    )
