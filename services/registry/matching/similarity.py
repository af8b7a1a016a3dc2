"""Similarity of a respondent's and a wearer's records: match keys, match level and evidence for a pair of records. Pure."""

from __future__ import annotations

import json
from enum import Enum

from services.registry.domain import Order, Respondent, Sex, Wearer
from services.registry.matching import blocking
from services.registry.matching.compare import Comparison, Person, Verdict, compare
from services.registry.matching.weights import MISSING, FieldComparison


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


def compared(order: Order, wearer: Wearer) -> tuple[MatchLevel, Comparison]:
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
