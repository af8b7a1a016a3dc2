"""Uncommitted results of commands: links of the chain, steps, and the rows that are derived from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from services.dispatch.absence.store import AwaitedRow
from services.dispatch.domain.assignment import Assignment
from services.dispatch.domain.decisions import Command, FoldAlert, decide
from services.dispatch.domain.escalation import Situation
from services.dispatch.domain.events import Event, Offered, PrivateStep, Reoffered, Step
from services.dispatch.domain.incident import Incident, evolve
from services.dispatch.leg import chain, translate
from services.dispatch.leg.rows import AssignmentRow, IncidentRow
from services.dispatch.publications.steps import NumberedStep


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


@dataclass(slots=True)
class Change:
    """Uncommitted results of the commands of one transaction."""

    head: chain.ChainHead
    known: dict[str, CommittedIncident]
    engaged: dict[str, dict[str, str]]
    """Incident id by assignment id, for the open assignments of each unit id."""
    behind: bool = False
    """The store is ahead of this process: another process of this leg wrote, or the answer to a commit was lost."""
    missed: list[NumberedStep] = field(default_factory=list)
    """Steps in the store that this process doesn't know yet."""
    links: list[chain.ChainedEvent] = field(default_factory=list)
    steps: list[NumberedStep] = field(default_factory=list)
    assignments: dict[str, AssignmentRow] = field(default_factory=dict)
    incidents: dict[str, IncidentRow] = field(default_factory=dict)
    awaited: list[AwaitedRow] = field(default_factory=list)

    def decide(self, incident_id: str, command: Command, situation: Situation) -> None:
        """Adds the results of a command. Raises NotFound or FailedPrecondition."""
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
        step = translate.step(
            incident,
            incident.assignments[event.assignment_id],
            event.at_ms,
            latency_ms=latency_ms.get(event.assignment_id),
            kept=isinstance(event, PrivateStep),
        )
        self.steps.append(NumberedStep(self.head.id, step))

    def _add_rows(self, before: Incident, incident: Incident, latency_ms: Mapping[str, float]) -> None:
        incident_id = incident.incident_id
        for id_, assignment in incident.assignments.items():
            earlier = before.assignments.get(id_)
            if assignment is not earlier:
                self.assignments[id_] = AssignmentRow(
                    assignment_id=id_,
                    incident_id=incident_id,
                    state=int(assignment.state),
                    due_ms=assignment.due_ms,
                    payload=translate.assignment_message(incident, assignment, None).SerializeToString(),
                    report_to_published_ms=latency_ms.get(id_),
                    unit_id=assignment.unit_id or None,
                )
                self._engage(earlier, assignment, incident_id)
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
