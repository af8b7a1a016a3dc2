"""Are an order's respondent and a wearer one person: the match of their records, and the review in which a person decides it. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from services.common.errors import FailedPrecondition
from services.registry.domain.records import DEFAULT_RINGS, Order, OrderRing, OrderType, Respondent, Sex, Wearer
from services.registry.matching import blocking
from services.registry.matching.compare import MISSING, Comparison, FieldComparison, Person, Verdict, compare, words_of


class Side(Enum):
    """Side of a match; its value is stored with the match keys."""

    ORDER = "order"
    WEARER = "wearer"


class MatchLevel(Enum):
    """How well two records match, without any decision by a person."""

    EXACT = "EXACT"
    """Both records have the same national number."""
    CERTAIN = "CERTAIN"
    POSSIBLE = "POSSIBLE"
    NONE = "NONE"


_SEX = {Sex.FEMALE: "F", Sex.MALE: "M"}
_LEVELS = {
    Verdict.CERTAIN: MatchLevel.CERTAIN,
    Verdict.POSSIBLE: MatchLevel.POSSIBLE,
    Verdict.UNLIKELY: MatchLevel.NONE,
}


def person_of(record: Wearer | Respondent) -> Person:
    """The data of a record that matching compares."""
    return Person(
        national_id=record.national_id,
        names=(record.name,),
        birth_date=record.birth_date,
        sex=_SEX[record.sex] if record.sex else "",
        phones=(record.phone,) if record.phone else (),
        addresses=(record.address,) if record.address else (),
    )


def match_keys(record: Wearer | Respondent) -> frozenset[str]:
    """Match keys of a record. Two records that may describe one person share at least one key."""
    return blocking.keys(person_of(record))


def compare_records(order: Order, wearer: Wearer) -> tuple[MatchLevel, Comparison]:
    """Match level of an order's respondent and a wearer, and the comparison behind it.

    A record of an exercise matches only records of the same kind of exercise.
    """
    comparison = compare(person_of(order.respondent), person_of(wearer))
    if order.exercise is not wearer.exercise:
        return MatchLevel.NONE, comparison
    if wearer.national_id and order.respondent.national_id == wearer.national_id:
        return MatchLevel.EXACT, comparison
    return _LEVELS[comparison.verdict], comparison


def agreements_of(comparison: Comparison) -> tuple[FieldComparison, ...]:
    """The comparison of each field that both records state, greatest weight first."""
    stated = (field for field in comparison.evidence if field.level != MISSING)
    return tuple(sorted(stated, key=lambda field: -abs(field.weight)))


def evidence_text(order: Order, wearer: Wearer) -> str:
    """The compared data of both records. Store only a hash of this text, because it is personal data."""
    return json.dumps([_compared_values(order.respondent), _compared_values(wearer)], ensure_ascii=False)


def _compared_values(record: Wearer | Respondent) -> list[str]:
    person = person_of(record)
    return [person.national_id, record.name, record.birth_date.isoformat(), person.sex, record.phone, record.address]


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


def next_review_state(before: Review | None, level: MatchLevel, evidence: bytes) -> tuple[ReviewState, bool] | None:
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


def updated_review(
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


def is_repeated_decision(review: Review, decision: Decision, *, seen: SeenReview, by: str) -> bool:
    """Whether the review already is as this person's decision leaves it, for example because the answer was lost."""
    is_same = _DECIDED.get(decision) is review.state and review.decided_by == by
    return is_same and seen.digest == review.evidence.digest


def decided_review(
    review: Review, decision: Decision, level: MatchLevel, *, seen: SeenReview, by: str, now_ms: int
) -> Review:
    """The review after a person's decision. `level` is the current match level of the records.

    Raises FailedPrecondition if the records or the state have changed since the person saw them, if somebody has decided and the
    caller doesn't say what was seen, or if there is nothing to undo.
    """
    _check_seen(review, decision, seen)
    if decision is Decision.UNDO:
        state, enforced = next_review_state(None, level, seen.digest) or (ReviewState.CLOSED, False)
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


_COMPARED = {
    "national_id": ("national_id",),
    "name": ("name", "name_latin"),
    "birth_date": ("birth_date",),
    "sex": ("sex",),
    "phone": ("phone",),
    "address": ("address",),
}
"""Fields of the records in the order in which people read them, each with its comparisons, of which at most one isn't missing."""


@dataclass(frozen=True, slots=True)
class ReviewedValue:
    """Value of a field in one record, or why it isn't shown."""

    value: str
    stated: bool
    """Whether the record states the field."""
    withheld: bool
    """Whether the record states the field, but the reader's role may not see the value."""


@dataclass(frozen=True, slots=True)
class ReviewedField:
    """A field of both records with its comparison."""

    agreement: FieldComparison
    respondent: ReviewedValue
    wearer: ReviewedValue


@dataclass(frozen=True, slots=True)
class PairHistoryEntry:
    """An entry in the history of a pair: an event, a decision, or a comparison."""

    at_ms: int
    """Mesh time."""
    event: Event | None = None
    decision: Decision | None = None
    decided_by: str = ""
    """SPIFFE id of the person who decided."""
    reason: str = ""
    order_version: int = 0
    wearer_version: int = 0
    evidence: MatchEvidence | None = None
    """For a comparison: its weight, with the fields whose agreement changed."""


@dataclass(frozen=True, slots=True)
class Related:
    """What else concerns the wearer or the order of a review."""

    tags: int
    """Number of tags on the wearer."""
    persons_without_device: int
    """Number of persons whom the order protects and who have no protective device."""
    other_orders_of_wearer: int
    """Number of other orders that are enforced against the wearer."""
    other_wearers_of_order: int
    """Number of other wearers against whom the order is enforced."""
    other_open_reviews: int


@dataclass(frozen=True, slots=True)
class Consequences:
    """What each decision on a review causes."""

    enforced: bool
    """Whether the order is enforced against the wearer now."""
    rings: tuple[OrderRing, ...]
    """Rings that a confirmation enforces, greatest first."""
    valid_from_ms: int
    valid_until_ms: int | None
    """End of the validity, exclusive; an early end counts. None while the order has no end."""
    order_type: OrderType | None
    protected_persons: int
    places: int
    related: Related


def reviewed_fields(
    order: Order, wearer: Wearer, *, of_respondent: Collection[str], of_wearer: Collection[str]
) -> list[ReviewedField]:
    """The fields of a respondent and a wearer. `of_respondent` and `of_wearer` are the fields that the reader's role may see."""
    _, comparison = compare_records(order, wearer)
    compared = {field.field: field for field in comparison.evidence}
    fields: list[ReviewedField] = []
    for name, candidates in _COMPARED.items():
        stated = (compared[candidate] for candidate in candidates if compared[candidate].level != MISSING)
        fields.append(
            ReviewedField(
                agreement=next(stated, compared[candidates[0]]),
                respondent=_value(order.respondent, name, name in of_respondent),
                wearer=_value(wearer, name, name in of_wearer),
            )
        )
    return fields


def _value(record: Respondent | Wearer, name: str, visible: bool) -> ReviewedValue:
    texts = {
        "national_id": record.national_id,
        "name": record.name,
        "birth_date": record.birth_date.isoformat(),
        "sex": record.sex.value if record.sex else "",
        "phone": record.phone,
        "address": record.address,
    }
    text = texts[name]
    return ReviewedValue(value=text if visible else "", stated=bool(text), withheld=bool(text) and not visible)


def consequences_of(review: Review, order: Order, related: Related) -> Consequences:
    """What each decision on a review causes."""
    return Consequences(
        enforced=review.enforced,
        rings=tuple(sorted(order.rings or DEFAULT_RINGS, key=lambda ring: -ring.radius_m)),
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.ends_ms,
        order_type=order.type,
        protected_persons=len(order.protected_person_ids),
        places=len(order.places),
        related=related,
    )


def changed_agreements(before: MatchEvidence | None, after: MatchEvidence) -> MatchEvidence:
    """The evidence after a comparison, with only the fields whose agreement is another than before.

    A field that is no longer stated on both sides is listed as missing. After the first comparison, no field is listed.
    """
    if before is None:
        return MatchEvidence(after.digest, after.weight_bits, ())
    old = {field.field: field for field in before.agreements}
    new = {field.field: field for field in after.agreements}
    gone = (FieldComparison(field=name, level=MISSING, weight=0.0, words="") for name in old if name not in new)
    differing = (field for name, field in new.items() if name not in old or old[name].level != field.level)
    return MatchEvidence(after.digest, after.weight_bits, (*differing, *gone))


def agreements_to_json(agreements: Iterable[FieldComparison]) -> str:
    """The agreements as JSON."""
    return json.dumps([(field.field, field.level, field.weight) for field in agreements])


def agreements_from_json(text: str) -> tuple[FieldComparison, ...]:
    """The agreements from their JSON."""
    return tuple(
        FieldComparison(field=field, level=level, weight=weight, words=words_of(field, level))
        for field, level, weight in json.loads(text)
    )
