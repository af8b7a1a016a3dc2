"""Search among incidents, and their statistics: response times, causes, share of false alerts. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from services.common.percentiles import percentile
from services.console.domain import board
from services.console.domain.board import IncidentCard

FALSE = frozenset({"FALSE_POSITION", "EQUIPMENT"})
"""Closing causes of false alerts, for which nobody should have been sent."""
PERCENTILES = (50, 90, 99)


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


@dataclass(frozen=True, slots=True)
class LegFigures:
    """Response times of one leg."""

    leg: str
    offered: int
    acknowledged: int
    seconds: dict[int, float]
    """Time from the offer to its acknowledgement, in s, by percentile; empty if nothing was acknowledged."""


def matching(incidents: Iterable[IncidentCard], question: IncidentQuery) -> list[IncidentCard]:
    """Returns the incidents that match, newest first. Exercises are found, but statistics exclude them."""
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


def live_only(incidents: Iterable[IncidentCard]) -> list[IncidentCard]:
    """Returns the incidents that aren't exercises."""
    return [incident for incident in incidents if not any(to.exercise for to in incident.assignments)]


def legs(incidents: Sequence[IncidentCard]) -> list[LegFigures]:
    """Returns the response times of each leg. Assignments without an offer, such as notices, don't count."""
    figures = []
    for leg in board.LEGS:
        offered = [to for incident in incidents for to in incident.of(leg) if to.offered_ms is not None]
        seconds = [
            (to.acknowledged_ms - to.offered_ms) / 1000
            for to in offered
            if to.acknowledged_ms is not None and to.offered_ms is not None
        ]
        percentiles = {p: percentile(seconds, p) for p in PERCENTILES} if seconds else {}
        figures.append(LegFigures(leg=leg, offered=len(offered), acknowledged=len(seconds), seconds=percentiles))
    return figures


def causes(incidents: Iterable[IncidentCard]) -> list[tuple[str, int]]:
    """Counts the incidents by kind of alert, most frequent first."""
    return Counter(kind for incident in incidents if (kind := board.cause(incident))).most_common()


def closings(incidents: Iterable[IncidentCard]) -> list[tuple[str, int]]:
    """Counts the closed assignments by closing cause, most frequent first."""
    return Counter(
        to.close_cause for incident in incidents for to in incident.assignments if to.close_cause
    ).most_common()


def false_share(closed: Iterable[tuple[str, int]]) -> float | None:
    """Returns the share of false alerts among closed assignments, 0 to 1; None if nothing was closed."""
    counts = dict(closed)
    total = sum(counts.values())
    return sum(counts.get(cause, 0) for cause in FALSE) / total if total else None
