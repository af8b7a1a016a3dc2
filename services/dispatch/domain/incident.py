"""An incident of one leg, and what each event makes of it. Pure.

The state is the fold of `evolve` over the stored events. Alerts may come twice and in any order: what an alert demands is held
until an end that follows it in the order of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import TypeVar

from services.common import ids
from services.dispatch.domain.events import (
    BEFORE_ALL,
    BEYOND_ALL,
    UNTOLD,
    Acknowledged,
    AlertFolded,
    AlertWasMissing,
    Answer,
    Cause,
    Choice,
    Climb,
    CloseCause,
    Closed,
    Demand,
    Escalated,
    Event,
    Exercise,
    Flagged,
    Found,
    Kept,
    LegAbsent,
    LegReturned,
    NobodyAvailable,
    Notified,
    Offered,
    OfferedAgain,
    Place,
    Progressed,
    Raced,
    Received,
    Rejected,
    Retargeted,
    SceneShared,
    StepsLost,
    StoodDown,
    TargetsShown,
    WarningFlag,
)

T = TypeVar("T")


class State(IntEnum):
    """What has become of an assignment; the numbers are those of tandem.dispatch.v1.AssignmentState."""

    NOTIFIED = 1
    OFFERED = 2
    ESCALATED = 3
    ACKNOWLEDGED = 4
    STOOD_DOWN = 5
    DISPATCHED = 6
    EN_ROUTE = 7
    ON_SCENE = 8
    APPREHENDED = 9
    CLOSED = 10
    NOBODY_AVAILABLE = 11
    REJECTED = 12


UNANSWERED = frozenset((State.OFFERED, State.ESCALATED))
"""Somebody has to take it and nobody has yet."""
PROGRESS = (State.ACKNOWLEDGED, State.DISPATCHED, State.EN_ROUTE, State.ON_SCENE, State.APPREHENDED)
"""The way of what was taken, one step after the other."""
TAKEN = frozenset(PROGRESS)
OVER = frozenset((State.STOOD_DOWN, State.CLOSED))
"""Nobody has anything to do."""

FIRST_STATE: Mapping[str, Mapping[Demand, State]] = MappingProxyType(
    {
        "probation": {Demand.NOTIFY: State.NOTIFIED, Demand.RESPOND: State.OFFERED},
        "police": {Demand.NOTIFY: State.NOTIFIED, Demand.RESPOND: State.OFFERED},
        "warning": {Demand.WARN: State.OFFERED, Demand.NOTIFY: State.OFFERED, Demand.RESPOND: State.OFFERED},
    }
)
"""What a demand asks of each leg; a demand that isn't named asks nothing of it."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """One record for each incident, leg and destination."""

    assignment_id: str
    subject_id: str
    state: State
    demand: Demand
    """The gravest so far."""
    demanded: Place
    """The last alert that demanded it, in the log's order."""
    number: int
    """How many steps it has had."""
    offered_ms: int | None = None
    """When it was offered the last time, mesh time."""
    offer_number: int = 0
    """Which of its steps made the present offer, to a unit or a desk."""
    asked_ms: int | None = None
    """When that was, mesh time."""
    offer_demand: Demand = Demand.RECORD
    """The gravest since then."""
    due_ms: int | None = None
    """When it is offered on unless the next step comes before, mesh time."""
    choice: Choice | None = None
    """Whom it is offered to; None where that is the desk itself."""
    tried: frozenset[str] = frozenset()
    """Units that were asked since the last offer that an alert made."""
    repeats: int = 0
    """How often the present offer was escalated to the same desk."""
    climb: Climb = Climb.UNTOLD
    """Why it was offered on the last time."""
    nobody_ms: int | None = None
    """When there was nobody to be asked, mesh time; None where it was taken since."""
    received_ms: int | None = None
    """When the desk's machine had the present offer, mesh time."""
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    kind: int = UNTOLD
    """Kind of the deciding alert."""
    cause: Cause | None = None
    """What that alert rests on."""
    rejected_reason: str = ""
    """What whoever refused it last said."""
    stood_down_kind: int = UNTOLD
    """Kind of the alert with which it was over."""
    close_cause: CloseCause | None = None
    close_note: str = ""
    closed_place: Place = BEFORE_ALL
    """The last alert that asked for it when it was closed."""
    absent_legs: frozenset[str] = frozenset()
    """Other legs that have shown no step of what the same alert demands of them."""
    flag: Flagged | None = None
    """What the warning leg last said of the protected person."""
    retargeted_ms: int | None = None
    """When whoever goes was told the last time that the target is elsewhere, mesh time."""
    raced: Raced | None = None
    """How the race stands; None where it was never being lost."""
    one_scene_ms: int | None = None
    """Since when the wearer is at the destination, mesh time."""

    @property
    def unit_id(self) -> str:
        """The unit that has a part in it now; empty where none has."""
        return self.choice.unit_id if self.choice and self.state in UNANSWERED | TAKEN else ""

    @property
    def losing(self) -> bool:
        """Whether the wearer would be there first."""
        return self.raced is not None and self.raced.losing


@dataclass(frozen=True, slots=True)
class Asked:
    """The alerts that ask a leg's desk to take an assignment."""

    last: AlertFolded
    """The last of them, in the log's order."""
    threats: frozenset[str]
    """What they are about."""
    answered: AlertFolded | None = None
    """The last of those that were known when the assignment was taken; the answer is to all up to it."""


@dataclass(frozen=True, slots=True)
class Ring:
    """What the log says last of one ring."""

    place: Place
    radius_m: float
    entered: bool
    assignment_ids: tuple[str, ...]
    """Where the leg goes because of it."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One leg's share of an incident."""

    incident_id: str
    leg: str
    alert_ids: frozenset[str] = frozenset()
    """Alerts that were folded."""
    order_ids: tuple[str, ...] = ()
    """Orders it is about, sorted."""
    opened_ms: int | None = None
    """When it got its first assignment, mesh time."""
    end: Place = BEFORE_ALL
    """The last alert that ended it."""
    end_ms: int | None = None
    """When that was folded, mesh time."""
    end_kind: int = UNTOLD
    """Its kind."""
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """By assignment id."""
    asked: Mapping[str, Asked] = field(default_factory=lambda: MappingProxyType({}))
    """By assignment id."""
    clearings: frozenset[tuple[Place, str]] = frozenset()
    """Where the log says that a threat is over, and which."""
    awaited: frozenset[str] = frozenset()
    """Other legs of which an alert demanded a response as well."""
    wearer_id: str = ""
    """Whom units follow; empty where nobody is followed."""
    rings: Mapping[str, Ring] = field(default_factory=lambda: MappingProxyType({}))
    """By threat."""
    exercise: Exercise = Exercise.NONE
    """Whether it is in earnest; an incident is of one wearer, so all its alerts say the same."""

    def ring_m(self, assignment_id: str) -> float | None:
        """The least ring that the wearer is in, of those that the destination is about; None where there is none."""
        rings = self.rings.values()
        return min((one.radius_m for one in rings if one.entered and assignment_id in one.assignment_ids), default=None)

    @property
    def ended_ms(self) -> int | None:
        """When it ended, mesh time; None while an assignment is open."""
        open_ = any(one.state not in OVER for one in self.assignments.values())
        return None if open_ else self.end_ms

    def is_asked_anew(self, assignment_id: str) -> bool:
        """Whether an assignment that was taken is asked for once more since a threat that it was taken for, or that joined, was over.

        It looks at places in the log alone, so it doesn't matter which of these alerts came last.
        """
        asked = self.asked.get(assignment_id)
        if asked is None or asked.answered is None or asked.last.place <= asked.answered.place:
            return False
        if asked.answered.kind == UNTOLD:
            # Its clearing may have been passed over by the version of then: once too often, rather than never.
            return True
        return any(
            asked.answered.place < place < asked.last.place and (threat in asked.threats or "" in asked.threats)
            for place, threat in self.clearings
        )


def assignment_id(incident_id: str, leg: str, subject_id: str) -> str:
    """Id of the one assignment of an incident, a leg and a destination."""
    return ids.hash_id("assign", incident_id, leg, subject_id)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)


def evolve(incident: Incident, event: Event) -> Incident:
    """The incident after an event that `decisions.decide` gave."""
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
        raise ValueError(f"{type(event).__name__} of an assignment that was never offered")
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
        state=State.NOTIFIED,
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
    new = replace(new, state=State.OFFERED, offered_ms=event.at_ms)
    return _asking(new, event.at_ms, event.choice, event.due_ms)


def _asking(new: Assignment, at_ms: int, choice: Choice | None, due_ms: int) -> Assignment:
    """Somebody is asked who wasn't before."""
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
    event: OfferedAgain | Escalated | NobodyAvailable | Answer | StoodDown | Found | Flagged | Kept,
) -> Assignment:
    """An assignment that is numbered anew, after a step of its own."""
    if isinstance(event, LegAbsent):
        return replace(new, absent_legs=new.absent_legs | {event.leg})
    if isinstance(event, LegReturned):
        return replace(new, absent_legs=new.absent_legs - {event.leg})
    if isinstance(event, StepsLost):
        return replace(new, number=event.number + 1)
    if isinstance(event, Flagged):
        # Whom somebody else has in hand is no less so because a position says that the wearer has gone: the desk alone ends that.
        return replace(new, flag=event, demanded=BEYOND_ALL if event.flag is WarningFlag.DURESS else new.demanded)
    if isinstance(event, Retargeted):
        return replace(new, retargeted_ms=event.at_ms)
    if isinstance(event, Raced):
        return replace(new, raced=event, due_ms=new.due_ms if event.due_ms is None else event.due_ms)
    if isinstance(event, SceneShared):
        return replace(new, one_scene_ms=event.at_ms if event.one_scene else None)
    if isinstance(event, OfferedAgain):
        new = replace(
            new,
            state=State.OFFERED,
            offered_ms=event.at_ms,
            offer_demand=event.demand,
            kind=event.kind,
            cause=event.cause,
            tried=frozenset(),
            climb=Climb.UNTOLD,
            raced=None,
        )
        return _asking(new, event.at_ms, event.choice, event.due_ms)
    if isinstance(event, Escalated):
        if event.choice == new.choice and new.state in UNANSWERED:
            return replace(new, state=State.ESCALATED, due_ms=event.due_ms, repeats=new.repeats + 1, climb=event.climb)
        new = replace(new, state=State.ESCALATED, climb=event.climb)
        return _asking(new, event.at_ms, event.choice, event.due_ms)
    if isinstance(event, Received):
        return replace(new, received_ms=event.at_ms, due_ms=event.due_ms)
    new = replace(new, due_ms=None)
    if isinstance(event, NobodyAvailable):
        return replace(new, state=State.NOBODY_AVAILABLE, nobody_ms=event.at_ms)
    if isinstance(event, Acknowledged):
        return replace(
            new,
            state=State.ACKNOWLEDGED,
            acknowledged_ms=event.at_ms,
            acknowledged_by=event.by,
            due_ms=event.due_ms,
            nobody_ms=None,
        )
    if isinstance(event, Rejected):
        return replace(
            new, state=State.REJECTED, rejected_reason=event.reason, acknowledged_ms=None, acknowledged_by=""
        )
    if isinstance(event, Progressed):
        return replace(new, state=State(event.state))
    if isinstance(event, Closed):
        return replace(new, state=State.CLOSED, close_cause=event.cause, close_note=event.note)
    return replace(new, state=State.STOOD_DOWN, stood_down_kind=event.kind)


def _with_alert(incident: Incident, event: AlertFolded) -> Incident:
    assignments, asked = dict(incident.assignments), dict(incident.asked)
    asks = FIRST_STATE[incident.leg].get(event.demand) is State.OFFERED
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
            before = asked.get(id_) or Asked(event, frozenset())
            last = event if event.place > before.last.place else before.last
            asked[id_] = replace(before, last=last, threats=before.threats | {event.threat})
    later_end = event.ends and event.place > incident.end
    clears = event.demand is Demand.RECORD and event.threat
    of_order = (
        event.assignment_ids or event.ends
    )  # that a threat is over which demanded nothing of this leg says nothing of it
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


def _with_ring(rings: Mapping[str, Ring], event: AlertFolded) -> Mapping[str, Ring]:
    before = rings.get(event.threat)
    if not event.ring_m or (before and before.place > event.place):
        return rings
    # Of an all-clear nobody goes anywhere: where the leg went stays as it was.
    ids = event.assignment_ids or (before.assignment_ids if before else ())
    entered = event.demand is not Demand.RECORD
    return _with(rings, event.threat, Ring(event.place, event.ring_m, entered, ids))


def _with_assignment(incident: Incident, new: Assignment) -> Incident:
    return replace(incident, assignments=_with(incident.assignments, new.assignment_id, new))


def _with(before: Mapping[str, T], key: str, value: T) -> Mapping[str, T]:
    return MappingProxyType({**before, key: value})
