"""Decide whether an order is enforced against a wearer, from the match of the records and the decisions of people. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from services.common.rpc.errors import FailedPrecondition
from services.registry.matching.similarity import MatchLevel

ANSWER_WITHIN_MS = 15 * 60_000
"""How long a review may stay open before both agencies are paged, milliseconds of mesh time."""
TOKENS_KEPT_MS = 7 * 86_400_000
"""How long a resume token works, milliseconds of mesh time. A token expires once an event after it is older."""


class ReviewState(Enum):
    """State of a review."""

    OPEN = "OPEN"
    CERTAIN = "CERTAIN"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    CLOSED = "CLOSED"


class Decision(Enum):
    """Decision of a person on a review."""

    CONFIRM = "CONFIRM"
    REJECT = "REJECT"
    UNDO = "UNDO"


class Event(Enum):
    """Kind of event in the stream of matches."""

    MATCHED = "MATCHED"
    REVIEW_OPENED = "REVIEW_OPENED"
    REVIEW_UNANSWERED = "REVIEW_UNANSWERED"
    CONFIRMED = "CONFIRMED"
    REJECTED = "REJECTED"
    UNDONE = "UNDONE"
    WITHDRAWN = "WITHDRAWN"
    GROUND_FELL = "GROUND_FELL"


class MatchEvent(NamedTuple):
    """An event about an order and a wearer, for the stream of matches."""

    event: Event
    case_id: str
    order_id: str
    wearer_id: str
    matched_at_ms: int
    """When the pair was matched, mesh time; the time of the event if it isn't matched."""
    at_ms: int
    """When the event happened, mesh time."""


@dataclass(frozen=True, slots=True)
class MatchEvidence:
    """Evidence from two records on whether they describe one person."""

    digest: bytes
    """Keyed digest of the compared data of both records, which changes if any of these data changes."""
    weight_bits: float
    reasons: tuple[str, ...]
    """The weights as sentences, without personal data."""


@dataclass(frozen=True, slots=True)
class Review:
    """Review of the question whether the respondent of an order and a wearer are one person."""

    case_id: str
    order_id: str
    wearer_id: str
    state: ReviewState
    enforced: bool
    evidence: MatchEvidence
    since_ms: int
    """When the review entered this state, mesh time."""
    decided_by: str = ""
    """SPIFFE id of the person who decided; empty if nobody has."""
    paged_at_ms: int | None = None
    """When both agencies were paged because nobody had decided, mesh time; None if they weren't paged."""


def next_state(before: Review | None, level: MatchLevel, evidence: bytes) -> tuple[ReviewState, bool] | None:
    """State of a review after a comparison, and whether the order is enforced; None if no review is needed.

    A person's decision holds while the evidence stays the same. New evidence reopens a decided review, except in two cases.
    A certain match needs no decision; after a rejection, only equal national numbers make a match certain. A rejected pair needs no
    review if its records no longer match. A confirmed order stays enforced until a person decides again.
    """
    state = before.state if before else None
    if before and state in (ReviewState.CONFIRMED, ReviewState.REJECTED) and before.evidence.digest == evidence:
        return before.state, before.enforced
    if level is MatchLevel.EXACT or (level is MatchLevel.CERTAIN and state is not ReviewState.REJECTED):
        return ReviewState.CERTAIN, True
    # Only a person's confirmation keeps the order enforced; an earlier match of the records alone doesn't.
    still_enforced = before is not None and before.enforced and state in (ReviewState.CONFIRMED, ReviewState.OPEN)
    if level is not MatchLevel.NONE or still_enforced:
        return ReviewState.OPEN, still_enforced
    return None if before is None else (ReviewState.CLOSED, False)


def updated(before: Review, state: ReviewState, enforced: bool, *, evidence: MatchEvidence, now_ms: int) -> Review:
    """The review with new evidence. If the state stays the same, `since_ms`, `decided_by` and `paged_at_ms` also stay."""
    if state is before.state:
        return replace(before, enforced=enforced, evidence=evidence)
    return replace(
        before, state=state, enforced=enforced, evidence=evidence, since_ms=now_ms, decided_by="", paged_at_ms=None
    )


def decided(
    review: Review, decision: Decision, level: MatchLevel, *, seen_digest: bytes, by: str, now_ms: int
) -> Review:
    """The review after a person's decision. Raises FailedPrecondition if the evidence changed or there is nothing to undo.

    `level` is the current match level of the records, `seen_digest` the digest of the evidence that the person saw.
    """
    if seen_digest != review.evidence.digest:
        raise FailedPrecondition("evidence: the records have changed since; read the review again, then decide")
    if decision is Decision.UNDO:
        if review.state not in (ReviewState.CONFIRMED, ReviewState.REJECTED):
            raise FailedPrecondition("decision: nobody has decided, so there is nothing to undo")
        state, enforced = next_state(None, level, seen_digest) or (ReviewState.CLOSED, False)
    else:
        enforced = decision is Decision.CONFIRM
        state = ReviewState.CONFIRMED if enforced else ReviewState.REJECTED
    by = "" if decision is Decision.UNDO else by
    return replace(review, state=state, enforced=enforced, since_ms=now_ms, decided_by=by, paged_at_ms=None)
