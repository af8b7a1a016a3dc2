"""Requests to local governments for CCTV (Tag Act 16-3(2) and (3)): their steps, and when the next step is due. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum

from services.common.errors import FailedPrecondition, InvalidField
from services.registry.domain.records import CLOCKS_DIFFER_MS

ANSWER_WITHIN_MS = 3_600_000
"""Time for a local government's answer. No article sets it: a request is urgent by law, and an hour without an answer needs a call."""
VIEW_WITHIN_MS = 7 * 86_400_000
"""Time for the end of the viewing. No article sets it: without it the duty to tell the wearer would never begin."""
NOTIFY_WITHIN_MS = 30 * 86_400_000
"""Time to tell the wearer after the end of the viewing (Enforcement Rule 11-7(1))."""


class CctvGround(Enum):
    """Duty whose breach, or well-founded suspicion of one, allows a request."""

    CONDITION_9_2 = "CONDITION_9_2"
    DUTY_14_1 = "DUTY_14_1"


class CctvStep(Enum):
    """Steps of a request."""

    REQUESTED = "REQUESTED"
    PROVIDED = "PROVIDED"
    DECLINED = "DECLINED"
    VIEWING_ENDED = "VIEWING_ENDED"
    WEARER_NOTIFIED = "WEARER_NOTIFIED"


_NEXT: Mapping[CctvStep, tuple[CctvStep, ...]] = {
    CctvStep.REQUESTED: (CctvStep.PROVIDED, CctvStep.DECLINED),
    CctvStep.PROVIDED: (CctvStep.VIEWING_ENDED,),
    CctvStep.DECLINED: (),
    CctvStep.VIEWING_ENDED: (CctvStep.WEARER_NOTIFIED,),
    CctvStep.WEARER_NOTIFIED: (),
}
WITHIN_MS: Mapping[CctvStep, int] = {
    CctvStep.REQUESTED: ANSWER_WITHIN_MS,
    CctvStep.PROVIDED: VIEW_WITHIN_MS,
    CctvStep.VIEWING_ENDED: NOTIFY_WITHIN_MS,
}
"""Time for the step after each step, milliseconds. After the other steps nothing is due."""


@dataclass(frozen=True, slots=True)
class CctvEntry:
    """An entry of the log. It is never changed."""

    step: CctvStep
    at_ms: int
    """When it happened, milliseconds since 1970 UTC."""
    recorded_ms: int
    """When it was entered, mesh time."""
    recorded_by: str
    """SPIFFE id of the caller who entered it."""
    text: str = ""
    """Details or note; empty if they aren't disclosed, or were destroyed."""


@dataclass(frozen=True, slots=True)
class CctvRequest:
    """A request with its entries."""

    request_id: str
    wearer_id: str
    ground: CctvGround
    government: str
    entries: tuple[CctvEntry, ...]
    """At least one: the request itself comes first."""

    @property
    def last(self) -> CctvEntry:
        """The last entry."""
        return self.entries[-1]

    @property
    def due_ms(self) -> int | None:
        """When the next step is due, milliseconds since 1970 UTC; None if nothing is due any more."""
        within_ms = WITHIN_MS.get(self.last.step)
        return None if within_ms is None else self.last.at_ms + within_ms

    def is_overdue(self, now_ms: int) -> bool:
        """Whether the next step is overdue."""
        return self.due_ms is not None and self.due_ms < now_ms


def with_step(request: CctvRequest, entry: CctvEntry) -> CctvRequest:
    """The request with its next entry. Returns the same request if the step is a repetition.

    Raises FailedPrecondition if the step doesn't follow the last one, InvalidField if its time can't be right.
    """
    known = next((known for known in request.entries if known.step is entry.step), None)
    if known is not None and known.at_ms == entry.at_ms:
        return request
    if entry.step not in _NEXT[request.last.step]:
        following = " or ".join(step.value for step in _NEXT[request.last.step]) or "nothing"
        raise FailedPrecondition(f"step: {following} follows {request.last.step.value}; entries can't be changed")
    if entry.at_ms < request.last.at_ms - CLOCKS_DIFFER_MS:
        raise InvalidField("at", "must not be earlier than the step before it")
    if entry.at_ms > entry.recorded_ms + CLOCKS_DIFFER_MS:
        raise InvalidField("at", "must not be in the future")
    return replace(request, entries=(*request.entries, entry))
