"""What the records of a respondent and a wearer say of each other: the two sides of matching, as the store needs them."""

from __future__ import annotations

import json

from services.registry.domain import Order, Respondent, Sex, Wearer
from services.registry.matching import blocking
from services.registry.matching.compare import Comparison, Person, Verdict, compare
from services.registry.review import MatchLevel

ORDER_SIDE = "order"
WEARER_SIDE = "wearer"
_SEX = {Sex.FEMALE: "F", Sex.MALE: "M"}
_LEVELS = {
    Verdict.CERTAIN: MatchLevel.CERTAIN,
    Verdict.POSSIBLE: MatchLevel.POSSIBLE,
    Verdict.UNLIKELY: MatchLevel.NONE,
}


def person_of(record: Wearer | Respondent) -> Person:
    """What a record says of a person."""
    return Person(
        national_id=record.national_id,
        names=(record.name,),
        birth_date=record.birth_date,
        sex=_SEX[record.sex] if record.sex else "",
        phones=(record.phone,) if record.phone else (),
        addresses=(record.address,) if record.address else (),
    )


def match_keys(record: Wearer | Respondent) -> frozenset[str]:
    """Keys of a record: two that may be one person share at least one."""
    return blocking.keys(person_of(record))


def compared(order: Order, wearer: Wearer) -> tuple[MatchLevel, Comparison]:
    """What the records alone say, and why. What isn't in earnest joins with nothing but its own kind."""
    comparison = compare(person_of(order.respondent), person_of(wearer))
    if order.exercise is not wearer.exercise:
        return MatchLevel.NONE, comparison
    if wearer.national_id and order.respondent.national_id == wearer.national_id:
        return MatchLevel.EXACT, comparison
    return _LEVELS[comparison.verdict], comparison


def reasons_of(comparison: Comparison) -> tuple[str, ...]:
    """The weights in words, the heaviest first; no personal data."""
    stated = sorted((one for one in comparison.evidence if one.weight), key=lambda one: -abs(one.weight))
    return tuple(f"{one.words} ({one.weight:+.1f} bits)" for one in stated)


def evidence_text(order: Order, wearer: Wearer) -> str:
    """All that the comparison rests on; to be hashed, it is personal data."""
    return json.dumps([_said(order.respondent), _said(wearer)], ensure_ascii=False)


def _said(record: Wearer | Respondent) -> list[str]:
    person = person_of(record)
    return [person.national_id, record.name, record.birth_date.isoformat(), person.sex, record.phone, record.address]
