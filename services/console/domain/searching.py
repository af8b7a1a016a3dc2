"""Search among incidents. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from services.console.domain.board import IncidentCard


@dataclass(frozen=True, slots=True)
class IncidentQuery:
    """Search query; an empty field doesn't restrict the result."""

    from_ms: int | None = None
    until_ms: int | None = None
    text: str = ""
    """Part of the id of an incident, an order or a subject."""
    cause: str = ""
    """Kind of alert."""
    outcome: str = ""
    """`open`, `over`, or a closing cause."""
    office: str = ""


def matching(incidents: Iterable[IncidentCard], question: IncidentQuery) -> list[IncidentCard]:
    """Returns the incidents that match, newest first, exercises too."""
    matched = [incident for incident in incidents if _matches(incident, question)]
    return sorted(matched, key=lambda incident: incident.opened_ms, reverse=True)


def _matches(incident_card: IncidentCard, question: IncidentQuery) -> bool:
    if question.from_ms is not None and incident_card.opened_ms < question.from_ms:
        return False
    if question.until_ms is not None and incident_card.opened_ms >= question.until_ms:
        return False
    named = [
        incident_card.incident_id,
        *(id_ for to in incident_card.assignments for id_ in (to.subject_id, *to.order_ids)),
    ]
    if question.text and not any(question.text in id_ for id_ in named):
        return False
    if question.cause and all(to.kind != question.cause for to in incident_card.assignments):
        return False
    if question.office and all(to.office_id != question.office for to in incident_card.assignments):
        return False
    match question.outcome:
        case "":
            return True
        case "open":
            return incident_card.ended_ms is None
        case "over":
            return incident_card.ended_ms is not None
        case cause:
            return any(to.close_cause == cause for to in incident_card.assignments)
