"""The alerts of an incident, and the state of one leg's share of it after each event. Pure.

The state is the fold of `evolve` over the stored events. Alerts may come twice and in any order. An alert's demand holds until the
incident ends later in the order of the log.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TypeVar, assert_never

from services.dispatch.domain.assignment import OVER, Assignment, LaterStep, after, begun
from services.dispatch.domain.enums import ContactPlan, Demand, Exercise, SubjectKind
from services.dispatch.domain.events import (
    BEFORE_ALL,
    KIND_UNSPECIFIED,
    Acknowledged,
    AlertFolded,
    AlertWasMissing,
    Cause,
    Closed,
    ContactBegun,
    Event,
    LogPosition,
    NoteAdded,
    Notified,
    Offered,
    PanicCalled,
    PanicStep,
    PanicWithdrawn,
    Reoffered,
    TargetsShown,
)
from services.dispatch.domain.leg import Leg


@dataclass(frozen=True, slots=True)
class AlertContact:
    """An alert's statement about the first contact with the wearer."""

    contact_id: str
    plan: ContactPlan
    device_id: str
    """Device that gets the message; empty if none does."""


@dataclass(frozen=True, slots=True)
class AlertPanic:
    """An alert's statement that a protected person called for help, or took a call back."""

    caller: str
    """Key of the person under one order, the same for the call and for its end."""
    at_ms: int
    """When she pressed the button, or took the call back, mesh time."""
    withdrawn: bool = False


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an incident, reduced to the fields that one leg needs."""

    alert_id: str
    incident_id: str
    place: LogPosition
    """Log position of the alert."""
    kind: int
    """Number of the tandem.common.v1.AlertKind, which may be newer than this leg."""
    demand: Demand
    order_id: str
    threat: str
    """Key of the threat, the same when the threat begins and ends. An alert with demand RECORD says that the threat is over."""
    subject_ids: tuple[str, ...]
    """Destinations of this leg that the alert concerns, without duplicates."""
    ends: bool
    """The alert ends the incident."""
    cause: Cause | None
    legs: tuple[Leg, ...] = ()
    """Other legs that must respond to the alert too and that this leg watches."""
    wearer_id: str = ""
    ring_m: float = 0.0
    """Radius of the ring, metres; 0 if the alert concerns no ring."""
    exercise: Exercise = Exercise.NONE
    check_subject_ids: tuple[str, ...] = ()
    """Wearers whose act this leg must look into, whatever the demand is."""
    contact: AlertContact | None = None
    """The first contact with the wearer; None if the alert says nothing about one."""
    subject_kinds: Mapping[str, SubjectKind] = field(default_factory=lambda: MappingProxyType({}))
    """What each of `subject_ids` is."""
    panic: AlertPanic | None = None
    """The protected person's call for help, or its end by herself; None if the alert says nothing about one."""


T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DemandingAlerts:
    """The alerts that demand the acceptance of an assignment."""

    last: AlertFolded
    """The last of these alerts, in the log's order."""
    threats: frozenset[str]
    """Threats of these alerts."""
    answered: AlertFolded | None = None
    """The last of these alerts at the time of acceptance. The acceptance answers all alerts up to this one. None before that."""


@dataclass(frozen=True, slots=True)
class RingStatus:
    """Last known status of one ring, in the order of the log."""

    place: LogPosition
    radius_m: float
    entered: bool
    assignment_ids: tuple[str, ...]
    """Ids of the leg's assignments that the ring caused."""


@dataclass(frozen=True, slots=True)
class Panic:
    """The last call for help of one protected person under one order, and its last end by herself, in the order of the log."""

    called: LogPosition = BEFORE_ALL
    called_ms: int | None = None
    """When she pressed the button, mesh time; None while only the end is known, as alerts come in any order."""
    ended: LogPosition = BEFORE_ALL
    ended_ms: int | None = None
    """When she last took a call back, mesh time; None if she never did."""

    @property
    def withdrawn_ms(self) -> int | None:
        """When she took the last call back, mesh time; None if it isn't taken back."""
        return self.ended_ms if self.ended > self.called else None


@dataclass(frozen=True, slots=True)
class Incident:
    """One leg's share of an incident."""

    incident_id: str
    leg: Leg
    alerts: Mapping[str, LogPosition] = field(default_factory=lambda: MappingProxyType({}))
    """Log positions of the alerts that were applied, by id."""
    order_ids: tuple[str, ...] = ()
    """Orders that the incident concerns, sorted."""
    opened_ms: int | None = None
    """When the incident got its first assignment, mesh time."""
    end: LogPosition = BEFORE_ALL
    """Log position of the last alert that ended the incident."""
    end_ms: int | None = None
    """When the leg applied the alert at `end`, mesh time."""
    end_kind: int = KIND_UNSPECIFIED
    """Kind of the alert at `end`."""
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """Assignments by id."""
    asked: Mapping[str, DemandingAlerts] = field(default_factory=lambda: MappingProxyType({}))
    """Demanding alerts by assignment id."""
    clearings: frozenset[tuple[LogPosition, str]] = frozenset()
    """Log position and threat of each alert which says that a threat is over."""
    awaited: frozenset[Leg] = frozenset()
    """Other legs that must respond to an alert of this incident too, so that this leg waits for their steps."""
    wearer_id: str = ""
    """Wearer whom units follow; empty if nobody is followed."""
    rings: Mapping[str, RingStatus] = field(default_factory=lambda: MappingProxyType({}))
    """Ring status by threat."""
    exercise: Exercise = Exercise.NONE
    """Whether the incident is live or an exercise. An incident belongs to one wearer, so all its alerts agree."""
    note_ids: frozenset[str] = frozenset()
    """Ids of the notes that the leg's desk wrote."""
    panics: Mapping[str, Panic] = field(default_factory=lambda: MappingProxyType({}))
    """Calls for help by the key of the caller."""

    @property
    def panic(self) -> Panic | None:
        """The newest call for help that isn't taken back; the newest one if all are; None if nobody called."""
        calls = [panic for panic in self.panics.values() if panic.called_ms is not None]
        return max(calls, key=lambda panic: (panic.withdrawn_ms is None, panic.called), default=None)

    def ring_m(self, assignment_id: str) -> float | None:
        """Radius, metres, of the smallest ring of a destination that the wearer is in; None outside all rings."""
        rings = self.rings.values()
        return min(
            (ring.radius_m for ring in rings if ring.entered and assignment_id in ring.assignment_ids), default=None
        )

    @property
    def ended_ms(self) -> int | None:
        """When the incident ended, mesh time; None while an assignment is open."""
        open_ = any(assignment.state not in OVER for assignment in self.assignments.values())
        return None if open_ else self.end_ms

    def needs_reoffer(self, assignment_id: str) -> bool:
        """Whether an accepted assignment must be re-offered: after the acceptance a threat was over, and a later alert demands it.

        Only log positions count, so the order in which the alerts arrive doesn't matter.
        """
        asked = self.asked.get(assignment_id)
        if asked is None or asked.answered is None or asked.last.place <= asked.answered.place:
            return False
        if asked.answered.kind == KIND_UNSPECIFIED:
            # An event without a kind comes from a version that stored no clearings. One offer too many is better than none.
            return True
        return any(
            asked.answered.place < position < asked.last.place and (threat in asked.threats or "" in asked.threats)
            for position, threat in self.clearings
        )


@dataclass(slots=True)
class Decided:
    """The events that a decision has collected so far, and the incident after them."""

    incident: Incident
    events: list[Event] = field(default_factory=list)

    def add(self, *events: Event) -> None:
        """Adds events in the given order, and applies them to the incident."""
        for event in events:
            self.incident = evolve(self.incident, event)
            self.events.append(event)


def evolve(incident: Incident, event: Event) -> Incident:
    """The incident after an event of `decisions.decide`. Raises ValueError if a later step names an unknown assignment."""
    if isinstance(event, AlertFolded):
        return _with_alert(incident, event)
    if isinstance(event, AlertWasMissing | TargetsShown):
        return incident
    if isinstance(event, Notified | Offered | ContactBegun):
        opened_ms = event.at_ms if incident.opened_ms is None else incident.opened_ms
        first = begun(event, incident.assignments.get(event.assignment_id))
        return _with_assignment(replace(incident, opened_ms=opened_ms), first)
    before = incident.assignments.get(event.assignment_id)
    if before is None:
        raise ValueError(f"{type(event).__name__}: assignment {event.assignment_id} was never offered")
    return _with_step(incident, before, event)


def _with_step(incident: Incident, before: Assignment, step: LaterStep) -> Incident:
    new, asked = after(before, step), incident.asked.get(step.assignment_id)
    if asked and isinstance(step, Acknowledged):
        answered = replace(asked, answered=asked.last)
        incident = replace(incident, asked=_with(incident.asked, step.assignment_id, answered))
    if asked and isinstance(step, Closed):
        new = replace(new, closed_place=asked.last.place)
    if isinstance(step, Reoffered):
        new = replace(new, offer_place=incident.alerts.get(step.alert_id, before.offer_place))
    if isinstance(step, NoteAdded):
        incident = replace(incident, note_ids=incident.note_ids | {step.note_id})
    if isinstance(step, PanicStep):
        incident = replace(incident, panics=_with(incident.panics, step.caller, _with_panic(incident, step)))
    return _with_assignment(incident, new)


def _with_panic(incident: Incident, step: PanicStep) -> Panic:
    before = incident.panics.get(step.caller, Panic())
    match step:
        case PanicCalled():
            return (
                replace(before, called=step.place, called_ms=step.called_ms) if step.place > before.called else before
            )
        case PanicWithdrawn():
            return (
                replace(before, ended=step.place, ended_ms=step.withdrawn_ms) if step.place > before.ended else before
            )
        case _:
            assert_never(step)


def _with_alert(incident: Incident, event: AlertFolded) -> Incident:
    assignments, asked = dict(incident.assignments), dict(incident.asked)
    asks = event.demand in incident.leg.policy.offers
    for id_ in (*event.assignment_ids, *event.check_ids):
        if id_ in assignments:
            old = assignments[id_]
            assignments[id_] = replace(
                old,
                demand=max(old.demand, event.demand),
                demanded=max(old.demanded, event.place),
                offer_demand=max(old.offer_demand, event.demand),
            )
        if asks or id_ in event.check_ids:
            before = asked.get(id_) or DemandingAlerts(event, frozenset())
            last = event if event.place > before.last.place else before.last
            asked[id_] = replace(before, last=last, threats=before.threats | {event.threat})
    later_end = event.ends and event.place > incident.end
    clears = event.demand is Demand.RECORD and event.threat
    # Add the order only if the alert concerns this leg. A threat that demanded nothing of this leg may be cleared too.
    of_order = event.assignment_ids or event.check_ids or event.ends
    return replace(
        incident,
        alerts=_with(incident.alerts, event.alert_id, event.place),
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
    # An all-clear names no assignments, so keep those that the ring caused.
    ids = event.assignment_ids or (before.assignment_ids if before else ())
    entered = event.demand is not Demand.RECORD
    return _with(
        rings, event.threat, RingStatus(place=event.place, radius_m=event.ring_m, entered=entered, assignment_ids=ids)
    )


def _with_assignment(incident: Incident, new: Assignment) -> Incident:
    return replace(incident, assignments=_with(incident.assignments, new.assignment_id, new))


def _with(before: Mapping[str, T], key: str, value: T) -> Mapping[str, T]:
    return MappingProxyType({**before, key: value})
