"""Decide whether an order is enforced against a wearer, from the match of the records and the decisions of people. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from services.common.rpc.errors import FailedPrecondition
from services.registry.matching.similarity import MatchLevel
from services.registry.matching.weights import FieldComparison

ANSWER_WITHIN_MS = 15 * 60_000
"""How long a review may stay open before both agencies are paged, milliseconds of mesh time."""
ALARMS_MAX = 1000
"""Maximum number of alarmed reviews that are listed."""
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


_DECIDED = {Decision.CONFIRM: ReviewState.CONFIRMED, Decision.REJECT: ReviewState.REJECTED}
"""State after each decision that isn't undone."""


class Event(Enum):
    """Kind of event in the stream of matches."""

    MATCHED = "MATCHED"
    REVIEW_OPENED = "REVIEW_OPENED"
    REVIEW_UNANSWERED = "REVIEW_UNANSWERED"
    REVIEW_CLOSED = "REVIEW_CLOSED"
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
    agreements: tuple[FieldComparison, ...]
    """How each field agrees that both records state, greatest weight first, without personal data."""

    @property
    def reasons(self) -> tuple[str, ...]:
        """The agreements as sentences with their weights."""
        return tuple(f"{field.words} ({field.weight:+.1f} bits)" for field in self.agreements)


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
    """When the review entered this state, mesh time. It grows with each state, also where the clock doesn't."""
    decided_by: str = ""
    """SPIFFE id of the person who decided; empty if nobody has."""
    paged_at_ms: int | None = None
    """When both agencies were paged because nobody had decided, mesh time; None if they weren't paged."""
    legal_basis: str = ""
    """Code of the order's article, under which both records may be read; empty if the order states no type."""


class ReviewComparison(NamedTuple):
    """A comparison of a pair whose compared data had changed, or that was compared for the first time."""

    case_id: str
    at_ms: int
    """Mesh time."""
    order_version: int
    """Version of the police's record."""
    wearer_version: int
    """Version of the Ministry's record."""
    weight_bits: float
    agreements: tuple[FieldComparison, ...]


class ReviewQueue(NamedTuple):
    """The reviews that wait for a person."""

    open: int
    oldest_since_ms: int | None
    """When the oldest of them was opened, mesh time; None if none waits."""
    alarmed: int
    """Number of reviews for which both agencies are alarmed, because nobody decided within ANSWER_WITHIN_MS."""
    alarms: tuple[Review, ...] = ()
    """These reviews, the longest waiting first, at most ALARMS_MAX."""


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


def updated(
    before: Review, state: ReviewState, enforced: bool, *, evidence: MatchEvidence, legal_basis: str, now_ms: int
) -> Review:
    """The review with new evidence. If the state stays the same, `since_ms`, `decided_by` and `paged_at_ms` also stay."""
    before = replace(before, legal_basis=legal_basis)
    if state is before.state:
        return replace(before, enforced=enforced, evidence=evidence)
    since_ms = _next_since_ms(before, now_ms)
    return replace(
        before, state=state, enforced=enforced, evidence=evidence, since_ms=since_ms, decided_by="", paged_at_ms=None
    )


def _next_since_ms(review: Review, now_ms: int) -> int:
    """Time at which a review enters its next state, mesh time.

    It is later than that of the present state, also after the clock was set back: callers recognise a state by its time, and the key of
    a decision's reason is named by it.
    """
    return max(now_ms, review.since_ms + 1)


class SeenReview(NamedTuple):
    """What a person saw of a review before deciding it."""

    digest: bytes
    """Digest of the evidence."""
    since_ms: int | None
    """When the review had entered its state, mesh time; None if the caller doesn't say."""


def is_repeated(review: Review, decision: Decision, *, seen: SeenReview, by: str) -> bool:
    """Whether the review already is as this person's decision leaves it, for example because the answer was lost."""
    is_same = _DECIDED.get(decision) is review.state and review.decided_by == by
    return is_same and seen.digest == review.evidence.digest


def decided(review: Review, decision: Decision, level: MatchLevel, *, seen: SeenReview, by: str, now_ms: int) -> Review:
    """The review after a person's decision. `level` is the current match level of the records.

    Raises FailedPrecondition if the records or the state have changed since the person saw them, if somebody has decided and the
    caller doesn't say what was seen, or if there is nothing to undo.
    """
    _check_seen(review, decision, seen)
    if decision is Decision.UNDO:
        state, enforced = next_state(None, level, seen.digest) or (ReviewState.CLOSED, False)
    else:
        state, enforced = _DECIDED[decision], decision is Decision.CONFIRM
    by, since_ms = "" if decision is Decision.UNDO else by, _next_since_ms(review, now_ms)
    return replace(review, state=state, enforced=enforced, since_ms=since_ms, decided_by=by, paged_at_ms=None)


def _check_seen(review: Review, decision: Decision, seen: SeenReview) -> None:
    is_decided = review.state in _DECIDED.values()
    if seen.digest != review.evidence.digest:
        raise FailedPrecondition(
            "evidence: the records have changed since; read the review again, then decide", code="EVIDENCE_CHANGED"
        )
    if decision is Decision.UNDO and not is_decided:
        raise FailedPrecondition("decision: nobody has decided, so there is nothing to undo", code="NOTHING_TO_UNDO")
    if seen.since_ms not in (None, review.since_ms):
        raise FailedPrecondition(
            f"seen_since: the review has become {review.state.value} since; read it again, then decide",
            code="DECIDED_MEANWHILE",
        )
    if seen.since_ms is None and is_decided and decision is not Decision.UNDO:
        raise FailedPrecondition(
            f"decision: the review is {review.state.value} already; send seen_since, or undo that decision first",
            code="ALREADY_DECIDED",
        )
