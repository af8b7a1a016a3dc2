"""Similarity of two names in Hangul or in Latin letters, and the Latin spellings of the common Korean surnames. Pure.

To compare a name in Hangul with a name in Latin letters, the letters are read as spellings of the parts of the syllables. The cost
of the cheapest reading gives the similarity. Only the start of a name is compared, so that long names don't take long. The spellings
of surnames were compiled by hand from common usage.
"""

from __future__ import annotations

import functools
import itertools
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rapidfuzz import process
from rapidfuzz.distance import JaroWinkler, Levenshtein

from services.registry.matching import hangul

_USAGE = """
김 kim gim ghim khim
이 lee yi rhee i li ri rhie ree
박 park pak bak bark
최 choi choe choy chey
정 jung jeong chung cheong chong joung
강 kang gang khang
조 cho jo joe cheo
윤 yoon yun youn
장 jang chang jahng
임 lim im rim yim leem
한 han hahn hann
오 oh o
서 seo suh so sur
신 shin sin shinn
권 kwon gwon kweon kwun
황 hwang whang
안 ahn an
송 song
전 jeon jun chun chon cheon jon
홍 hong
유 yoo yu you ryu yoon
류 ryu ryoo yoo yu lyu you
고 ko go koh goh
문 moon mun
양 yang ryang
손 son sohn shon
배 bae pae bai pai
백 baek paik baik paek back
허 heo hur huh hu
남 nam nahm
심 shim sim
노 noh no roh ro rho
로 ro roh no noh
하 ha hah
곽 kwak gwak kwack
성 sung seong song
차 cha tcha
주 joo ju chu choo
우 woo wu u
구 koo gu ku goo
나 na ra rha nah la
라 ra na la rha
민 min minn
진 jin chin
지 ji chi jee
엄 um eom uhm
채 chae chai che
원 won weon
천 chun cheon chon
방 bang pang
공 kong gong
현 hyun hyeon hyon
함 ham hahm
변 byun byeon pyon pyun byon
염 yeom yum youm
여 yeo yuh yo
추 choo chu
도 do doh to
소 so soh
석 seok suk sok
선 sun seon son
설 seol sul sol
마 ma mah
길 gil kil gill
연 yeon yun youn
위 wi wee
표 pyo phyo
명 myung myeong myong
기 ki gi kee
반 ban bahn pan
왕 wang
금 keum geum kum gum
옥 ok ock oak
육 yook yuk
인 in ihn
맹 maeng maing
제 je jae
모 mo moh
탁 tak tark
국 kook kuk gook
어 eo uh
은 eun un
편 pyun pyeon pyon
용 yong
예 ye yeh
경 kyung kyeong
봉 bong pong
사 sa
부 boo bu
황보 hwangbo whangbo
남궁 namgung namkung namgoong namkoong
제갈 jegal chegal
선우 sunwoo seonu sunwu
독고 dokgo dokko
사공 sagong sakong
"""

SPELLINGS: dict[str, tuple[str, ...]] = {
    surname: tuple(spellings) for surname, *spellings in (line.split() for line in _USAGE.strip().splitlines())
}
"""Spellings of a surname in small letters, most usual first."""

_ALIKE = {"류": "유", "리": "이", "림": "임", "로": "노", "라": "나", "량": "양", "려": "여", "련": "연", "륙": "육"}


def _surnames_by_spelling() -> dict[str, tuple[str, ...]]:
    by_spelling: defaultdict[str, list[str]] = defaultdict(list)
    for surname, spellings in SPELLINGS.items():
        for spelling in spellings:
            by_spelling[spelling].append(surname)
    return {spelling: tuple(names) for spelling, names in by_spelling.items()}


BY_SPELLING: dict[str, tuple[str, ...]] = _surnames_by_spelling()
"""Surnames that a Latin spelling may stand for."""


def southern(surname: str) -> str:
    """Surname in its southern form, without an initial ㄹ: 류 becomes 유, 림 becomes 임. Other surnames stay unchanged."""
    return _ALIKE.get(surname, surname)


def split(hangul: str) -> tuple[str, str]:
    """Split a full name in Hangul into surname and given name. Only known surnames have two syllables."""
    length = 2 if len(hangul) > 2 and hangul[:2] in SPELLINGS else 1
    return hangul[:length], hangul[length:]


MAX_READ = 256
"""Maximum number of characters of a name that are read, before non-letters are dropped."""
MAX_LETTERS = 64
"""Maximum number of Latin letters of a name that are compared."""
MAX_SYLLABLES = 24
"""Maximum number of Hangul syllables of a name that are compared."""
_MAX_CANDIDATES = 24
"""Number of candidates that the quick comparison selects for the full comparison."""
_WORD_COST = 0.2
"""Cost of a word that ends within a syllable or within a spelling."""
_TURNED_COST = 0.02
"""Cost of reading the last word of a name as the surname, instead of the first word."""
_USUAL_COST = 0.05
"""Cost per rank of a surname's common spellings: the most usual spelling costs 0, the next one costs this once."""
_LIAISON = 0.9
"""Similarity of surnames that differ only by the initial ㄹ."""

# _NEAR: parts that are often misheard or mistyped for each other. _MERGED: parts that many speakers no longer distinguish.
_NEAR = "ㄱㄲ ㄱㅋ ㄷㄸ ㄷㅌ ㅂㅃ ㅂㅍ ㅅㅆ ㅈㅉ ㅈㅊ ㄴㄹ ㄹㅇ ㄴㅇ ㄴㅁ ㄱㅂ ㅓㅗ ㅕㅛ ㅡㅜ ㅓㅡ ㅢㅣ ㅢㅡ ㅖㅔ ㅠㅜ ㅘㅏ ㅝㅓ ㅟㅣ"
_MERGED = "ㅐㅔ ㅒㅖ ㅙㅞ ㅙㅚ ㅚㅞ"
_SIMILARITY = {frozenset(pair): 0.5 for pair in _NEAR.split()} | {frozenset(pair): 0.8 for pair in _MERGED.split()}


@dataclass(frozen=True, slots=True)
class _Name:
    """A normalised name."""

    hangul: str
    """Hangul syllables of the name. If there are any, its Latin letters are ignored."""
    words: tuple[str, ...]
    """Words of a name without Hangul, in small letters and without diacritics."""


def similarity(left: str, right: str) -> float:
    """Similarity of two names, from 0 (nothing in common, or an empty name) to 1 (equal). Symmetric."""
    a, b = _parse(left[:MAX_READ]), _parse(right[:MAX_READ])
    if a.hangul and b.hangul:
        return _hangul_similarity(a.hangul, b.hangul)
    if a.hangul and b.words:
        return _cross_similarity(a.hangul, b.words)
    if b.hangul and a.words:
        return _cross_similarity(b.hangul, a.words)
    if a.words and b.words:
        return _latin_similarity(a.words, b.words)
    return 0.0


def is_hangul(name: str) -> bool:
    """Whether a name has Hangul syllables. Then only these are compared."""
    return bool(_parse(name[:MAX_READ]).hangul)


def rank(name: str, candidates: Sequence[str]) -> list[tuple[str, float]]:
    """The candidates in Latin letters that are most similar to a name in Hangul: at most 24, best first, each with its similarity."""
    read = _parse(name[:MAX_READ]).hangul
    if not read:
        return []
    quick = fold(hangul.romanise(_southern(read)))
    folded = {
        (index, order): fold("".join(words))
        for index, candidate in enumerate(candidates)
        for order, words in enumerate(_orders(_parse(candidate[:MAX_READ]).words))
    }
    extracted = process.extract(quick, folded, scorer=Levenshtein.normalized_similarity, limit=2 * _MAX_CANDIDATES)
    likely = list(dict.fromkeys(candidates[key[0]] for _, _, key in extracted))[:_MAX_CANDIDATES]
    ranked = ((candidate, similarity(name, candidate)) for candidate in likely)
    return sorted(ranked, key=lambda pair: (-pair[1], pair[0]))


def surname(name: str) -> str:
    """Surname of a name in Hangul, in its southern form; empty for any other name."""
    return southern(split(_parse(name[:MAX_READ]).hangul)[0])


def words(name: str) -> tuple[str, ...]:
    """Words of a name in small Latin letters without diacritics. A name in Hangul is one word."""
    read = _parse(name[:MAX_READ])
    return (read.hangul,) if read.hangul else read.words


@functools.lru_cache(maxsize=4096)
def _parse(name: str) -> _Name:
    composed = unicodedata.normalize("NFKC", name)
    syllables = "".join(filter(hangul.is_syllable, composed))[:MAX_SYLLABLES]
    if syllables:
        return _Name(syllables, ())
    plain = "".join(c for c in unicodedata.normalize("NFKD", composed.casefold()) if not unicodedata.combining(c))
    # A comma after the surname or a hyphen between syllables separates words. An apostrophe or a full stop is part of a word.
    parted = "".join(c if c.isalnum() else "" if c in "'’.`" else " " for c in plain)
    kept_words: list[str] = []
    letters_left = MAX_LETTERS
    for word in parted.split():
        if letters_left <= 0:
            break
        kept_words.append(word[:letters_left])
        letters_left -= len(word)
    return _Name("", tuple(kept_words))


# ── Hangul and Hangul ────────────────────────────────────────────────────────────────────────────────────────────────


def _hangul_similarity(left: str, right: str) -> float:
    if left == right:
        return 1.0
    by_jamo = Levenshtein.normalized_similarity(_jamo(left), _jamo(right))
    if len(left) != len(right):
        return min(by_jamo, 0.99)
    by_syllable = sum(map(_syllable_similarity, left, right)) / len(left)
    if southern(left[0]) == southern(right[0]) and left[0] != right[0]:
        by_syllable += (_LIAISON - _syllable_similarity(left[0], right[0])) / len(left)
    return min(max(by_jamo, by_syllable), 0.99)


@functools.lru_cache(maxsize=65536)
def _syllable_similarity(left: str, right: str) -> float:
    if left == right:
        return 1.0
    a, b = hangul.decompose(left), hangul.decompose(right)
    return (
        0.4 * _part_similarity(a.initial, b.initial)
        + 0.4 * _part_similarity(a.vowel, b.vowel)
        + 0.2 * _part_similarity(a.final, b.final)
    )


def _part_similarity(left: str, right: str) -> float:
    return 1.0 if left == right else _SIMILARITY.get(frozenset((left, right)), 0.0)


def _jamo(syllables: str) -> str:
    parts = map(hangul.decompose, syllables)
    return "".join(part.initial + part.vowel + part.final for part in parts)


def _southern(syllables: str) -> str:
    return southern(syllables[:1]) + syllables[1:]


# ── Hangul and Latin ─────────────────────────────────────────────────────────────────────────────────────────────────


def _cross_similarity(syllables: str, latin: tuple[str, ...]) -> float:
    similarities = (_alignment(syllables, words) - _TURNED_COST * (n > 0) for n, words in enumerate(_orders(latin)))
    return max(0.0, *similarities)


def _orders(latin: tuple[str, ...]) -> Iterable[tuple[str, ...]]:
    """The words in their order, and with the last word first, in case the given name came first."""
    return dict.fromkeys((latin, latin[-1:] + latin[:-1]))


@dataclass(frozen=True, slots=True)
class _Reading:
    """Possible Latin spellings of a name in Hangul."""

    parts: tuple[hangul.Spellings, ...]
    starts: frozenset[int]
    """Indices in `parts` at which a syllable starts, and the end index."""
    in_surname: int
    """Number of parts of the surname."""
    usual: hangul.Spellings
    """Common spellings of the whole surname."""


@functools.lru_cache(maxsize=4096)
def _reading(syllables: str) -> _Reading:
    surname, given = split(syllables)
    parts: list[hangul.Spellings] = []
    starts = [0]
    for syllable in surname + given:
        parts.extend(hangul.spellings(hangul.decompose(syllable)))
        starts.append(len(parts))
    spellings = SPELLINGS.get(surname, ())
    usual = tuple((text, _USUAL_COST * rank) for rank, text in enumerate(spellings))
    return _Reading(parts=tuple(parts), starts=frozenset(starts), in_surname=starts[len(surname)], usual=usual)


def _alignment(syllables: str, words: tuple[str, ...]) -> float:
    """Similarity from 0 to 1: 1 minus the cost of the cheapest reading, divided by the number of letters or parts (the greater)."""
    reading = _reading(syllables)
    text = "".join(words)
    length, count = len(text), len(reading.parts)
    ends = frozenset(itertools.accumulate(map(len, words)))
    word_end = [end for end, word in zip(itertools.accumulate(map(len, words)), words, strict=True) for _ in word]
    # costs[i][j] is the minimum cost of reading the first i parts from the first j letters.
    costs = [[float(j) for j in range(length + 1)]]
    costs.extend([float(length + count)] * (length + 1) for _ in range(count))
    for i, part in enumerate(reading.parts):
        _skip_letters(costs[i])
        within = ends if i not in reading.starts else frozenset[int]()
        _read_part(part, text, costs[i], after_part=costs[i + 1], within=within, word_end=word_end)
        if i == 0:
            _read_surname(reading.usual, text, costs[reading.in_surname], word_end=word_end)
    _skip_letters(costs[-1])
    return max(0.0, 1 - costs[-1][-1] / max(length, count))


def _skip_letters(costs: list[float]) -> None:
    """Lower the costs by skipping letters, at a cost of 1 each."""
    for j in range(1, len(costs)):
        if costs[j - 1] + 1 < costs[j]:
            costs[j] = costs[j - 1] + 1


def _read_part(
    part: hangul.Spellings,
    text: str,
    costs: list[float],
    *,
    after_part: list[float],
    within: frozenset[int],
    word_end: Sequence[int],
) -> None:
    """Lower the costs after a part, which is skipped, read as any letter, or read as one of its spellings.

    `within` are the letter indices before this part at which a word would end within a syllable.
    """
    length = len(text)
    for j, read in enumerate(costs):
        cost = read + _WORD_COST if j in within else read
        if cost + 1 < after_part[j]:
            after_part[j] = cost + 1
        if j < length and cost + 1 < after_part[j + 1]:
            after_part[j + 1] = cost + 1
        for spelling, price in part:
            if text.startswith(spelling, j):
                end = j + len(spelling)
                total = cost + price + (_WORD_COST if spelling and end > word_end[j] else 0)
                after_part[end] = min(after_part[end], total)


def _read_surname(usual: hangul.Spellings, text: str, costs: list[float], *, word_end: Sequence[int]) -> None:
    """Lower the costs after the surname, which is read as one of its common spellings."""
    for spelling, price in usual:
        if text.startswith(spelling):
            total = price + (_WORD_COST if len(spelling) > word_end[0] else 0)
            costs[len(spelling)] = min(costs[len(spelling)], total)


# ── Latin and Latin ──────────────────────────────────────────────────────────────────────────────────────────────────

_FOLDS = """
sh=s ch=j kh=k ph=p th=t wh=hw ck=k yeo=yu you=yu yoo=yu eo=u eu=u oo=u ou=u wu=u uh=u ae=e ai=e ay=e oi=oe ui=i ee=i ie=i ah=a oh=o
g=k d=t b=p z=j r=l c=k f=p q=k
"""
_FOLDED = tuple(pair.split("=") for pair in _FOLDS.split())
"""Pairs of a spelling and its replacement, applied in this order."""


@functools.lru_cache(maxsize=4096)
def fold(text: str) -> str:
    """Unify the spellings of one sound in small Latin letters: `joon` and `jun`, `young` and `yeong`, `gim` and `kim`."""
    for spelling, folded in _FOLDED:
        text = text.replace(spelling, folded)
    return "".join(c for n, c in enumerate(text) if n == 0 or c != text[n - 1])


def _latin_similarity(left: tuple[str, ...], right: tuple[str, ...]) -> float:
    if left == right:
        return 1.0
    plain, folded = 0.0, 0.0
    for a, b in itertools.product(map("".join, _orders(left)), map("".join, _orders(right))):
        plain = max(plain, JaroWinkler.similarity(a, b))
        folded = max(folded, Levenshtein.normalized_similarity(fold(a), fold(b)))
    # Equal letters with other hyphens, capitals or order mean the same name, but an equal sound is weaker evidence.
    return max(plain, 0.97 * folded, _by_surname(left, right))


def _by_surname(left: tuple[str, ...], right: tuple[str, ...]) -> float:
    """Similarity of the given names if both surnames may be one Korean surname, like Lee and Yi; otherwise 0."""
    best = 0.0
    for a, given_a in _surname_splits(left):
        for b, given_b in _surname_splits(right):
            if set(a) & set(b):
                best = max(best, Levenshtein.normalized_similarity(fold(given_a), fold(given_b)))
    return 0.95 * best


def _surname_splits(latin: tuple[str, ...]) -> list[tuple[tuple[str, ...], str]]:
    """Pairs of the surnames that the first or the last word may stand for, and the other words as the given name."""
    if len(latin) < 2:
        return []
    splits = ((latin[0], latin[1:]), (latin[-1], latin[:-1]))
    return [(BY_SPELLING[word], "".join(rest)) for word, rest in splits if word in BY_SPELLING]
