"""Decide whether an order is enforced against a wearer, from their records, their review and their joint case. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common.rpc.errors import FailedPrecondition, InvalidField
from services.registry import domain
from services.registry.disclosure.domain import article_of
from services.registry.domain import Order, OrderType, Wearer
from services.registry.matching import similarity
from services.registry.matching.similarity import MatchLevel
from services.registry.reviews import domain as review
from services.registry.reviews.domain import MatchEvidence, Review, ReviewState
from services.registry.wearing import domain as wearing
from services.registry.wearing.domain import TagRecord, WearingDuty


class PlanTerms(NamedTuple):
    """Inputs of a plan that don't come from the database."""

    now_ms: int
    """Mesh time."""
    partitions: int
    """Number of partitions of the log."""
    digest: Callable[[str], bytes]
    """Function that returns the keyed digest of the compared data of two records."""


@dataclass(frozen=True, slots=True)
class StoredCase:
    """A joint case as a row of the table `cases`, without its snapshot."""

    sequence: int
    """Number of the match, in the order of matching."""
    case_id: str
    order_id: str
    wearer_id: str
    version: int
    """Version of the last snapshot."""
    matched_at_ms: int
    withdrawn_at_ms: int | None
    """When the match was withdrawn, mesh time; None while the match holds."""


@dataclass(frozen=True, slots=True)
class MatchPair:
    """An order and a wearer who may be one person, with their review and joint case if there are any."""

    order: Order
    wearer: Wearer
    review: Review | None
    case: StoredCase | None

    @property
    def case_id(self) -> str:
        """Id of the joint case of the pair, whether or not there is one."""
        return domain.case_id_of(self.order.order_id, self.wearer.wearer_id)

    @property
    def is_held(self) -> bool:
        """Whether the order is enforced against the wearer so far."""
        return self.case is not None and self.case.withdrawn_at_ms is None


@dataclass(frozen=True, slots=True)
class DecidedPair:
    """A pair with the result of its comparison."""

    pair: MatchPair
    review: Review | None
    """The review after the comparison; None if none is needed."""
    evidence: MatchEvidence

    @property
    def opens_review(self) -> bool:
        """Whether the pair's review is opened or reopened."""
        before = self.pair.review
        is_open = self.review is not None and self.review.state is ReviewState.OPEN
        return is_open and (before is None or before.state is not ReviewState.OPEN)

    @property
    def closes_review(self) -> bool:
        """Whether the pair's open review needs no decision any more."""
        before = self.pair.review
        was_open = before is not None and before.state is ReviewState.OPEN
        return was_open and (self.review is None or self.review.state is not ReviewState.OPEN)

    @property
    def has_new_evidence(self) -> bool:
        """Whether the compared data of a reviewed pair changed, or a review was opened for a new pair."""
        if self.review is None:
            return False
        before = self.pair.review
        return self.opens_review if before is None else before.evidence.digest != self.evidence.digest

    @property
    def holds(self) -> bool:
        """Whether the order is enforced against the wearer from now on."""
        return self.review is not None and self.review.enforced

    @property
    def touches_case(self) -> bool:
        """Whether a joint case is created, renewed or withdrawn."""
        return self.holds or self.pair.is_held


def compare(pair: MatchPair, terms: PlanTerms) -> tuple[MatchLevel, MatchEvidence]:
    """Match level and evidence from the two records alone, without any decision by a person."""
    order, wearer, before = pair.order, pair.wearer, pair.review
    level, comparison = similarity.compared(order, wearer)
    undecided = before is None or before.state is ReviewState.OPEN
    if undecided and level is not MatchLevel.EXACT and order.is_over(terms.now_ms):
        level = MatchLevel.NONE  # an order that has ended needs no review
    if level is MatchLevel.NONE and before is None:
        return level, MatchEvidence(b"", comparison.weight, ())
    digest = terms.digest(similarity.evidence_text(order, wearer))
    return level, MatchEvidence(digest, comparison.weight, similarity.agreements_of(comparison))


def decide(pair: MatchPair, terms: PlanTerms) -> DecidedPair:
    """Compare the records of a pair and decide about its review."""
    level, evidence = compare(pair, terms)
    before, outcome = pair.review, review.next_state(pair.review, level, evidence.digest)
    if outcome is None:
        return DecidedPair(pair, None, evidence)
    state, enforced = outcome
    if before is not None:
        after = review.updated(
            before, state, enforced, evidence=evidence, legal_basis=article_of(pair.order), now_ms=terms.now_ms
        )
    else:
        after = Review(
            case_id=pair.case_id,
            order_id=pair.order.order_id,
            wearer_id=pair.wearer.wearer_id,
            state=state,
            enforced=enforced,
            evidence=evidence,
            since_ms=terms.now_ms,
            legal_basis=article_of(pair.order),
        )
    return DecidedPair(pair, after, evidence)


# ── the duty to wear a tag ───────────────────────────────────────────────────────────────────────────────────────────


def duty_of(order: Order, records: Sequence[TagRecord], now_ms: int) -> WearingDuty | None:
    """The duty to wear a tag that an order gives, with what was recorded about it; None unless the order is one of item 3-2."""
    if order.type is not OrderType.STALKING_TAG:
        return None
    mine = [record for record in records if record.order_id == order.order_id]
    refusals = [record.from_ms for record in mine if record.kind is wearing.TagRecordKind.REFUSAL]
    return WearingDuty(
        fit_by_ms=order.valid_from_ms + wearing.FIT_WITHIN_MS if order.fit_by_ms is None else order.fit_by_ms,
        refused_ms=min(refusals, default=None),
        good_causes=wearing.periods_of(mine, wearing.TagRecordKind.GOOD_CAUSE, now_ms),
    )


def check_tag_order(record: TagRecord, order: Order, *, enforced: bool) -> None:
    """Raises an error unless a refusal or good cause is about an order of item 3-2 that is enforced against the wearer."""
    if order.type is not OrderType.STALKING_TAG:
        raise InvalidField("order_id", "must be the id of an order of item 3-2 (STALKING_TAG): others demand no tag")
    if not enforced:
        raise FailedPrecondition("order_id: this order isn't enforced against this wearer")
    if order.is_over(record.recorded_ms):
        raise FailedPrecondition("order_id: this order is over, so it demands no tag any more")
    if record.kind is wearing.TagRecordKind.REFUSAL and record.from_ms < order.valid_from_ms:
        raise InvalidField("refused_at", "must not be earlier than the order's valid_from")
