"""One leg's share of an incident: what each alert, deadline and acknowledgement does to its assignments. Pure.

`decide` says what happens, `evolve` says what that makes of the incident; the state is the fold of `evolve` over the
stored events. Alerts may come twice and in any order: what an alert demands is held until an end that follows it in the
order of the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from types import MappingProxyType
from typing import TypeAlias

from services.common import ids
from services.common.errors import FailedPrecondition, NotFound


class Demand(IntEnum):
    """What must be done about an alert, from least to most; the numbers are those of tandem.common.v1.Demand."""

    RECORD = 1
    WARN = 2
    NOTIFY = 3
    RESPOND = 4


class State(IntEnum):
    """What has become of an assignment; the numbers are those of tandem.dispatch.v1.AssignmentState."""

    NOTIFIED = 1
    OFFERED = 2
    ESCALATED = 3
    ACKNOWLEDGED = 4
    STOOD_DOWN = 5


UNANSWERED = frozenset((State.OFFERED, State.ESCALATED))
"""Somebody has to take it and nobody has yet."""

FIRST_STATE: Mapping[str, Mapping[Demand, State]] = MappingProxyType(
    {
        "probation": {Demand.NOTIFY: State.NOTIFIED, Demand.RESPOND: State.OFFERED},
        "police": {Demand.NOTIFY: State.NOTIFIED, Demand.RESPOND: State.OFFERED},
        "warning": {Demand.WARN: State.OFFERED, Demand.NOTIFY: State.OFFERED, Demand.RESPOND: State.OFFERED},
    }
)
"""What a demand asks of each leg; a demand that isn't named asks nothing of it."""

LONGEST_WAIT_MS = 3_600_000
"""Longest time between two escalations of one assignment."""

Place: TypeAlias = tuple[int, int]
"""(sequence, ordinal): where an alert stands in the order of the log."""
BEFORE_ALL: Place = (0, -1)


@dataclass(frozen=True, slots=True)
class Cause:
    """The report that made a decision."""

    device_id: str
    report_id: str
    received_wall_us: int
    """When ingest received it, wall clock, microseconds since 1970 UTC."""


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert of an incident, as far as one leg is concerned."""

    alert_id: str
    incident_id: str
    place: Place
    demand: Demand
    order_id: str
    subject_ids: tuple[str, ...]
    """This leg's destinations, each once."""
    ends: bool
    """The incident ends with it."""
    cause: Cause | None


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
    """When it was offered, mesh time."""
    due_ms: int | None = None
    """When it is escalated unless it was taken, mesh time."""
    acknowledged_ms: int | None = None
    acknowledged_by: str = ""
    cause: Cause | None = None
    """What the deciding alert rests on."""


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
    assignments: Mapping[str, Assignment] = field(default_factory=lambda: MappingProxyType({}))
    """By assignment id."""

    @property
    def ended_ms(self) -> int | None:
        """When it ended, mesh time; None while an assignment is open."""
        open_ = any(one.state is not State.STOOD_DOWN for one in self.assignments.values())
        return None if open_ else self.end_ms


# ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────────────


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

# ── events ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class AlertFolded:
    """An alert was taken in; the steps that it leads to follow."""

    at_ms: int
    alert_id: str
    place: Place
    demand: Demand
    order_id: str
    assignment_ids: tuple[str, ...]
    """What it demands something of."""
    ends: bool


@dataclass(frozen=True, slots=True)
class Notified:
    """The desk is told."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None


@dataclass(frozen=True, slots=True)
class Offered:
    """The desk is asked to take it."""

    at_ms: int
    assignment_id: str
    subject_id: str
    demand: Demand
    place: Place
    cause: Cause | None
    due_ms: int


@dataclass(frozen=True, slots=True)
class Escalated:
    """Nobody took it in time: the supervisor is asked too."""

    at_ms: int
    assignment_id: str
    due_ms: int


@dataclass(frozen=True, slots=True)
class Acknowledged:
    """A person took it."""

    at_ms: int
    assignment_id: str
    by: str


@dataclass(frozen=True, slots=True)
class StoodDown:
    """It is no longer needed."""

    at_ms: int
    assignment_id: str


Step: TypeAlias = Notified | Offered | Escalated | Acknowledged | StoodDown
Event: TypeAlias = AlertFolded | Step


def assignment_id(incident_id: str, leg: str, subject_id: str) -> str:
    """Id of the one assignment of an incident, a leg and a destination."""
    return ids.hash_id("assign", incident_id, leg, subject_id)


def step_id(assignment: Assignment) -> str:
    """Id of an assignment's last step."""
    return ids.hash_id("step", assignment.assignment_id, assignment.state.name, assignment.number)


def concerns(leg: str, alert: Alert) -> bool:
    """Whether an alert demands something of a leg or ends the incident."""
    return alert.ends or (alert.demand in FIRST_STATE[leg] and bool(alert.subject_ids))


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
        within_ms = min(command.within_ms << min(assignment.number - 1, 16), max(LONGEST_WAIT_MS, command.within_ms))
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
        if incident.leg == "warning" and id_ in incident.assignments and alert.demand > incident.assignments[id_].demand
    }
    folded = AlertFolded(now_ms, alert.alert_id, alert.place, alert.demand, alert.order_id, tuple(by_id), alert.ends)
    yield folded
    incident = evolve(incident, folded)
    for id_, subject in by_id.items():
        assignment = incident.assignments.get(id_)
        again = id_ in graver and assignment is not None and assignment.state is State.ACKNOWLEDGED
        if not again and not _leads_to(wanted, assignment, alert.place, incident.end):
            continue
        step: Step
        if wanted is State.OFFERED:
            due_ms = now_ms + command.within_ms
            step = Offered(now_ms, id_, subject, alert.demand, alert.place, alert.cause, due_ms)
        else:
            step = Notified(now_ms, id_, subject, alert.demand, alert.place, alert.cause)
        yield step
        incident = evolve(incident, step)
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


def evolve(incident: Incident, event: Event) -> Incident:
    """The incident after an event that `decide` gave."""
    if isinstance(event, AlertFolded):
        return _with_alert(incident, event)
    old = incident.assignments.get(event.assignment_id)
    if isinstance(event, Notified | Offered):
        new = Assignment(
            assignment_id=event.assignment_id,
            subject_id=event.subject_id,
            state=State.OFFERED if isinstance(event, Offered) else State.NOTIFIED,
            demand=max(event.demand, old.demand) if old else event.demand,
            demanded=max(event.place, old.demanded) if old else event.place,
            number=old.number + 1 if old else 1,
            offered_ms=event.at_ms if isinstance(event, Offered) else None,
            due_ms=event.due_ms if isinstance(event, Offered) else None,
            cause=event.cause,
        )
        if incident.opened_ms is None:
            incident = replace(incident, opened_ms=event.at_ms)
    else:
        if old is None:
            raise ValueError(f"{type(event).__name__} of an assignment that was never offered")
        next_one = replace(old, number=old.number + 1, due_ms=None)
        if isinstance(event, Escalated):
            new = replace(next_one, state=State.ESCALATED, due_ms=event.due_ms)
        elif isinstance(event, Acknowledged):
            new = replace(next_one, state=State.ACKNOWLEDGED, acknowledged_ms=event.at_ms, acknowledged_by=event.by)
        else:
            new = replace(next_one, state=State.STOOD_DOWN)
    return replace(incident, assignments=MappingProxyType({**incident.assignments, new.assignment_id: new}))


def _with_alert(incident: Incident, event: AlertFolded) -> Incident:
    assignments = dict(incident.assignments)
    for id_ in event.assignment_ids:
        if id_ in assignments:
            old = assignments[id_]
            assignments[id_] = replace(
                old, demand=max(old.demand, event.demand), demanded=max(old.demanded, event.place)
            )
    later_end = event.ends and event.place > incident.end
    return replace(
        incident,
        alert_ids=incident.alert_ids | {event.alert_id},
        order_ids=tuple(sorted({*incident.order_ids, event.order_id})),
        end=event.place if later_end else incident.end,
        end_ms=event.at_ms if later_end else incident.end_ms,
        assignments=MappingProxyType(assignments),
    )
