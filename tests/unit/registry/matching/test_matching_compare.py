"""Comparison of a respondent and a wearer: levels, weights, thresholds and reasons."""

from __future__ import annotations

import random
from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.matching import compare as matching
from services.registry.matching.compare import CERTAIN, PERSON, POSSIBLE, Comparison, Person, Verdict, compare

FULL = Person(
    national_id="8003121234567",
    names=("김민준",),
    birth_date=date(1980, 3, 12),
    sex="M",
    phones=("010-1234-5678",),
    addresses=("경기도 남양주시 다산중앙로 123번길 45, 101동 1502호",),
)
UNNUMBERED = replace(FULL, national_id="")
ALONE = replace(UNNUMBERED, phones=(), addresses=())
"""Name, date of birth and sex only."""

TEXTS = st.text(st.characters(), max_size=12)
PERSONS = st.builds(
    Person,
    national_id=st.sampled_from(["", "8003121234567", "8003121234576", "8003121999999"]),
    names=st.lists(
        st.one_of(TEXTS, st.sampled_from(["김민준", "김민서", "Kim Min Jun", "Min-jun Gim"])), max_size=3
    ).map(tuple),
    birth_date=st.none() | st.dates(),
    sex=st.sampled_from(["", "M", "F"]),
    phones=st.lists(st.one_of(TEXTS, st.from_regex(r"010-\d{4}-\d{4}", fullmatch=True)), max_size=3).map(tuple),
    addresses=st.lists(TEXTS, max_size=3).map(tuple),
)


def level(field: str, comparison: Comparison) -> str:
    """Level of a field in a comparison."""
    return next(compared.level for compared in comparison.evidence if compared.field == field)


@given(PERSONS, PERSONS)
def test_comparison_is_symmetric_and_adds_up(left: Person, right: Person) -> None:
    found = compare(left, right)
    assert found == compare(right, left)
    assert found.weight == pytest.approx(sum(compared.weight for compared in found.evidence))
    assert [compared.field for compared in found.evidence] == [field.name for field in PERSON.fields]
    if found.verdict is Verdict.UNLIKELY:
        assert found.weight < POSSIBLE
    if found.verdict is Verdict.CERTAIN:
        assert found.weight >= CERTAIN or level("national_id", found) == "EQUAL"


def test_the_levels_of_each_field_sum_to_probability_1() -> None:
    for field in PERSON.fields:
        assert sum(level.m for level in field.levels) == pytest.approx(1, abs=0.001), field.name
        assert sum(level.u for level in field.levels) == pytest.approx(1, abs=0.02), field.name
        assert field.levels[0].weight > 0 > field.levels[-1].weight
        assert (
            len({level.name for level in field.levels})
            == len({level.words for level in field.levels})
            == len(field.levels)
        )


def test_the_probabilities_u_of_dates_of_birth_equal_counted_ones() -> None:
    rng = random.Random(1)
    first = date(1951, 1, 1)
    days = 365 * 55
    pairs = 100_000
    found = [0] * 7
    for _ in range(pairs):
        a, b = (Person(birth_date=first + timedelta(rng.randrange(days))) for _ in range(2))
        reached = matching.birth_date_level(a, b)
        assert reached is not None
        found[reached] += 1
    field = next(field for field in PERSON.fields if field.name == "birth_date")
    for agreement, count in zip(field.levels, found, strict=True):
        expected = pairs * agreement.u
        assert abs(count - expected) < 0.15 * expected + 4 * expected**0.5 + 3, (agreement.name, count, expected)


# ── verdicts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_an_equal_national_number_alone_is_certain() -> None:
    stranger = Person(national_id=FULL.national_id, names=("박서연",), birth_date=date(1999, 9, 9), sex="F")
    assert compare(FULL, stranger).verdict is Verdict.CERTAIN
    assert compare(Person(FULL.national_id), Person(FULL.national_id)).verdict is Verdict.CERTAIN


@pytest.mark.parametrize(
    "other",
    [
        UNNUMBERED,
        replace(UNNUMBERED, names=("Kim Min-jun",)),
        replace(UNNUMBERED, names=("MINJUN GIM",), phones=("+82 10 1234 5678",), addresses=()),
        replace(UNNUMBERED, phones=("010-9999-0000",), addresses=("경기 남양주시 다산중앙로 123번길 45 101동 1502호",)),
        replace(UNNUMBERED, addresses=(), sex=""),
    ],
)
def test_equal_name_and_date_of_birth_with_one_more_field_is_certain(other: Person) -> None:
    assert compare(UNNUMBERED, other).verdict is Verdict.CERTAIN


@pytest.mark.parametrize(
    "other",
    [
        ALONE,
        replace(ALONE, names=("Kim Min Jun",)),
        replace(ALONE, names=("김민존",)),
        replace(ALONE, birth_date=date(1980, 12, 3)),
        replace(ALONE, birth_date=date(1980, 3, 21)),
        replace(ALONE, birth_date=date(1981, 3, 12)),
        replace(ALONE, birth_date=date(1980, 3, 17)),
        replace(ALONE, birth_date=date(1980, 4, 27)),
        replace(ALONE, birth_date=None),
        replace(UNNUMBERED, names=("김도현",)),
        replace(UNNUMBERED, birth_date=date(1975, 11, 30)),
        replace(FULL, national_id="8003121234576"),
        replace(FULL, national_id="8003121888888"),
    ],
)
def test_a_possible_match_needs_the_decision_of_a_person(other: Person) -> None:
    base = FULL if other.national_id else UNNUMBERED
    assert compare(base, other).verdict is Verdict.POSSIBLE


@pytest.mark.parametrize(
    "other",
    [
        Person(),
        Person(names=("김민준",), sex="M", birth_date=date(1992, 7, 24)),
        Person(names=("박서연",), sex="F", birth_date=date(1980, 3, 12)),
        Person(names=("박서연",), phones=("010-1234-5678",), birth_date=date(1991, 7, 24), sex="F"),
        Person(names=("Smith John",), birth_date=date(1980, 3, 12)),
        Person(sex="M"),
        Person(addresses=("경기도 남양주시 다산중앙로 7",)),
    ],
)
def test_records_with_little_in_common_are_unlikely(other: Person) -> None:
    assert compare(UNNUMBERED, other).verdict is Verdict.UNLIKELY


@pytest.mark.parametrize("numbers", [("", ""), ("8003121234567", "8003121234575"), ("8003121234567", "8003121771234")])
def test_twins_are_not_certain(numbers: tuple[str, str]) -> None:
    """Twins share surname, date of birth, sex, household and even a telephone."""
    twin = replace(FULL, national_id=numbers[0])
    other = replace(FULL, national_id=numbers[1], names=("김민서",))
    assert compare(twin, other).verdict is not Verdict.CERTAIN
    assert compare(twin, replace(other, names=("Kim Minseo",))).verdict is not Verdict.CERTAIN


def test_a_different_national_number_is_never_certain() -> None:
    found = compare(FULL, replace(FULL, national_id="8003121234577"))
    assert found.weight > CERTAIN
    assert found.verdict is Verdict.POSSIBLE


@given(PERSONS)
def test_an_empty_record_gives_no_evidence(person: Person) -> None:
    found = compare(Person(), person)
    assert found.verdict is Verdict.UNLIKELY
    assert found.weight == 0
    assert {compared.words for compared in found.evidence} == {"not stated on both sides"}


# ── levels ───────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("born", "reached"),
    [
        (date(1980, 3, 12), "EQUAL"),
        (date(1980, 12, 3), "SWAPPED"),
        (date(1980, 3, 21), "TRANSPOSED"),
        (date(1908, 3, 12), "TRANSPOSED"),
        (date(1979, 3, 12), "YEAR_APART"),
        (date(1981, 3, 12), "YEAR_APART"),
        (date(1980, 3, 13), "ONE_DIGIT"),
        (date(1960, 3, 12), "ONE_DIGIT"),
        (date(1980, 1, 26), "LUNAR"),
        (date(1980, 4, 25), "LUNAR"),
        (date(1980, 3, 25), "DIFFERENT"),
        (date(1985, 11, 30), "DIFFERENT"),
    ],
)
def test_levels_of_the_date_of_birth(born: date, reached: str) -> None:
    assert level("birth_date", compare(ALONE, replace(ALONE, birth_date=born))) == reached


def test_a_lunar_birthday_late_in_the_year_matches_a_solar_one_in_the_next() -> None:
    # The 18th day of the 11th month of the lunar year 1980 was 24 December; the 5th of the 12th was 10 January 1981.
    for lunar, solar in ((date(1980, 11, 18), date(1980, 12, 24)), (date(1980, 12, 5), date(1981, 1, 10))):
        found = compare(replace(ALONE, birth_date=lunar), replace(ALONE, birth_date=solar))
        assert (level("birth_date", found), found.verdict) == ("LUNAR", Verdict.POSSIBLE)


@pytest.mark.parametrize(
    ("address", "reached"),
    [
        ("경기 남양주시 다산중앙로123번길 45 101동 1502호", "EQUAL"),
        ("경기도 남양주시 다산중앙로 123번길 45 (101-1502)", "EQUAL"),
        ("경기도 남양주시 다산중앙로 123번길 45, 102동 301호", "HOUSE"),
        ("경기도 남양주시 다산중앙로 123번길 77", "AREA"),
        ("부산광역시 해운대구 센텀중앙로 45", "DIFFERENT"),
        ("", "MISSING"),
        ("\ud800, -", "MISSING"),
    ],
)
def test_levels_of_the_address(address: str, reached: str) -> None:
    assert level("address", compare(FULL, replace(FULL, addresses=(address,)))) == reached


@pytest.mark.parametrize(
    ("phone", "reached"),
    [
        ("01012345678", "EQUAL"),
        ("+82-10-1234-5678", "EQUAL"),
        ("+82 (0)10 1234 5678", "EQUAL"),
        ("０１０－１２３４－５６７８", "EQUAL"),
        ("010-1234-5687", "ONE_DIGIT"),
        ("010-1234-5679", "ONE_DIGIT"),
        ("010-4321-8765", "DIFFERENT"),
        ("112", "MISSING"),
        ("none", "MISSING"),
    ],
)
def test_levels_of_the_phone(phone: str, reached: str) -> None:
    assert level("phone", compare(FULL, replace(FULL, phones=(phone,)))) == reached


@pytest.mark.parametrize(
    ("names", "field", "reached"),
    [
        (("김민준",), "name", "EQUAL"),
        (("김민준 (Kim Min Jun)",), "name", "EQUAL"),
        (("박서연", "김민준"), "name", "EQUAL"),
        (("김민준", "Park Seo Yeon"), "name", "EQUAL"),
        (("김민쥰",), "name", "CLOSE"),
        (("김민서",), "name", "NEAR"),
        (("김도현",), "name", "SURNAME"),
        (("박서연",), "name", "DIFFERENT"),
        (("Kim Minjoon",), "name_latin", "ALIKE"),
        (("Park Seo Yeon",), "name_latin", "DIFFERENT"),
        ((), "name", "MISSING"),
    ],
)
def test_levels_of_the_name(names: tuple[str, ...], field: str, reached: str) -> None:
    found = compare(ALONE, replace(ALONE, names=names))
    assert level(field, found) == reached
    assert {level("name", found), level("name_latin", found)} == {reached, "MISSING"}


def test_surnames_that_differ_by_an_initial_are_equal() -> None:
    found = compare(replace(ALONE, names=("유도현",)), replace(ALONE, names=("류민준",)))
    assert level("name", found) == "SURNAME"


# ── reasons ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_reasons_are_sentences_without_personal_data() -> None:
    found = compare(FULL, replace(FULL, national_id="", birth_date=date(1980, 12, 3), phones=()))
    evidence = {
        compared.field: (compared.level, round(compared.weight, 1), compared.words) for compared in found.evidence
    }
    assert evidence == {
        "national_id": ("MISSING", 0.0, "not stated on both sides"),
        "name": ("EQUAL", 13.2, "the names are equal"),
        "name_latin": ("MISSING", 0.0, "not stated on both sides"),
        "birth_date": ("SWAPPED", 8.0, "day and month of birth are swapped"),
        "sex": ("EQUAL", 0.4, "the sex is the same"),
        "phone": ("MISSING", 0.0, "not stated on both sides"),
        "address": ("EQUAL", 14.6, "the addresses are the same"),
    }
    assert "김민준" not in repr(FULL)
    assert FULL.national_id not in repr(FULL)


def test_only_the_start_of_10_mb_records_is_compared() -> None:
    long = "김1a" * 3_000_000
    huge = Person(long, (long,) * 20, date(1980, 3, 12), "M", (long,) * 20, (long,) * 20)
    assert compare(replace(huge, national_id=""), UNNUMBERED).verdict is Verdict.POSSIBLE
    assert compare(replace(huge, names=(long,) * 1000), huge).verdict is Verdict.CERTAIN
