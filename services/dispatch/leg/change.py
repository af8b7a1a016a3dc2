"""Uncommitted results of commands: links of the chain, steps, and the rows that are derived from them."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Connection

from services.dispatch.domain.assignment import OVER, Assignment
from services.dispatch.domain.decisions import Command, FoldAlert, decide
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Event, NoteAdded, Offered, PrivateStep, Reoffered, Step
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.leg import chain, translate
from services.dispatch.leg.tables import AssignmentRow, AwaitedRow, IncidentRow, NoteRow, StreamPosition
from services.dispatch.leg.translate import NumberedStep
from tandem.dispatch.v1 import dispatch_pb2

KNOWN_MAX = 10_000
"""Maximum number of incidents without an open assignment in memory. Others are folded from their events when needed."""
TOGETHER_MAX = 32
"""Maximum number of requests that one transaction commits."""


class IncidentCommand(NamedTuple):
    """A command for an incident."""

    incident_id: str
    command: Command


@dataclass(frozen=True, slots=True)
class CommittedIncident:
    """Committed state of an incident, with the latencies of its offers."""

    incident: Incident
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """Known latencies of offers (report_to_published_ms), by assignment id."""


class IncidentMemory:
    """The incidents that a leg keeps in memory, as they were last committed: all open ones that it used, and the last others."""

    def __init__(self) -> None:
        self.known: dict[str, CommittedIncident] = {}
        """The incidents in memory, by id."""
        self.open: dict[str, Incident] | None = None
        """All incidents with an open assignment; None if they must be read from the store."""
        self._over: OrderedDict[str, None] = OrderedDict()
        """The known incidents without an open assignment, at most KNOWN_MAX. The last used one comes last."""
        self._incident_of: dict[str, str] = {}
        """Incident id by assignment id, for the known incidents."""

    def remember(self, committed: Mapping[str, CommittedIncident]) -> None:
        for incident_id, known in committed.items():
            self.known[incident_id] = known
            self._incident_of.update(dict.fromkeys(known.incident.assignments, incident_id))
            if _is_open(known.incident):
                self._over.pop(incident_id, None)
            else:
                self._over[incident_id] = None
                self._over.move_to_end(incident_id)
        while len(self._over) > KNOWN_MAX:
            dropped = self.known.pop(self._over.popitem(last=False)[0])
            for assignment_id in dropped.incident.assignments:
                self._incident_of.pop(assignment_id, None)

    def changed(self, committed: Mapping[str, CommittedIncident]) -> None:
        """Remembers incidents after a commit."""
        self.remember(committed)
        if self.open is None:
            return
        for incident_id, known in committed.items():
            if _is_open(known.incident):
                self.open[incident_id] = known.incident
            else:
                self.open.pop(incident_id, None)

    def forget(self) -> None:
        """Drops everything, because another process has written."""
        self.known.clear()
        self._over.clear()
        self._incident_of.clear()
        self.open = None

    def has_alert(self, incident_id: str, alert_id: str) -> bool:
        """Whether an incident in memory has an alert."""
        known = self.known.get(incident_id)
        return known is not None and alert_id in known.incident.alerts

    def assignment(self, assignment_id: str) -> tuple[Incident, Assignment] | None:
        known = self.known.get(self._incident_of.get(assignment_id, ""))
        return (known.incident, known.incident.assignments[assignment_id]) if known else None

    def measured(self, steps: Iterable[NumberedStep], latency_ms: Mapping[str, float]) -> None:
        """Adds the latencies of published offers, milliseconds, by assignment id."""
        for assignment in (step.step.assignment for step in steps):
            id_, known = assignment.assignment_id, self.known.get(assignment.incident_id)
            if known and id_ in latency_ms:
                latencies = {**known.latency_ms, id_: latency_ms[id_]}
                self.known[assignment.incident_id] = CommittedIncident(known.incident, latencies)


def _columns(incident: Incident) -> tuple[object, ...]:
    """Values of the columns of an incident's row that a command may change."""
    return incident.opened_ms, incident.ended_ms, incident.order_ids, incident.exercise


def _is_open(incident: Incident) -> bool:
    return any(assignment.state not in OVER for assignment in incident.assignments.values())


@dataclass(slots=True)
class Request:
    """A call of `LegRecord.handle`, with its outcome."""

    commands: Sequence[IncidentCommand]
    situation: Situation
    position: StreamPosition | None
    first: Callable[[Connection], Sequence[IncidentCommand]] | None
    decided: Mapping[str, CommittedIncident] | None = None
    """The incidents after these commands, once they are decided."""
    error: Exception | None = None
    over: bool = False
    """The transaction of the request is over."""

    def outcome(self) -> Mapping[str, CommittedIncident]:
        """The incidents after the commit. Raises the error of the request."""
        if self.error is not None:
            raise self.error
        return self.decided or {}


class RequestQueue:
    """Requests that wait for a transaction, in their order."""

    def __init__(self) -> None:
        self._waiting: deque[Request] = deque()

    def add(self, request: Request) -> None:
        """Adds a request."""
        self._waiting.append(request)

    def next(self) -> list[Request]:
        """Removes the requests of the next transaction. A request that changes the store itself has a transaction of its own."""
        requests = [self._waiting.popleft()]
        while self._waiting and len(requests) < TOGETHER_MAX and not (requests[0].first or self._waiting[0].first):
            requests.append(self._waiting.popleft())
        return requests


class _AssignmentMessage(NamedTuple):
    """An assignment's message, with the domain objects that it shows."""

    incident: Incident
    assignment: Assignment
    message: dispatch_pb2.Assignment

    def shows(self, incident: Incident, assignment: Assignment) -> bool:
        """Whether a message of this incident and assignment would be the same."""
        return (
            assignment is self.assignment
            and incident.order_ids == self.incident.order_ids
            and incident.exercise == self.incident.exercise
            and incident.panics is self.incident.panics
        )


@dataclass(slots=True)
class Change:
    """Uncommitted results of the commands of one transaction."""

    head: chain.ChainHead
    known: dict[str, CommittedIncident]
    engaged: dict[str, dict[str, str]]
    """Incident id by assignment id, for the assignments that each unit id has or is asked for."""
    behind: bool = False
    """The store is ahead of this process: another process of this leg wrote, or the answer to a commit was lost."""
    missed: list[NumberedStep] = field(default_factory=list)
    """Steps in the store that this process doesn't know yet."""
    links: list[chain.ChainedEvent] = field(default_factory=list)
    steps: list[NumberedStep] = field(default_factory=list)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    incidents: dict[str, IncidentRow] = field(default_factory=dict)
    awaited: list[AwaitedRow] = field(default_factory=list)
    notes: list[NoteRow] = field(default_factory=list)
    _messages: dict[str, _AssignmentMessage] = field(default_factory=dict)
    """Message in the last step of each assignment, by assignment id."""

    def decide_all(self, commands: Sequence[IncidentCommand], situation: Situation) -> Mapping[str, CommittedIncident]:
        """Adds the results of commands, in their order, and returns the incidents after them. Raises NotFound or FailedPrecondition."""
        for incident_id, command in commands:
            self._decide(incident_id, command, situation)
        return {incident_id: self.known[incident_id] for incident_id, _ in commands}

    def _decide(self, incident_id: str, command: Command, situation: Situation) -> None:
        before = self.known[incident_id]
        incident, latency_ms = before.incident, dict(before.latency_ms)
        for event in decide(incident, command, situation):
            incident = evolve(incident, event)
            link = chain.write(self.head, incident_id, event)
            self.head = chain.ChainHead(link.id, link.hash)
            self.links.append(link)
            self._add_step(incident, event, latency_ms)
        if incident is before.incident:
            return
        self.known[incident_id] = CommittedIncident(incident, latency_ms)
        if isinstance(command, FoldAlert):
            due_ms = situation.now_ms + situation.deadlines.other_leg_ms
            new = sorted(incident.awaited - before.incident.awaited)
            self.awaited += [AwaitedRow(incident_id, leg, due_ms) for leg in new]
        self._add_rows(before.incident, incident, latency_ms)

    def _add_step(self, incident: Incident, event: Event, latency_ms: dict[str, float]) -> None:
        """Adds the step of the last event, if the event is a step. `latency_ms` has the known latencies of offers by assignment id."""
        if not isinstance(event, Step):
            return
        if isinstance(event, Offered | Reoffered):
            latency_ms.pop(event.assignment_id, None)  # the known latency belongs to an earlier offer
        assignment = incident.assignments[event.assignment_id]
        step = translate.step(
            incident,
            assignment,
            event.at_ms,
            latency_ms=latency_ms.get(event.assignment_id),
            kept=isinstance(event, PrivateStep) or (isinstance(event, NoteAdded) and event.kept),
        )
        if isinstance(event, NoteAdded):
            step.note.CopyFrom(translate.note_message(incident.incident_id, incident.leg, event))
            self.notes.append(translate.note_row(step.note))
        self.steps.append(NumberedStep(self.head.id, step))
        self._messages[event.assignment_id] = _AssignmentMessage(incident, assignment, step.assignment)

    def _payload(self, incident: Incident, assignment: Assignment) -> bytes:
        """The serialised assignment without its latency. If a step has just shown the assignment, its message is used."""
        last = self._messages.get(assignment.assignment_id)
        if last is None or not last.shows(incident, assignment):
            return translate.assignment_message(incident, assignment, None).SerializeToString()
        if not last.message.HasField("report_to_published_ms"):
            return last.message.SerializeToString()
        message = dispatch_pb2.Assignment()
        message.CopyFrom(last.message)
        message.ClearField("report_to_published_ms")
        return message.SerializeToString()

    def _add_rows(self, before: Incident, incident: Incident, latency_ms: Mapping[str, float]) -> None:
        incident_id = incident.incident_id
        for id_, assignment in incident.assignments.items():
            earlier = before.assignments.get(id_)
            if assignment is not earlier:
                self.assignments[id_] = AssignmentRow(
                    assignment_id=id_,
                    incident_id=incident_id,
                    state=int(assignment.state),
                    due_ms=assignment.next_check_ms,
                    payload=self._payload(incident, assignment),
                    report_to_published_ms=latency_ms.get(id_),
                    unit_ids=" ".join(sorted(assignment.engaged_unit_ids)) or None,
                )
                self._engage(earlier, assignment, incident_id)
        # Most steps change no column of the incident's row, and it costs as much as the step's own row.
        if incident.opened_ms is not None and _columns(incident) != _columns(before):
            self.incidents[incident_id] = IncidentRow(
                incident_id=incident_id,
                opened_sequence=self.head.id,
                opened_ms=incident.opened_ms,
                ended_ms=incident.ended_ms,
                order_ids=list(incident.order_ids),
                exercise=int(incident.exercise),
            )

    def _engage(self, before: Assignment | None, after: Assignment, incident_id: str) -> None:
        for unit_id in before.engaged_unit_ids if before else ():
            self.engaged.get(unit_id, {}).pop(after.assignment_id, None)
        for unit_id in after.engaged_unit_ids:
            self.engaged.setdefault(unit_id, {})[after.assignment_id] = incident_id
