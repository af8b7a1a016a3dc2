"""Where a question stands, given what the records say and what a person has said."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.rpc.errors import FailedPrecondition
from services.registry import review
from services.registry.review import Decision, MatchEvidence, MatchLevel, Review, ReviewState

OPEN, CERTAIN, CONFIRMED, REJECTED, CLOSED = (
    ReviewState.OPEN,
    ReviewState.CERTAIN,
    ReviewState.CONFIRMED,
    ReviewState.REJECTED,
    ReviewState.CLOSED,
)
SAME, OTHER = b"same", b"other"


def stood(state: ReviewState, enforced: bool) -> Review:
    """A review with the evidence SAME, since 1000, paged at 2000."""
    return Review("case-1", "o-1", "w-1", state, enforced, MatchEvidence(SAME, 12.0, ("why",)), 1000, "who", 2000)


@pytest.mark.parametrize(
    ("before", "level", "evidence", "expected"),
    [
        (None, MatchLevel.EXACT, SAME, (CERTAIN, True)),
        (None, MatchLevel.CERTAIN, SAME, (CERTAIN, True)),
        (None, MatchLevel.POSSIBLE, SAME, (OPEN, False)),
        (None, MatchLevel.NONE, SAME, None),
        # What a person has said holds for the same evidence, whatever the records alone would say.
        (stood(REJECTED, False), MatchLevel.EXACT, SAME, (REJECTED, False)),
        (stood(REJECTED, False), MatchLevel.POSSIBLE, SAME, (REJECTED, False)),
        (stood(CONFIRMED, True), MatchLevel.POSSIBLE, SAME, (CONFIRMED, True)),
        # A rejection reopens with other evidence; only an equal number enforces by itself.
        (stood(REJECTED, False), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
        (stood(REJECTED, False), MatchLevel.CERTAIN, OTHER, (OPEN, False)),
        (stood(REJECTED, False), MatchLevel.EXACT, OTHER, (CERTAIN, True)),
        (stood(REJECTED, False), MatchLevel.NONE, OTHER, (CLOSED, False)),
        # A confirmation is looked at again and goes on being enforced.
        (stood(CONFIRMED, True), MatchLevel.POSSIBLE, OTHER, (OPEN, True)),
        (stood(CONFIRMED, True), MatchLevel.NONE, OTHER, (OPEN, True)),
        (stood(CONFIRMED, True), MatchLevel.CERTAIN, OTHER, (CERTAIN, True)),
        (stood(OPEN, True), MatchLevel.NONE, OTHER, (OPEN, True)),
        (stood(OPEN, False), MatchLevel.NONE, OTHER, (CLOSED, False)),
        (stood(OPEN, False), MatchLevel.CERTAIN, OTHER, (CERTAIN, True)),
        # A corrected number: the match was the records' own, and they don't say so any more.
        (stood(CERTAIN, True), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
        (stood(CERTAIN, True), MatchLevel.NONE, OTHER, (CLOSED, False)),
        (stood(CLOSED, False), MatchLevel.POSSIBLE, OTHER, (OPEN, False)),
    ],
)
def test_where_a_question_stands(
    before: Review | None, level: MatchLevel, evidence: bytes, expected: tuple[ReviewState, bool] | None
) -> None:
    assert review.next_state(before, level, evidence) == expected


def test_what_stays_open_goes_on_waiting_and_what_reopens_waits_anew() -> None:
    evidence = MatchEvidence(OTHER, 11.0, ("other",))
    still = review.updated(stood(OPEN, False), OPEN, False, evidence, 5000)
    assert (still.since_ms, still.paged_at_ms, still.evidence) == (1000, 2000, evidence)
    anew = review.updated(stood(REJECTED, False), OPEN, False, evidence, 5000)
    assert (anew.since_ms, anew.paged_at_ms, anew.decided_by) == (5000, None, "")


def test_a_person_confirms_rejects_and_undoes() -> None:
    question = stood(OPEN, False)
    confirmed = review.decided(question, Decision.CONFIRM, MatchLevel.POSSIBLE, SAME, "desk", 7000)
    assert (confirmed.state, confirmed.enforced, confirmed.decided_by, confirmed.since_ms) == (
        CONFIRMED,
        True,
        "desk",
        7000,
    )
    rejected = review.decided(confirmed, Decision.REJECT, MatchLevel.POSSIBLE, SAME, "other desk", 8000)
    assert (rejected.state, rejected.enforced, rejected.decided_by) == (REJECTED, False, "other desk")
    undone = review.decided(rejected, Decision.UNDO, MatchLevel.POSSIBLE, SAME, "desk", 9000)
    assert (undone.state, undone.enforced, undone.decided_by, undone.paged_at_ms) == (OPEN, False, "", None)
    certain = replace(rejected, state=REJECTED)
    assert review.decided(certain, Decision.UNDO, MatchLevel.EXACT, SAME, "desk", 9000).enforced


def test_a_decision_about_other_evidence_or_about_nothing_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="changed"):
        review.decided(stood(OPEN, False), Decision.CONFIRM, MatchLevel.POSSIBLE, OTHER, "desk", 7000)
    for state in (OPEN, CERTAIN, CLOSED):
        with pytest.raises(FailedPrecondition, match="undo"):
            review.decided(stood(state, False), Decision.UNDO, MatchLevel.POSSIBLE, SAME, "desk", 7000)
