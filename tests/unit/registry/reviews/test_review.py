"""State of a review after comparisons of the records and decisions of people."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import FailedPrecondition
from services.registry.domain.reviews import (
    Decision,
    MatchEvidence,
    MatchLevel,
    Review,
    ReviewState,
    SeenReview,
    decided_review,
    next_review_state,
    updated_review,
)

OPEN = ReviewState.OPEN
CERTAIN = ReviewState.CERTAIN
CONFIRMED = ReviewState.CONFIRMED
REJECTED = ReviewState.REJECTED
CLOSED = ReviewState.CLOSED
SAME, OTHER = b"same", b"other"


def review_in(state: ReviewState, enforced: bool) -> Review:
    """A review with the evidence SAME, since 1000, paged at 2000."""
    return Review("case-1", "o-1", "w-1", state, enforced, MatchEvidence(SAME, 12.0, ()), 1000, "who", 2000)


@pytest.mark.parametrize(
    ("before", "level", "evidence", "expected"),
    [
        (None, MatchLevel.EXACT, SAME, (CERTAIN, True)),
        (None, MatchLevel.CERTAIN, SAME, (CERTAIN, True)),
        (None, MatchLevel.POSSIBLE, SAME, (OPEN, False)),
        (None, MatchLevel.NONE, SAME, None),
        # A person's decision holds for the same evidence, even against the match level of the records.
        (review_in(REJECTED, False), MatchLevel.EXACT, SAME, (REJECTED, False)),
        (review_in(REJECTED, False), MatchLevel.POSSIBLE, SAME, (REJECTED, False)),
        (review_in(CONFIRMED, True), MatchLevel.POSSIBLE, SAME, (CONFIRMED, True)),
        # New evidence reopens a rejection. Then only an equal number enforces the order without a decision.
        (review_in(REJECTED, False), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
        (review_in(REJECTED, False), MatchLevel.CERTAIN, OTHER, (OPEN, False)),
        (review_in(REJECTED, False), MatchLevel.EXACT, OTHER, (CERTAIN, True)),
        (review_in(REJECTED, False), MatchLevel.NONE, OTHER, (CLOSED, False)),
        # New evidence reopens a confirmation, but the order stays enforced.
        (review_in(CONFIRMED, True), MatchLevel.POSSIBLE, OTHER, (OPEN, True)),
        (review_in(CONFIRMED, True), MatchLevel.NONE, OTHER, (OPEN, True)),
        (review_in(CONFIRMED, True), MatchLevel.CERTAIN, OTHER, (CERTAIN, True)),
        (review_in(OPEN, True), MatchLevel.NONE, OTHER, (OPEN, True)),
        (review_in(OPEN, False), MatchLevel.NONE, OTHER, (CLOSED, False)),
        (review_in(OPEN, False), MatchLevel.CERTAIN, OTHER, (CERTAIN, True)),
        # After a corrected number the records no longer match, and no person had confirmed the match.
        (review_in(CERTAIN, True), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
        (review_in(CERTAIN, True), MatchLevel.NONE, OTHER, (CLOSED, False)),
        (review_in(CLOSED, False), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
    ],
)
def test_the_next_state_of_a_review(
    before: Review | None, level: MatchLevel, evidence: bytes, expected: tuple[ReviewState, bool] | None
) -> None:
    assert next_review_state(before, level, evidence) == expected


def test_an_open_review_keeps_its_start_and_a_reopened_one_gets_a_new_start() -> None:
    evidence = MatchEvidence(OTHER, 11.0, ())
    still_open = updated_review(review_in(OPEN, False), OPEN, False, evidence=evidence, legal_basis="", now_ms=5000)
    assert (still_open.since_ms, still_open.paged_at_ms, still_open.evidence) == (1000, 2000, evidence)
    reopened = updated_review(review_in(REJECTED, False), OPEN, False, evidence=evidence, legal_basis="", now_ms=5000)
    assert (reopened.since_ms, reopened.paged_at_ms, reopened.decided_by) == (5000, None, "")


def test_a_person_confirms_rejects_and_undoes() -> None:
    question = review_in(OPEN, False)
    confirmed = decided_review(
        question, Decision.CONFIRM, MatchLevel.POSSIBLE, seen=SeenReview(SAME, None), by="desk", now_ms=7000
    )
    assert (confirmed.state, confirmed.enforced, confirmed.decided_by, confirmed.since_ms) == (
        CONFIRMED,
        True,
        "desk",
        7000,
    )
    rejected = decided_review(
        confirmed, Decision.REJECT, MatchLevel.POSSIBLE, seen=SeenReview(SAME, 7000), by="other desk", now_ms=8000
    )
    assert (rejected.state, rejected.enforced, rejected.decided_by) == (REJECTED, False, "other desk")
    undone = decided_review(
        rejected, Decision.UNDO, MatchLevel.POSSIBLE, seen=SeenReview(SAME, None), by="desk", now_ms=9000
    )
    assert (undone.state, undone.enforced, undone.decided_by, undone.paged_at_ms) == (OPEN, False, "", None)
    certain = replace(rejected, state=REJECTED)
    assert decided_review(
        certain, Decision.UNDO, MatchLevel.EXACT, seen=SeenReview(SAME, None), by="desk", now_ms=9000
    ).enforced


@pytest.mark.parametrize("now_ms", [1000, 400])
def test_each_state_has_a_time_of_its_own_also_if_the_clock_was_set_back(now_ms: int) -> None:
    question = review_in(OPEN, False)
    seen = SeenReview(SAME, None)
    confirmed = decided_review(question, Decision.CONFIRM, MatchLevel.POSSIBLE, seen=seen, by="desk", now_ms=now_ms)
    undone = decided_review(confirmed, Decision.UNDO, MatchLevel.POSSIBLE, seen=seen, by="desk", now_ms=now_ms)
    evidence = MatchEvidence(OTHER, 1.0, ())
    closed = updated_review(undone, CLOSED, False, evidence=evidence, legal_basis="", now_ms=now_ms)
    assert [review.since_ms for review in (question, confirmed, undone, closed)] == [1000, 1001, 1002, 1003]
    with pytest.raises(FailedPrecondition, match="CONFIRMED since"):
        decided_review(
            confirmed,
            Decision.REJECT,
            MatchLevel.POSSIBLE,
            seen=SeenReview(SAME, question.since_ms),
            by="other desk",
            now_ms=now_ms,
        )


def test_a_decision_on_outdated_evidence_or_an_undo_of_nothing_is_rejected() -> None:
    with pytest.raises(FailedPrecondition, match="changed"):
        decided_review(
            review_in(OPEN, False),
            Decision.CONFIRM,
            MatchLevel.POSSIBLE,
            seen=SeenReview(OTHER, None),
            by="desk",
            now_ms=7000,
        )
    for state in (OPEN, CERTAIN, CLOSED):
        with pytest.raises(FailedPrecondition, match="undo"):
            decided_review(
                review_in(state, False),
                Decision.UNDO,
                MatchLevel.POSSIBLE,
                seen=SeenReview(SAME, None),
                by="desk",
                now_ms=7000,
            )
