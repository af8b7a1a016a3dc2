"""A finding about an incident, and when it is overdue. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta, timezone

from services.common.rpc.errors import FailedPrecondition

KOREA = timezone(timedelta(hours=9), "KST")


@dataclass(frozen=True, slots=True)
class Closing:
    """The end of a finding."""

    at_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    by: str
    """SPIFFE id of the reviewer."""
    outcome: str


@dataclass(frozen=True, slots=True)
class ReviewFinding:
    """What a reviewer found in an incident."""

    finding_id: str
    incident_id: str
    text: str
    owner: str
    """Who has to act."""
    due_on: date
    """Last day to act, by Korea's time."""
    made_by: str
    made_ms: int
    """Mesh time, milliseconds since 1970 UTC."""
    closing: Closing | None = None

    @property
    def due_ms(self) -> int:
        """End of the last day, exclusive, milliseconds since 1970 UTC."""
        return round(1000 * datetime.combine(self.due_on + timedelta(days=1), time(), KOREA).timestamp())

    def is_overdue(self, now_ms: int) -> bool:
        """Whether it is open after its last day."""
        return self.closing is None and now_ms >= self.due_ms

    def says(self, other: ReviewFinding) -> bool:
        """Whether another finding has the same content."""
        return (self.incident_id, self.text, self.owner, self.due_on) == (
            other.incident_id,
            other.text,
            other.owner,
            other.due_on,
        )


def closed(finding: ReviewFinding, closing: Closing) -> ReviewFinding:
    """The closed finding. A repeated closing changes nothing. Raises FailedPrecondition if it has another outcome already."""
    if finding.closing is None:
        return replace(finding, closing=closing)
    if finding.closing.outcome != closing.outcome:
        raise FailedPrecondition("finding_id: this finding is closed with another outcome, which can't be changed")
    return finding
