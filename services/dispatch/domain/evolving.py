"""Application of events to an incident. Pure. Folding all stored events of an incident gives its present state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import TypeVar

from services.dispatch.domain.enums import Demand, EscalationReason, WarningFlag
from services.dispatch.domain.events import (
    BEYOND_ALL,
    Acknowledged,
    AlertFolded,
    AlertWasMissing,
    Answer,
    Choice,
    Closed,
    Escalated,
    Event,
    Flagged,
    LegAbsent,
    LegFinding,
    LegReturned,
    NobodyAvailable,
    Notified,
    Offered,
    PrivateStep,
    Progressed,
    Raced,
    Received,
    Rejected,
    Reoffered,
    Retargeted,
    SceneShared,
    SpoofingSuspected,
    StepsLost,
    StoodDown,
    TargetsShown,
)
from services.dispatch.domain.incident import (
    FIRST_STATE,
    UNANSWERED,
    Assignment,
    AssignmentState,
    DemandingAlerts,
    Incident,
    RingStatus,
)

T = TypeVar("T")


def evolve(incident: Incident, event: Event) -> Incident:
    """The incident after an event of `decisions.decide`. Raises ValueError for an event of an unknown assignment."""
    if isinstance(event, AlertFolded):
        return _with_alert(incident, event)
    if isinstance(event, AlertWasMissing | TargetsShown):
        return incident
    id_ = event.assignment_id
    old = incident.assignments.get(id_)
    if isinstance(event, Notified | Offered):
        if incident.opened_ms is None:
            incident = replace(incident, opened_ms=event.at_ms)
        return _with_assignment(incident, _begun(event, old))
    if old is None:
        raise ValueError(f"{type(event).__name__}: assignment {id_} was never offered")
    if isinstance(event, Acknowledged) and id_ in incident.asked:
        asked = incident.asked[id_]
        incident = replace(incident, asked=_with(incident.asked, id_, replace(asked, answered=asked.last)))
    new = _after(replace(old, number=old.number + 1), event)
    if isinstance(event, Closed) and id_ in incident.asked:
        new = replace(new, closed_place=incident.asked[id_].last.place)
    return _with_assignment(incident, new)


def _begun(event: Notified | Offered, old: Assignment | None) -> Assignment:
    number = old.number + 1 if old else 1
    new = Assignment(
        assignment_id=event.assignment_id,
        subject_id=event.subject_id,
        state=AssignmentState.NOTIFIED,
        demand=max(event.demand, old.demand) if old else event.demand,
        demanded=max(event.place, old.demanded) if old else event.place,
        number=number,
        offer_demand=event.demand,
        kind=event.kind,
        cause=event.cause,
        flag=old.flag if old else None,
    )
    if isinstance(event, Notified):
        return new
    new = replace(new, state=AssignmentState.OFFERED, offered_ms=event.at_ms)
    return _asking(new, event.at_ms, event.choice, due_ms=event.due_ms)


def _asking(new: Assignment, at_ms: int, choice: Choice | None, *, due_ms: int) -> Assignment:
    """The assignment after an offer to a unit or desk that was not asked before."""
    return replace(
        new,
        offer_number=new.number,
        asked_ms=at_ms,
        choice=choice,
        tried=new.tried | {choice.unit_id} if choice and choice.unit_id else new.tried,
        repeats=0,
        received_ms=None,
        acknowledged_ms=None,
        acknowledged_by="",
        due_ms=due_ms,
    )


def _after(
    new: Assignment,
    event: Reoffered | Escalated | NobodyAvailable | Answer | StoodDown | LegFinding | Flagged | PrivateStep,
) -> Assignment:
    """The assignment after one of its steps; `new` has the number of that step already."""
    if isinstance(event, LegAbsent):
        return replace(new, absent_legs=new.absent_legs | {event.leg})
    if isinstance(event, LegReturned):
        return replace(new, absent_legs=new.absent_legs - {event.leg})
    if isinstance(event, StepsLost):
        return replace(new, number=event.number + 1)
    if isinstance(event, Flagged):
        # A position that shows the wearer far away doesn't end duress, as another person may threaten her: only the desk ends it.
        return replace(new, flag=event, demanded=BEYOND_ALL if event.flag is WarningFlag.DURESS else new.demanded)
    if isinstance(event, Retargeted):
        return replace(new, retargeted_ms=event.at_ms)
    if isinstance(event, Raced):
        return replace(new, raced=event, due_ms=new.due_ms if event.due_ms is None else event.due_ms)
    if isinstance(event, SceneShared):
        return replace(new, one_scene_ms=event.at_ms if event.one_scene else None)
    if isinstance(event, SpoofingSuspected):
        return replace(new, spoofing_suspected_ms=event.at_ms)
    if isinstance(event, Reoffered):
        new = replace(
            new,
            state=AssignmentState.OFFERED,
            offered_ms=event.at_ms,
            offer_demand=event.demand,
            kind=event.kind,
            cause=event.cause,
            tried=frozenset(),
            escalation_reason=EscalationReason.UNSPECIFIED,
            raced=None,
        )
        return _asking(new, event.at_ms, event.choice, due_ms=event.due_ms)
    if isinstance(event, Escalated):
        if event.choice == new.choice and new.state in UNANSWERED:
            return replace(
                new,
                state=AssignmentState.ESCALATED,
                due_ms=event.due_ms,
                repeats=new.repeats + 1,
                escalation_reason=event.escalation_reason,
            )
        new = replace(new, state=AssignmentState.ESCALATED, escalation_reason=event.escalation_reason)
        return _asking(new, event.at_ms, event.choice, due_ms=event.due_ms)
    if isinstance(event, Received):
        return replace(new, received_ms=event.at_ms, due_ms=event.due_ms)
    new = replace(new, due_ms=None)
    if isinstance(event, NobodyAvailable):
        return replace(new, state=AssignmentState.NOBODY_AVAILABLE, nobody_ms=event.at_ms)
    if isinstance(event, Acknowledged):
        return replace(
            new,
            state=AssignmentState.ACKNOWLEDGED,
            acknowledged_ms=event.at_ms,
            acknowledged_by=event.by,
            due_ms=event.due_ms,
            nobody_ms=None,
        )
    if isinstance(event, Rejected):
        return replace(
            new, state=AssignmentState.REJECTED, rejected_reason=event.reason, acknowledged_ms=None, acknowledged_by=""
        )
    if isinstance(event, Progressed):
        return replace(new, state=AssignmentState(event.state))
    if isinstance(event, Closed):
        return replace(new, state=AssignmentState.CLOSED, close_cause=event.cause, close_note=event.note)
    return replace(new, state=AssignmentState.STOOD_DOWN, stood_down_kind=event.kind)


def _with_alert(incident: Incident, event: AlertFolded) -> Incident:
    assignments, asked = dict(incident.assignments), dict(incident.asked)
    asks = FIRST_STATE[incident.leg].get(event.demand) is AssignmentState.OFFERED
    for id_ in event.assignment_ids:
        if id_ in assignments:
            old = assignments[id_]
            assignments[id_] = replace(
                old,
                demand=max(old.demand, event.demand),
                demanded=max(old.demanded, event.place),
                offer_demand=max(old.offer_demand, event.demand),
            )
        if asks:
            before = asked.get(id_) or DemandingAlerts(event, frozenset())
            last = event if event.place > before.last.place else before.last
            asked[id_] = replace(before, last=last, threats=before.threats | {event.threat})
    later_end = event.ends and event.place > incident.end
    clears = event.demand is Demand.RECORD and event.threat
    # The clearing of a threat that demanded nothing of this leg doesn't relate its order to this incident.
    of_order = event.assignment_ids or event.ends
    return replace(
        incident,
        alert_ids=incident.alert_ids | {event.alert_id},
        order_ids=tuple(sorted({*incident.order_ids, event.order_id})) if of_order else incident.order_ids,
        end=event.place if later_end else incident.end,
        end_ms=event.at_ms if later_end else incident.end_ms,
        end_kind=event.kind if later_end else incident.end_kind,
        assignments=MappingProxyType(assignments),
        asked=MappingProxyType(asked),
        clearings=incident.clearings | {(event.place, event.threat)} if clears else incident.clearings,
        awaited=incident.awaited | set(event.legs),
        wearer_id=event.wearer_id or incident.wearer_id,
        rings=_with_ring(incident.rings, event),
        exercise=event.exercise,
    )


def _with_ring(rings: Mapping[str, RingStatus], event: AlertFolded) -> Mapping[str, RingStatus]:
    before = rings.get(event.threat)
    if not event.ring_m or (before and before.place > event.place):
        return rings
    # An all-clear sends nobody, so the leg's destinations stay as they were.
    ids = event.assignment_ids or (before.assignment_ids if before else ())
    entered = event.demand is not Demand.RECORD
    return _with(
        rings, event.threat, RingStatus(place=event.place, radius_m=event.ring_m, entered=entered, assignment_ids=ids)
    )


def _with_assignment(incident: Incident, new: Assignment) -> Incident:
    return replace(incident, assignments=_with(incident.assignments, new.assignment_id, new))


def _with(before: Mapping[str, T], key: str, value: T) -> Mapping[str, T]:
    return MappingProxyType({**before, key: value})
