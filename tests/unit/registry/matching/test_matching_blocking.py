"""Match keys: two records of one person share a key, and strangers share none."""

from __future__ import annotations

from dataclasses import replace
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.matching import blocking
from services.registry.matching.compare import LUNAR_LAG_DAYS, Person, Verdict, compare

ONE = Person("8003121234567", ("김민준",), date(1980, 3, 12), "M", ("010-1234-5678",), ("경기도 남양주시 다산로 45",))
NAMED = Person(names=ONE.names, birth_date=ONE.birth_date)


def share_a_key(left: Person, right: Person) -> bool:
    """Whether two records share a key and are therefore compared."""
    return not blocking.keys(left).isdisjoint(blocking.keys(right))


@pytest.mark.parametrize(
    "other",
    [
        Person(national_id=ONE.national_id),
        Person(phones=("+82 10 1234 5678",)),
        Person(addresses=("경기 남양주시 다산로 45",)),
        Person(birth_date=ONE.birth_date),
        Person(names=ONE.names),
        Person(names=("Minjoon Kim",)),
    ],
)
def test_each_field_alone_gives_a_shared_key(other: Person) -> None:
    assert share_a_key(ONE, other)


@pytest.mark.parametrize("name", ["김민준", "Kim Min-jun", "MINJUN GIM", "Kim, Minjoon"])
@pytest.mark.parametrize(
    "born",
    [
        date(1980, 12, 3),
        date(1980, 3, 21),
        date(1908, 3, 12),
        date(1979, 3, 12),
        date(1981, 3, 12),
        date(1960, 3, 12),
        date(1980, 3, 19),
        date(1980, 2, 8),
        date(1981, 1, 1),
        None,
    ],
)
def test_records_with_an_error_in_the_date_of_birth_share_a_key_across_scripts(name: str, born: date | None) -> None:
    assert share_a_key(NAMED, Person(names=(name,), birth_date=born))


@pytest.mark.parametrize(
    ("name", "born"),
    [
        ("김민존", date(1979, 3, 12)),
        ("김민존", date(1981, 3, 12)),
        ("김민존", date(1980, 3, 21)),
        ("Kim Minjon", date(1980, 4, 19)),
        ("김민존", date(1960, 3, 12)),
        ("Kim Minjon", date(1908, 3, 12)),
        ("김밀준", date(1980, 12, 3)),
        ("김밀준", date(1908, 3, 12)),
    ],
)
def test_records_with_errors_in_name_and_date_of_birth_share_a_key(name: str, born: date) -> None:
    other = Person(names=(name,), birth_date=born)
    assert share_a_key(NAMED, other)
    assert not share_a_key(Person(names=NAMED.names), Person(names=(name,)))


def test_a_lunar_date_in_another_year_shares_a_key_with_another_spelling() -> None:
    person = Person(names=("김서준",), birth_date=date(1980, 12, 5))
    other = Person(names=("Kim So Jun",), birth_date=date(1981, 1, 10))
    assert compare(person, other).verdict is Verdict.POSSIBLE
    assert share_a_key(person, other)


@given(st.dates(date(1930, 1, 1), date(2010, 12, 31)), st.sampled_from(LUNAR_LAG_DAYS))
def test_a_lunar_date_shares_a_key_with_its_solar_date(born: date, lag_days: int) -> None:
    assert share_a_key(replace(NAMED, birth_date=born), replace(NAMED, birth_date=born + timedelta(lag_days)))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("이서준", "Rhee Seojoon"),
        ("유재석", "류재석"),
        ("노영희", "Roh Young Hee"),
        ("Lee Jun", "Yi Joon"),
        ("Nguyen Van An", "An Nguyen Van"),
    ],
)
def test_variants_of_a_name_share_a_key(left: str, right: str) -> None:
    assert share_a_key(Person(names=(left,)), Person(names=(right,)))


def test_strangers_share_no_key() -> None:
    stranger = Person(
        "9109152345678", ("박서연",), date(1991, 9, 15), "F", ("010-8765-4321",), ("부산광역시 해운대구 센텀로 7",)
    )
    assert not share_a_key(ONE, stranger)
    assert blocking.keys(Person(sex="M")) == frozenset()


@given(
    st.lists(st.text(st.characters(), max_size=30), max_size=20).map(tuple),
    st.lists(st.text(st.characters(), max_size=30), max_size=20).map(tuple),
)
def test_keys_are_few_and_can_be_written_as_utf_8(names: tuple[str, ...], texts: tuple[str, ...]) -> None:
    found = blocking.keys(Person("8003121234567", names, date(1980, 3, 12), "M", texts, texts))
    assert len(found) < 600
    assert all(len(key.encode()) < 1000 for key in found)


def test_keys_of_a_record_of_10_mb_are_bounded() -> None:
    for letter in ("김", "a", "1", "a ", "\ud800"):
        long = letter * (10_000_000 // len(letter))
        found = blocking.keys(Person("", (long,), date(1980, 3, 12), "M", (long,), (long,)))
        assert sum(len(key.encode()) for key in found) < 10_000


@pytest.mark.parametrize(
    ("left", "right"),
    [("minjun", "minjoon"), ("younghee", "yeonghui"), ("shik", "sik"), ("chul", "cheol"), ("ah", "a")],
)
def test_spellings_of_one_sound_are_equal(left: str, right: str) -> None:
    assert blocking.sound(left) == blocking.sound(right) != ""


def test_sounds_keep_names_apart() -> None:
    assert len({blocking.sound(name) for name in ("minjun", "minseo", "dohyun", "ari", "haneul", "kwangsoo")}) == 6
    assert blocking.sound("") == ""
