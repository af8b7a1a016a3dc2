"""Similarity of names across scripts, spellings and orders, and for any text."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.registry.matching import hangul, names

SYLLABLES = st.characters(min_codepoint=0xAC00, max_codepoint=0xD7A3)
HANGUL = st.text(SYLLABLES, min_size=1, max_size=5)
LATIN = st.text("abdeghijklmnoprstuwyABC -,'", max_size=20)
ANY = st.one_of(HANGUL, LATIN, st.text(st.characters(), max_size=20))


@given(ANY, ANY)
def test_similarity_is_symmetric_and_between_0_and_1(left: str, right: str) -> None:
    similarity = names.similarity(left, right)
    assert 0 <= similarity <= 1
    assert names.similarity(right, left) == pytest.approx(similarity)


@given(st.one_of(HANGUL, st.from_regex(r"[a-z]{1,9}( [a-z]{1,9}){0,3}", fullmatch=True)))
def test_a_name_has_similarity_1_to_itself(name: str) -> None:
    assert names.similarity(name, name) == 1


@given(HANGUL, HANGUL)
def test_different_names_in_hangul_are_never_equal(left: str, right: str) -> None:
    assert (names.similarity(left, right) == 1) == (left == right)


@given(st.sampled_from(sorted(names.SPELLINGS)), st.text(SYLLABLES, min_size=1, max_size=2), st.data())
def test_every_common_spelling_of_a_surname_is_read(surname: str, given_name: str, data: st.DataObject) -> None:
    spelling = data.draw(st.sampled_from(names.SPELLINGS[surname]))
    latin = hangul.romanise(given_name)
    # Skip a given name that completes another surname of two syllables.
    if names.split(surname + given_name)[0] == surname:
        assert names.similarity(surname + given_name, f"{spelling.upper()}, {latin}") > 0.8


@given(SYLLABLES)
def test_a_syllable_is_read_from_each_of_its_spellings(syllable: str) -> None:
    parts = hangul.spellings(hangul.decompose(syllable))
    assert hangul.romanise(syllable) == "".join(part[0][0] for part in parts)
    for n, part in enumerate(parts):
        for spelling, cost in part:
            latin = "".join(spelling if k == n else other[0][0] for k, other in enumerate(parts))
            if latin:
                assert names.similarity(syllable, latin) >= 1 - cost - 1e-9


def test_parts_of_a_syllable() -> None:
    assert hangul.decompose("강") == hangul.Syllable("ㄱ", "ㅏ", "ㅇ")
    assert hangul.decompose("이") == hangul.Syllable("ㅇ", "ㅣ", "")
    assert hangul.decompose("힣") == hangul.Syllable("ㅎ", "ㅣ", "ㅎ")
    with pytest.raises(ValueError, match="not a Hangul syllable"):
        hangul.decompose("A")


@pytest.mark.parametrize(
    ("text", "latin"),
    [
        ("김민준", "gimminjun"),
        ("최영희", "choeyeonghui"),
        ("박꽃님", "bakkkotnim"),
        ("왕뷁", "wangbwek"),
        ("Kim 이", "i"),
    ],
)
def test_revised_romanisation(text: str, latin: str) -> None:
    assert hangul.romanise(text) == latin


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("이서준", "Lee Seo Jun"),
        ("이서준", "Yi Seojoon"),
        ("이서준", "Rhee, Seo-Jun"),
        ("이서준", "I Seojun"),
        ("이서준", "LI SEO-JUN"),
        ("김민준", "Minjun Kim"),
        ("김민준", "min-jun gim"),
        ("박지성", "Pak Chisŏng"),
        ("최유리", "Choi Yuri"),
        ("정우성", "Chung Woo Sung"),
        ("정우성", "Jeong Useong"),
        ("정우성", "Cheong Woo-sung"),
        ("노영희", "Roh Younghee"),
        ("유재석", "Ryu Jae-seok"),
        ("남궁민", "Namkoong Min"),
        ("Lee Seo-Jun", "Rhee Seo Joon"),
        ("Kim Min-jun", "MINJUN KIM"),
        ("유재석", "류재석"),
        ("김재현", "김제현"),
    ],
)
def test_spellings_of_one_name_are_similar(left: str, right: str) -> None:
    assert names.similarity(left, right) >= 0.94


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("김민준", "박서연"),
        ("김민준", "Park Seo-yeon"),
        ("Kim Min-jun", "Park Seo-yeon"),
        ("김민준", "이민준"),
        ("정우성", "Chun Woo-jin"),
        ("김민준", "김민서"),
    ],
)
def test_different_names_are_not_similar(left: str, right: str) -> None:
    assert names.similarity(left, right) < 0.88


def test_a_close_syllable_counts_for_more_than_a_far_one() -> None:
    assert (
        names.similarity("김재현", "김제현")
        > names.similarity("김재현", "김조현")
        > names.similarity("김재현", "김국현")
    )


def test_word_boundaries_are_syllable_boundaries() -> None:
    assert names.similarity("성유리", "Sung Yu Ri") > names.similarity("성유리", "Sun Gyu Ri")
    assert names.similarity("선규리", "Sun Gyu Ri") > names.similarity("선규리", "Sung Yu Ri")


def test_an_empty_name_has_similarity_0_to_every_name() -> None:
    for empty in ("", " ", "-", "\ud800", "!?"):
        assert (
            names.similarity(empty, "김민준") == names.similarity(empty, "Kim") == names.similarity(empty, empty) == 0
        )
        assert names.rank(empty, ["Kim Min Jun"]) == []


def test_lone_surrogates_are_ignored() -> None:
    assert names.similarity("김\ud800민준\udfff", "김민준") == 1
    assert names.similarity("Kim\ud800 Minjun", "Kim Minjun") > 0.9


def test_hangul_in_separate_letters_is_the_same_name() -> None:
    assert names.similarity("\u1100\u1175\u11b7\u1106\u1175\u11ab", "김민") == 1


def test_only_the_start_of_a_10_mb_name_is_read() -> None:
    for letter in ("김", "a", "a ", "\u0301", "\ud800", "ﷺ", "ß"):
        name = letter * (10_000_000 // len(letter))
        assert sum(map(len, names.words(name))) <= names.MAX_LETTERS
        for other in (name, "김민준", "Kim Min Jun"):
            assert 0 <= names.similarity(name, other) <= 1


def test_rank_sorts_by_similarity_and_then_by_name() -> None:
    found = names.rank(
        "전지현", ["Chun Song Yi", "Ji-hyun Jun", "Jung Ji Hyun", "Jeon Ji Hyeon", "Kim Ji Hyun", "Jun Ji Hyun"]
    )
    assert [candidate for candidate, _ in found][:3] == ["Jeon Ji Hyeon", "Jun Ji Hyun", "Ji-hyun Jun"]
    assert [similarity for _, similarity in found] == sorted((similarity for _, similarity in found), reverse=True)
    assert names.rank("김민준", []) == []


@given(st.text("abcdeghijklmnoprstuwyz", max_size=12))
def test_folding_leaves_no_doubled_letters(text: str) -> None:
    folded = names.fold(text)
    assert all(a != b for a, b in itertools.pairwise(folded))


def test_spellings_of_one_sound_fold_to_one_text() -> None:
    for spellings in (
        ("joon", "jun"),
        ("young", "yeong"),
        ("kim", "gim"),
        ("park", "bark"),
        ("shin", "sin"),
        ("hee", "hi"),
    ):
        assert len(set(map(names.fold, spellings))) == 1, spellings


def test_only_known_surnames_of_two_syllables_are_split_off() -> None:
    assert names.split("남궁민") == ("남궁", "민")
    assert names.split("선우") == ("선", "우")
    assert names.split("김민준") == ("김", "민준")
    assert names.surname("류현진") == names.surname("유현진") == "유"
    assert names.surname("Kim Min") == ""


def test_the_table_of_surnames_is_consistent() -> None:
    assert len(names.SPELLINGS) >= 60
    for surname, spellings in names.SPELLINGS.items():
        assert all(map(hangul.is_syllable, surname))
        assert len(set(spellings)) == len(spellings) >= 1
        assert all(spelling.isascii() and spelling.islower() for spelling in spellings)
    assert set(names.BY_SPELLING["chun"]) >= {"전", "천"}
