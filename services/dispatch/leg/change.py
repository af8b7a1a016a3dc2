"""Uncommitted results of commands: links of the chain, steps, and the rows that are derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from services.dispatch.absence.store import AwaitedRow
from services.dispatch.domain.decisions import Command, FoldAlert, decide
from services.dispatch.domain.events import AlertFolded, AlertWasMissing, Offered, PrivateStep, Reoffered, TargetsShown
from services.dispatch.domain.evolving import evolve
from services.dispatch.domain.incident import Assignment, Incident
from services.dispatch.leg import chain, translate
from services.dispatch.leg.store import AssignmentRow, IncidentRow
from services.dispatch.leg.subscriptions import Numbered


@dataclass(frozen=True, slots=True)
class CommittedIncident:
    """Committed state of an incident."""

    incident: Incident
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    """report_to_published_ms by assignment, where it is known."""


@dataclass(slots=True)
class Change:
    """Uncommitted results of the commands of one transaction."""

    head: chain.ChainHead
    known: dict[str, CommittedIncident]
    engaged: dict[str, dict[str, str]]
    """Open assignments of each unit, with the incident id of each."""
    behind: bool = False
    """The store is ahead of this process: another process of this leg wrote, or the answer to a commit was lost."""
    missed: list[Numbered] = field(default_factory=list)
    """Steps that the store is ahead by."""
    links: list[chain.ChainedEvent] = field(default_factory=list)
    steps: list[Numbered] = field(default_factory=list)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    incidents: dict[str, IncidentRow] = field(default_factory=dict)
    awaited: list[AwaitedRow] = field(default_factory=list)

    def decide(self, incident_id: str, command: Command) -> None:
        """Adds the results of a command. Raises NotFound or FailedPrecondition."""
        before = self.known[incident_id]
        incident, latency_ms = before.incident, dict(before.latency_ms)
        for event in decide(incident, command):
            incident = evolve(incident, event)
            link = chain.write(self.head, incident_id, event)
            self.head = chain.ChainHead(link.id, link.hash)
            self.links.append(link)
            if isinstance(event, AlertFolded | AlertWasMissing | TargetsShown):
                continue
            if isinstance(event, Offered | Reoffered):
                latency_ms.pop(event.assignment_id, None)  # the known latency belongs to an earlier offer
            assignment = incident.assignments[event.assignment_id]
            step = translate.step(
                incident,
                assignment,
                event.at_ms,
                latency_ms=latency_ms.get(event.assignment_id),
                kept=isinstance(event, PrivateStep),
            )
            self.steps.append(Numbered(link.id, step))
        if incident is before.incident:
            return
        self.known[incident_id] = CommittedIncident(incident, latency_ms)
        if isinstance(command, FoldAlert):
            due_ms = command.now_ms + command.deadlines.other_leg_ms
            new = sorted(incident.awaited - before.incident.awaited)
            self.awaited += [AwaitedRow(incident_id, leg, due_ms) for leg in new]
        for id_, assignment in incident.assignments.items():
            if assignment is not before.incident.assignments.get(id_):
                message = translate.assignment_message(incident, assignment, None)
                self.assignments[id_] = AssignmentRow(
                    assignment_id=id_,
                    incident_id=incident_id,
                    state=int(assignment.state),
                    due_ms=assignment.due_ms,
                    payload=message.SerializeToString(),
                    report_to_published_ms=latency_ms.get(id_),
                    unit_id=assignment.unit_id or None,
                )
                self._engage(before.incident.assignments.get(id_), assignment, incident_id)
        if incident.opened_ms is not None:
            self.incidents[incident_id] = IncidentRow(
                incident_id=incident_id,
                opened_sequence=self.head.id,
                opened_ms=incident.opened_ms,
                ended_ms=incident.ended_ms,
                order_ids=list(incident.order_ids),
                exercise=int(incident.exercise),
            )

    def _engage(self, before: Assignment | None, after: Assignment, incident_id: str) -> None:
        if before and before.unit_id:
            self.engaged.get(before.unit_id, {}).pop(before.assignment_id, None)
        if after.unit_id:
            self.engaged.setdefault(after.unit_id, {})[after.assignment_id] = incident_id
