"""Whether an order is enforced against a wearer: what the records say, and what a person has said about it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum

from services.common.rpc.errors import FailedPrecondition

ANSWER_WITHIN_MS = 15 * 60_000
"""How long a review may stay open before both agencies are paged, mesh time."""
TOKENS_KEPT_MS = 7 * 86_400_000
"""How old what follows a resume token may be, mesh time."""


class MatchLevel(Enum):
    """What the records alone say."""

    EXACT = "EXACT"
    """The same national number."""
    CERTAIN = "CERTAIN"
    POSSIBLE = "POSSIBLE"
    NONE = "NONE"


class ReviewState(Enum):
    """Where a question stands."""

    OPEN = "OPEN"
    CERTAIN = "CERTAIN"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    CLOSED = "CLOSED"


class Decision(Enum):
    """What a person decides."""

    CONFIRM = "CONFIRM"
    REJECT = "REJECT"
    UNDO = "UNDO"


class Event(Enum):
    """What those who watch are told."""

    MATCHED = "MATCHED"
    REVIEW_OPENED = "REVIEW_OPENED"
    REVIEW_UNANSWERED = "REVIEW_UNANSWERED"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    UNDONE = "UNDONE"
    WITHDRAWN = "WITHDRAWN"
    GROUND_FELL = "GROUND_FELL"


@dataclass(frozen=True, slots=True)
class MatchEvidence:
    """What two records say about whether they mean one person."""

    digest: bytes
    """Of what both say; a change of either changes it."""
    weight_bits: float
    reasons: tuple[str, ...]
    """The weights in words, without personal data."""


@dataclass(frozen=True, slots=True)
class Review:
    """One question: are the respondent of an order and a wearer one person?"""

    case_id: str
    order_id: str
    wearer_id: str
    state: ReviewState
    enforced: bool
    evidence: MatchEvidence
    since_ms: int
    """Since when it stands so, mesh time."""
    decided_by: str = ""
    """SPIFFE id of who decided."""
    paged_at_ms: int | None = None
    """When both agencies were paged because nobody answered."""


def stands(before: Review | None, level: MatchLevel, evidence: bytes) -> tuple[ReviewState, bool] | None:
    """Where the question stands and whether the order is enforced; None where there is no question.

    A person's word holds as long as the evidence is the same. A rejection reopens when it changes. A confirmation never ends
    by itself: until somebody decides anew, the order stays enforced.
    """
    state = before.state if before else None
    if before and state in (ReviewState.CONFIRMED, ReviewState.REJECTED) and before.evidence.digest == evidence:
        return before.state, before.enforced
    if level is MatchLevel.EXACT or (level is MatchLevel.CERTAIN and state is not ReviewState.REJECTED):
        return ReviewState.CERTAIN, True
    # Enforced by a person's word only: what the records said before doesn't count any more.
    kept = before is not None and before.enforced and state in (ReviewState.CONFIRMED, ReviewState.OPEN)
    if level is not MatchLevel.NONE or kept:
        return ReviewState.OPEN, kept
    return None if before is None else (ReviewState.CLOSED, False)


def restated(before: Review, state: ReviewState, enforced: bool, evidence: MatchEvidence, now_ms: int) -> Review:
    """The review once the records say something else. What stands as it stood goes on waiting for its answer."""
    if state is before.state:
        return replace(before, enforced=enforced, evidence=evidence)
    return replace(
        before, state=state, enforced=enforced, evidence=evidence, since_ms=now_ms, decided_by="", paged_at_ms=None
    )


def decided(review: Review, decision: Decision, level: MatchLevel, seen: bytes, by: str, now_ms: int) -> Review:
    """The review once a person has decided. Raises FailedPrecondition where it isn't to be decided so.

    `level` is what the records say now, `seen` the digest of the evidence that the person looked at.
    """
    if seen != review.evidence.digest:
        raise FailedPrecondition("evidence: the records have changed since; look at the review again")
    if decision is Decision.UNDO:
        if review.state not in (ReviewState.CONFIRMED, ReviewState.REJECTED):
            raise FailedPrecondition("decision: nobody has decided, so there is nothing to undo")
        state, enforced = stands(None, level, seen) or (ReviewState.CLOSED, False)
    else:
        enforced = decision is Decision.CONFIRM
        state = ReviewState.CONFIRMED if enforced else ReviewState.REJECTED
    by = "" if decision is Decision.UNDO else by
    return replace(review, state=state, enforced=enforced, since_ms=now_ms, decided_by=by, paged_at_ms=None)
