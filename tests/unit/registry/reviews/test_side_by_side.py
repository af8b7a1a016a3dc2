"""Both records of a review side by side, and changes between two comparisons. Pure."""

from __future__ import annotations

from datetime import date

import pytest

from services.common.privacy.grounds import LEGAL_BASES, RecordKind
from services.registry.domain.disclosure import article_of
from services.registry.domain.records import DEFAULT_RINGS, Action, Order, OrderRing, OrderType, Respondent, Sex, Wearer
from services.registry.domain.reviews import (
    MatchEvidence,
    Related,
    Review,
    ReviewedValue,
    ReviewState,
    agreements_from_json,
    agreements_to_json,
    changed_agreements,
    consequences_of,
    reviewed_fields,
)
from services.registry.matching.compare import PERSON, FieldComparison

WEARER = Wearer("w-1", "7807171234567", "남궁민수", date(1978, 7, 17), 1, Sex.MALE, phone="010-1111-2222")
RELATED = Related(
    tags=1, persons_without_device=0, other_orders_of_wearer=0, other_wearers_of_order=0, other_open_reviews=0
)


def order(name: str, *rings: OrderRing, type_: OrderType | None = None) -> Order:
    """An order against a respondent who is known by name and date of birth."""
    respondent = Respondent(national_id="", name=name, birth_date=date(1978, 7, 17), address="부산광역시")
    return Order("o-1", respondent, ("p-1",), (), rings, 0, 1000, 1, type=type_)


def test_each_field_has_one_row_whether_names_are_in_hangul_or_latin() -> None:
    seen = frozenset({"name", "birth_date"})
    for name, field, level in (("남궁민수", "name", "EQUAL"), ("Namgung Minsu", "name_latin", "ALIKE")):
        rows = reviewed_fields(order(name), WEARER, of_respondent=seen, of_wearer=seen)
        assert len(rows) == 6
        assert (rows[1].agreement.field, rows[1].agreement.level) == (field, level)
        assert (rows[1].respondent.value, rows[1].wearer.value) == (name, "남궁민수")


def test_a_value_is_shown_withheld_or_not_stated() -> None:
    seen = frozenset({"name"})
    number, _, birth_date, _, phone, address = reviewed_fields(
        order("남궁민수"), WEARER, of_respondent=seen, of_wearer=seen
    )
    withheld, unstated = (ReviewedValue("", stated, stated) for stated in (True, False))
    assert (number.respondent, number.wearer, number.agreement.level) == (unstated, withheld, "MISSING")
    assert (birth_date.respondent, birth_date.wearer, birth_date.agreement.level) == (withheld, withheld, "EQUAL")
    assert (phone.respondent, phone.wearer) == (unstated, withheld)
    assert (address.respondent, address.wearer) == (withheld, unstated)


def test_a_confirmation_enforces_the_orders_rings_or_the_default_ones() -> None:
    review = Review("c", "o-1", "w-1", ReviewState.OPEN, False, MatchEvidence(b"", 12.0, ()), 1)
    rings = (OrderRing(500.0, Action.RESPOND), OrderRing(3000.0, Action.WARN))
    assert consequences_of(review, order("a", *rings), RELATED).rings == tuple(reversed(rings))
    assert consequences_of(review, order("a"), RELATED).rings == DEFAULT_RINGS


def compared(**levels: str) -> MatchEvidence:
    fields = tuple(FieldComparison(field=field, level=level, weight=1.0, words="") for field, level in levels.items())
    return MatchEvidence(b"", 5.0, fields)


def test_the_history_names_the_fields_whose_agreement_changed() -> None:
    before = compared(name="EQUAL", phone="DIFFERENT", sex="EQUAL")
    after = compared(name="EQUAL", phone="EQUAL", address="AREA")
    changed = changed_agreements(before, after).agreements
    assert {(field.field, field.level) for field in changed} == {
        ("phone", "EQUAL"),
        ("address", "AREA"),
        ("sex", "MISSING"),
    }
    assert changed_agreements(None, after).agreements == ()
    assert changed_agreements(after, after).agreements == ()


def test_stored_agreements_are_read_as_they_were() -> None:
    every = tuple(
        FieldComparison(field=field.name, level=level.name, weight=level.weight, words=level.words)
        for field in PERSON.fields
        for level in field.levels
    )
    assert agreements_from_json(agreements_to_json(every)) == every


@pytest.mark.parametrize("type_", OrderType)
def test_the_article_of_each_type_of_order_allows_to_read_both_records(type_: OrderType) -> None:
    code = article_of(order("a", type_=type_))
    (basis,) = [basis for basis in LEGAL_BASES if basis.code == code]
    assert {RecordKind.WEARER, RecordKind.ORDER} <= basis.kinds
    assert article_of(order("a")) == ""
