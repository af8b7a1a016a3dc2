"""The joint case of an order and a wearer: is the order enforced, what goes into the log, and which partitions need it. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from services.common import ids
from services.common.errors import FailedPrecondition, InvalidField
from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround, TagBasis
from services.registry.domain.disclosure import article_of
from services.registry.domain.records import (
    DEFAULT_RINGS,
    AllowedEncounter,
    Device,
    ExerciseKind,
    Order,
    OrderRing,
    OrderType,
    PersonUnit,
    Place,
    PresenceUnit,
    Tag,
    Wearer,
    WearerUnit,
    case_id_of,
)
from services.registry.domain.reviews import (
    MatchEvidence,
    MatchLevel,
    Review,
    ReviewState,
    agreements_of,
    compare_records,
    evidence_text,
    next_review_state,
    updated_review,
)
from services.registry.domain.wearing import FIT_WITHIN_MS, Period, TagRecord, TagRecordKind, WearingDuty, periods_of


@dataclass(frozen=True, slots=True)
class ProtectedTarget:
    """A protected person as the evaluator sees them: ids only."""

    person_id: str
    device_ids: tuple[str, ...]
    """Ids of the person's protective devices, sorted; empty if the person has none."""
    units: tuple[PresenceUnit, ...] = ()
    """Beacons of the person, sorted by id."""


@dataclass(frozen=True, slots=True)
class JointCase:
    """Complete joint case of one order and one wearer: ids and geometry, never names."""

    case_id: str
    order_id: str
    wearer_id: str
    tag_device_ids: tuple[str, ...]
    """Ids of the tags on the wearer, sorted."""
    persons: tuple[ProtectedTarget, ...]
    places: tuple[Place, ...]
    rings: tuple[OrderRing, ...]
    """At least one ring."""
    valid_from_ms: int
    valid_until_ms: int | None
    """End of validity, exclusive, milliseconds since 1970 UTC; None if the order is valid until the court decides."""
    encounters: tuple[AllowedEncounter, ...]
    """Encounters as the order allows them, including those after an early end of the order."""
    exercise: ExerciseKind | None
    """Exercise that the case belongs to; None for a live case."""
    notice_ground: NoticeGround | None
    """Ground on which the Ministry may notify the persons; None if there is none."""
    police_must_check: bool
    """Whether the police must look into each notice about the wearer's acts (Tag Act 31-6(5))."""
    tag_duty: WearingDuty | None = None
    """The duty to wear a tag; None unless the order is one of item 3-2."""
    removals: tuple[Period, ...] = ()
    """Authorised removals of the wearer's tags, in ascending order."""
    units: tuple[PresenceUnit, ...] = ()
    """Home units and beacons of the wearer, sorted by id."""


def build_case(
    order: Order,
    wearer: Wearer,
    tags: Sequence[Tag],
    *,
    devices: Sequence[Device],
    tag_duty: WearingDuty | None = None,
    removals: tuple[Period, ...] = (),
    units: Sequence[WearerUnit | PersonUnit] = (),
) -> JointCase:
    """Joint case of an order and the wearer whom it restrains. Tags, devices and units of other people are ignored."""
    by_id = sorted(units, key=lambda unit: unit.unit_id)
    worn = [tag for tag in tags if tag.wearer_id == wearer.wearer_id and tag.removed_at_ms is None]
    tag_bases, order_type = [tag.basis for tag in worn], order.type.value if order.type else ""
    return JointCase(
        case_id=case_id_of(order.order_id, wearer.wearer_id),
        order_id=order.order_id,
        wearer_id=wearer.wearer_id,
        tag_device_ids=tuple(sorted(tag.device_id for tag in worn)),
        persons=tuple(
            ProtectedTarget(
                person_id,
                tuple(
                    sorted(
                        device.device_id
                        for device in devices
                        if device.person_id == person_id and device.removed_at_ms is None
                    )
                ),
                tuple(unit for unit in by_id if isinstance(unit, PersonUnit) and unit.person_id == person_id),
            )
            for person_id in order.protected_person_ids
        ),
        places=order.places,
        rings=order.rings or DEFAULT_RINGS,
        valid_from_ms=order.valid_from_ms,
        valid_until_ms=order.ends_ms,
        encounters=order.encounters,
        exercise=order.exercise,
        notice_ground=notices.ground_of(tag_bases, order_type),
        police_must_check=notices.police_must_check(tag_bases, order_type),
        tag_duty=tag_duty,
        removals=removals,
        units=tuple(unit for unit in by_id if isinstance(unit, WearerUnit) and unit.wearer_id == wearer.wearer_id),
    )


def withdrawn_case(case: JointCase, at_ms: int) -> JointCase:
    """The case after its match was withdrawn, for example because a national number was corrected.

    The validity ends at `at_ms` at the latest. A case that begins later keeps 1 ms of validity.
    """
    until_ms = at_ms if case.valid_until_ms is None else min(case.valid_until_ms, at_ms)
    ends_ms = max(case.valid_from_ms + 1, until_ms)
    return replace(case, valid_until_ms=ends_ms)


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
class CaseUpdate:
    """New content of a joint case."""

    case: StoredCase
    is_new: bool
    valid_until_ms: int | None


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
        return case_id_of(self.order.order_id, self.wearer.wearer_id)

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


def compare_pair(pair: MatchPair, terms: PlanTerms) -> tuple[MatchLevel, MatchEvidence]:
    """Match level and evidence from the two records alone, without any decision by a person."""
    order = pair.order
    wearer = pair.wearer
    before = pair.review
    level, comparison = compare_records(order, wearer)
    undecided = before is None or before.state is ReviewState.OPEN
    if undecided and level is not MatchLevel.EXACT and order.is_over(terms.now_ms):
        level = MatchLevel.NONE  # an order that has ended needs no review
    if level is MatchLevel.NONE and before is None:
        return level, MatchEvidence(b"", comparison.weight, ())
    digest = terms.digest(evidence_text(order, wearer))
    return level, MatchEvidence(digest, comparison.weight, agreements_of(comparison))


def decide_pair(pair: MatchPair, terms: PlanTerms) -> DecidedPair:
    """Compare the records of a pair and decide about its review."""
    level, evidence = compare_pair(pair, terms)
    before, outcome = pair.review, next_review_state(pair.review, level, evidence.digest)
    if outcome is None:
        return DecidedPair(pair, None, evidence)
    state, enforced = outcome
    if before is not None:
        after = updated_review(
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
    refusals = [record.from_ms for record in mine if record.kind is TagRecordKind.REFUSAL]
    return WearingDuty(
        fit_by_ms=order.valid_from_ms + FIT_WITHIN_MS if order.fit_by_ms is None else order.fit_by_ms,
        refused_ms=min(refusals, default=None),
        good_causes=periods_of(mine, TagRecordKind.GOOD_CAUSE, now_ms),
    )


def check_tag_order(record: TagRecord, order: Order, *, enforced: bool) -> None:
    """Raises an error unless a refusal or good cause is about an order of item 3-2 that is enforced against the wearer."""
    if order.type is not OrderType.STALKING_TAG:
        raise InvalidField("order_id", "must be the id of an order of item 3-2 (STALKING_TAG): others demand no tag")
    if not enforced:
        raise FailedPrecondition("order_id: this order isn't enforced against this wearer")
    if order.is_over(record.recorded_ms):
        raise FailedPrecondition("order_id: this order is over, so it demands no tag any more")
    if record.kind is TagRecordKind.REFUSAL and record.from_ms < order.valid_from_ms:
        raise InvalidField("refused_at", "must not be earlier than the order's valid_from")


class StoredRoute(NamedTuple):
    """The last route that was sent for a device."""

    version: int
    route: bytes
    """The route, serialised."""


def tag_partitions(wearer_id: str, partitions: int) -> tuple[int, ...]:
    """Log partitions that need the reports of a wearer's tags."""
    return (ids.partition_of(wearer_id, partitions),)


def device_partitions(person_id: str, wearer_ids: Iterable[str], partitions: int) -> tuple[int, ...]:
    """Log partitions that need the reports of a person's devices, sorted: the partitions of the restrained wearers.

    The partition of the person's own id is always included, so that reports have a destination before there is a case.
    """
    return tuple(sorted({ids.partition_of(subject_id, partitions) for subject_id in (person_id, *wearer_ids)}))


@dataclass(frozen=True, slots=True)
class OrderGround:
    """The ground of an order for one wearer, and what it follows from."""

    case_id: str
    wearer_id: str
    order_type: OrderType | None
    tag_bases: tuple[TagBasis, ...]
    """Reasons for the tags that the wearer wears, sorted, without duplicates."""
    order_over: bool
    """Whether the order's validity has ended, so that no notice is given under it any more."""

    @property
    def ground(self) -> NoticeGround | None:
        """The ground; None if there is none."""
        return notices.ground_of(self.tag_bases, self._type)

    @property
    def why_none(self) -> str:
        """Why there is no ground, in words; empty if there is one."""
        return notices.why_none(self.tag_bases, self._type)

    @property
    def police_must_check(self) -> bool:
        """Whether the police must look into each notice about the wearer's acts."""
        return notices.police_must_check(self.tag_bases, self._type)

    @property
    def _type(self) -> str:
        return order_type_name(self.order_type)


def order_type_name(order_type: OrderType | None) -> str:
    """Name of an order's type; empty if the order has none."""
    return order_type.value if order_type else ""


def order_ground(case_id: str, order: Order, wearer_id: str, *, tags: Iterable[Tag], now_ms: int) -> OrderGround:
    """The ground of an order for a wearer at a moment, milliseconds of mesh time. Tags that were removed don't count."""
    bases = {tag.basis for tag in tags if tag.wearer_id == wearer_id and tag.removed_at_ms is None}
    return OrderGround(
        case_id=case_id,
        wearer_id=wearer_id,
        order_type=order.type,
        tag_bases=tuple(sorted(bases)),
        order_over=order.is_over(now_ms),
    )
