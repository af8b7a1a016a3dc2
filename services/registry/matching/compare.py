"""Decide whether a respondent and a wearer are one person: compared fields, weights, thresholds and reasons. Pure.

The weights are those of the Fellegi-Sunter model, in bits: how much each agreement or disagreement of two records weighs. A field's
comparator gives the level at which two values agree. Each level has two probabilities: m among pairs of records of one person, and u
among pairs of records of two people. The weight of a level is log2(m / u). A value that either record lacks weighs 0.

The weights are constants and were set without labelled pairs.

u, the probability that two strangers agree, was counted:
- dates of birth: over 55 years. A test repeats the count.
- names: from the shares of the common surnames (8 % of pairs have the same surname), and by comparing some 900 given names.
- numbers: from the count of possible digits, rounded up because the people of a household may share a number.

m, the probability that two records of one person agree, was estimated from common errors in such records: typing errors, a moved
household, a new phone, a changed given name, a lunar birthday.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Generic, TypeVar

from rapidfuzz.distance import OSA, Levenshtein

from services.registry.matching import names

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class AgreementLevel:
    """Level at which two values of a field agree or differ."""

    name: str
    words: str
    """Meaning of the level as a sentence, for the person who reviews the match."""
    m: float
    """Probability of the level among pairs of records of one person; above 0 and at most 1."""
    u: float
    """Probability of the level among pairs of records of two people."""

    @property
    def weight(self) -> float:
        """Evidence for one person, bits. A negative weight is evidence against it."""
        return math.log2(self.m / self.u)


@dataclass(frozen=True, slots=True)
class Field(Generic[R]):
    """A field by which two records are compared."""

    name: str
    compare: Callable[[R, R], int | None]
    """Index into `levels` for two records; None if a value is missing. Symmetric."""
    levels: tuple[AgreementLevel, ...]


@dataclass(frozen=True, slots=True)
class FieldComparison:
    """Result of comparing one field of two records."""

    field: str
    level: str
    weight: float
    """Evidence for one person, bits."""
    words: str


MISSING = "MISSING"
"""Level of a field that at least one of the two records doesn't state."""


@dataclass(frozen=True, slots=True)
class Schema(Generic[R]):
    """Fields of one kind of record. The model assumes that the fields are independent."""

    fields: tuple[Field[R], ...]

    def pattern(self, left: R, right: R) -> tuple[int | None, ...]:
        """Level of each field, in order."""
        return tuple(field.compare(left, right) for field in self.fields)

    def evidence(self, left: R, right: R) -> tuple[FieldComparison, ...]:
        """Comparison of each field, in order."""
        return tuple(map(_evidence, self.fields, self.pattern(left, right)))

    def weight_of(self, pattern: Sequence[int | None]) -> float:
        """Sum of the weights of a pattern of levels, bits."""
        return sum(
            field.levels[level].weight for field, level in zip(self.fields, pattern, strict=True) if level is not None
        )


def _evidence(field: Field[R], level: int | None) -> FieldComparison:
    if level is None:
        return FieldComparison(field=field.name, level=MISSING, weight=0.0, words="not stated on both sides")
    agreement = field.levels[level]
    return FieldComparison(field=field.name, level=agreement.name, weight=agreement.weight, words=agreement.words)


CERTAIN = 30.0
"""Minimum weight of a certain match, bits. 30 bits mean odds of 8,000 to 1 if one pair in 2 ** 17 is one person. That share assumes
20,000 wearers, and that one respondent in six or seven wears a tag."""
POSSIBLE = 10.0
"""Minimum weight of a pair that a person must review, bits: a chance of 1 in 130 under the same assumption as for CERTAIN."""

MAX_VALUES = 4
"""Maximum number of names, phones or addresses of one record that are compared."""
_MAX_TEXT = 200
"""Maximum number of characters of an address that are compared."""
LUNAR_LAG_DAYS = range(18, 55)
"""Days between a solar date of birth and the lunar date of the same day, if the lunar date was recorded as a solar date."""
_UNIT = re.compile(r"(?<=\d)-?(?:동|호|층|번지|dong|ho)(?![^\W\d_])")
_NAME_ALIKE = 0.95
_NAME_CLOSE = 0.88
_NAME_NEAR = 0.65
_ADDRESS_SAME, _ADDRESS_NEAR = 0.9, 0.75


@dataclass(frozen=True, slots=True)
class Person:
    """The data of a record that is compared. An empty value or None means unknown."""

    national_id: str = field(default="", repr=False)
    """13 digits."""
    names: tuple[str, ...] = field(default=(), repr=False)
    """Names in Hangul or Latin letters, in any order."""
    birth_date: date | None = field(default=None, repr=False)
    sex: str = field(default="", repr=False)
    """`M` or `F`."""
    phones: tuple[str, ...] = field(default=(), repr=False)
    addresses: tuple[str, ...] = field(default=(), repr=False)


class Verdict(Enum):
    """Conclusion from a comparison."""

    CERTAIN = "CERTAIN"
    """The records describe one person, so the order is enforced at once."""
    POSSIBLE = "POSSIBLE"
    """A person has to review the pair."""
    UNLIKELY = "UNLIKELY"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of comparing two records."""

    verdict: Verdict
    weight: float
    """Sum of the weights of all fields, bits."""
    evidence: tuple[FieldComparison, ...]
    """Comparison of each field, in fixed order. A field that either record lacks weighs 0."""


def compare(left: Person, right: Person) -> Comparison:
    """Compare a respondent with a wearer. The comparison is symmetric.

    An equal national number alone makes a match certain. Otherwise a certain match requires CERTAIN bits, the same name and date of
    birth, and no difference in the national numbers. The weight alone isn't enough, because relatives share a household, a surname
    and a phone, and twins also share a date of birth.
    """
    evidence = PERSON.evidence(left, right)
    weight = sum(field.weight for field in evidence)
    levels = {field.field: field.level for field in evidence}
    if levels["national_id"] == "EQUAL":
        verdict = Verdict.CERTAIN
    elif weight < POSSIBLE:
        verdict = Verdict.UNLIKELY
    else:
        same_name = levels["name"] == "EQUAL" or levels["name_latin"] == "ALIKE"
        same_birth = levels["birth_date"] == "EQUAL"
        refuted = levels["national_id"] in ("ONE_DIGIT", "DIFFERENT")
        is_certain = weight >= CERTAIN and same_name and same_birth and not refuted
        verdict = Verdict.CERTAIN if is_certain else Verdict.POSSIBLE
    return Comparison(verdict, weight, evidence)


# ── normalisation ────────────────────────────────────────────────────────────────────────────────────────────────────

_PROVINCES = {
    "서울특별시": "서울", "서울시": "서울", "부산광역시": "부산", "부산시": "부산", "대구광역시": "대구", "인천광역시": "인천",
    "광주광역시": "광주", "대전광역시": "대전", "울산광역시": "울산", "세종특별자치시": "세종", "경기도": "경기",
    "강원특별자치도": "강원", "강원도": "강원", "충청북도": "충북", "충청남도": "충남", "전북특별자치도": "전북", "전라북도": "전북",
    "전라남도": "전남", "경상북도": "경북", "경상남도": "경남", "제주특별자치도": "제주", "제주도": "제주",
}  # fmt: skip


def phone_digits(phone: str) -> str:
    """Digits of a telephone number as dialled in Korea; empty if there are fewer than 7 or more than 15 digits."""
    # Full-width digits, which older systems of the agencies write, are digits, too.
    digits = "".join(c for c in unicodedata.normalize("NFKC", phone[:64]) if "0" <= c <= "9")
    if digits.startswith("82"):
        digits = "0" + digits[2:].removeprefix("0")
    return digits if 7 <= len(digits) <= 15 else ""


@dataclass(frozen=True, slots=True)
class Address:
    """A normalised address."""

    letters: str
    """Letters of the address, with provinces shortened and without the words for flats, houses and floors."""
    numbers: tuple[str, ...]
    """Numbers of the address in their order, without leading zeros."""


def parse_address(address: str) -> Address:
    """Normalise the first 200 characters of an address."""
    text = unicodedata.normalize("NFKC", address[:_MAX_TEXT]).casefold()
    for long, short in _PROVINCES.items():
        text = text.replace(long, short)
    text = _UNIT.sub(" ", text)
    spaced = "".join(c if "0" <= c <= "9" else " " for c in text)
    return Address("".join(filter(str.isalpha, text)), tuple(number.lstrip("0") or "0" for number in spaced.split()))


# ── levels of agreement ──────────────────────────────────────────────────────────────────────────────────────────────


def national_id_level(left: Person, right: Person) -> int | None:
    """Level of two national numbers: 0 equal, 1 one digit off or two neighbouring digits transposed, 2 different.

    If the numbers aren't equal, only the last six digits are compared, since the other digits repeat the date of birth and the sex.
    """
    a, b = left.national_id, right.national_id
    if not a or not b:
        return None
    if a == b:
        return 0
    return 1 if OSA.distance(a[-6:], b[-6:], score_cutoff=1) <= 1 else 2


def name_level(left: Person, right: Person) -> int | None:
    """Level of the best pair of names, if both have one in Hangul: 0 equal, 1 close, 2 near, 3 same surname, 4 different."""
    pairs = _name_pairs(left, right, both_hangul=True)
    if not pairs:
        return None
    best = max(itertools.starmap(names.similarity, pairs))
    if best >= _NAME_NEAR:
        return 0 if best == 1 else 1 if best >= _NAME_CLOSE else 2
    return 3 if any(names.surname(a) == names.surname(b) for a, b in pairs) else 4


def name_latin_level(left: Person, right: Person) -> int | None:
    """Level of the best pair of names, unless both records have one in Hangul: 0 alike, 1 close, 2 different."""
    pairs = _name_pairs(left, right, both_hangul=False)
    if not pairs or _name_pairs(left, right, both_hangul=True):
        return None
    best = max(itertools.starmap(names.similarity, pairs))
    return 0 if best >= _NAME_ALIKE else 1 if best >= _NAME_CLOSE else 2


def birth_date_level(left: Person, right: Person) -> int | None:
    """Level of two dates of birth: 0 equal, 1 day and month swapped, 2 two neighbouring digits transposed, 3 one year apart,
    4 one digit off, 5 as far apart as a lunar date and its solar date, 6 different."""
    a, b = left.birth_date, right.birth_date
    if a is None or b is None:
        return None
    if a == b:
        return 0
    if a.year == b.year and (a.month, a.day) == (b.day, b.month):
        return 1
    x, y = a.strftime("%Y%m%d").zfill(8), b.strftime("%Y%m%d").zfill(8)
    wrong = [n for n in range(8) if x[n] != y[n]]
    if len(wrong) == 2 and wrong[1] == wrong[0] + 1 and x[wrong[0]] == y[wrong[1]] and x[wrong[1]] == y[wrong[0]]:
        return 2
    if abs(a.year - b.year) == 1 and (a.month, a.day) == (b.month, b.day):
        return 3
    if len(wrong) == 1:
        return 4
    return 5 if abs((a - b).days) in LUNAR_LAG_DAYS else 6


def sex_level(left: Person, right: Person) -> int | None:
    """Level of the sex in both records: 0 equal, 1 different."""
    return None if not left.sex or not right.sex else int(left.sex != right.sex)


def phone_level(left: Person, right: Person) -> int | None:
    """Level of the best pair of phone numbers: 0 equal, 1 one digit off or two neighbouring digits transposed, 2 different."""
    pairs = list(itertools.product(phones(left), phones(right)))
    return min(OSA.distance(a, b, score_cutoff=1) for a, b in pairs) if pairs else None


def address_level(left: Person, right: Person) -> int | None:
    """Level of the best pair of addresses: 0 equal, 1 same street and house, 2 same area, 3 different."""
    pairs = list(itertools.product(addresses(left), addresses(right)))
    return min(_address_level(a, b) for a, b in pairs) if pairs else None


def _address_level(left: Address, right: Address) -> int:
    alike = Levenshtein.normalized_similarity(left.letters, right.letters)
    if alike >= _ADDRESS_SAME and left.numbers == right.numbers:
        return 0
    if alike < _ADDRESS_NEAR:
        return 3
    return 1 if left.numbers and left.numbers[:2] == right.numbers[:2] else 2


def phones(person: Person) -> list[str]:
    """Comparable telephone numbers of a person, as digits."""
    return [digits for phone in person.phones[:MAX_VALUES] if (digits := phone_digits(phone))]


def addresses(person: Person) -> list[Address]:
    """Comparable addresses of a person."""
    parsed = map(parse_address, person.addresses[:MAX_VALUES])
    return [address for address in parsed if address.letters or address.numbers]


def _name_pairs(left: Person, right: Person, both_hangul: bool) -> list[tuple[str, str]]:
    pairs = itertools.product(left.names[:MAX_VALUES], right.names[:MAX_VALUES])
    if both_hangul:
        return [(a, b) for a, b in pairs if names.is_hangul(a) and names.is_hangul(b)]
    return [(a, b) for a, b in pairs if names.words(a) and names.words(b)]


PERSON = Schema(
    (
        Field(
            "national_id",
            national_id_level,
            (
                AgreementLevel(name="EQUAL", words="the national numbers are equal", m=0.96, u=1e-6),
                AgreementLevel(
                    name="ONE_DIGIT",
                    words="the national numbers differ by one slip of typing behind the date of birth",
                    m=0.02,
                    u=6e-5,
                ),
                AgreementLevel(name="DIFFERENT", words="the national numbers differ", m=0.02, u=1.0),
            ),
        ),
        Field(
            "name",
            name_level,
            (
                AgreementLevel(name="EQUAL", words="the names are equal", m=0.94, u=1e-4),
                AgreementLevel(
                    name="CLOSE", words="the names differ by what is easily misheard or mistyped", m=0.02, u=1.8e-4
                ),
                AgreementLevel(name="NEAR", words="the names differ by one syllable", m=0.015, u=0.011),
                AgreementLevel(
                    name="SURNAME", words="only the surnames are equal; given names may be changed", m=0.02, u=0.073
                ),
                AgreementLevel(name="DIFFERENT", words="the names differ", m=0.005, u=0.916),
            ),
        ),
        Field(
            "name_latin",
            name_latin_level,
            (
                AgreementLevel(
                    name="ALIKE",
                    words="one name can be read as the other, across Hangul and Latin spellings",
                    m=0.92,
                    u=5e-4,
                ),
                AgreementLevel(
                    name="CLOSE",
                    words="one name can nearly be read as the other, across Hangul and Latin spellings",
                    m=0.06,
                    u=2e-3,
                ),
                AgreementLevel(
                    name="DIFFERENT", words="the names differ, across Hangul and Latin spellings", m=0.02, u=0.9975
                ),
            ),
        ),
        Field(
            "birth_date",
            birth_date_level,
            (
                AgreementLevel(name="EQUAL", words="the dates of birth are equal", m=0.92, u=5e-5),
                AgreementLevel(name="SWAPPED", words="day and month of birth are swapped", m=0.005, u=2e-5),
                AgreementLevel(
                    name="TRANSPOSED",
                    words="two neighbouring digits of the dates of birth are transposed",
                    m=0.01,
                    u=5e-5,
                ),
                AgreementLevel(
                    name="YEAR_APART", words="the dates of birth are one year apart, on the same day", m=0.01, u=1e-4
                ),
                AgreementLevel(name="ONE_DIGIT", words="the dates of birth differ by one digit", m=0.02, u=1.5e-3),
                AgreementLevel(
                    name="LUNAR",
                    words="the dates of birth are apart as a lunar date is from its solar one",
                    m=0.02,
                    u=3.6e-3,
                ),
                AgreementLevel(name="DIFFERENT", words="the dates of birth differ", m=0.015, u=0.995),
            ),
        ),
        Field(
            "sex",
            sex_level,
            (
                AgreementLevel(name="EQUAL", words="the sex is the same", m=0.995, u=0.74),
                AgreementLevel(name="DIFFERENT", words="the sex differs", m=0.005, u=0.26),
            ),
        ),
        Field(
            "phone",
            phone_level,
            (
                AgreementLevel(name="EQUAL", words="a telephone number is the same", m=0.6, u=1e-5),
                AgreementLevel(
                    name="ONE_DIGIT", words="a telephone number differs by one slip of typing", m=0.03, u=2e-5
                ),
                AgreementLevel(name="DIFFERENT", words="the telephone numbers differ", m=0.37, u=1.0),
            ),
        ),
        Field(
            "address",
            address_level,
            (
                AgreementLevel(name="EQUAL", words="the addresses are the same", m=0.5, u=2e-5),
                AgreementLevel(name="HOUSE", words="the addresses are of one street and house", m=0.12, u=2e-4),
                AgreementLevel(name="AREA", words="the addresses are of one area", m=0.13, u=0.01),
                AgreementLevel(name="DIFFERENT", words="the addresses differ", m=0.25, u=0.99),
            ),
        ),
    )
)
"""Fields by which a respondent and a wearer are compared, with their weights."""
_WORDS = {(field.name, level.name): level.words for field in PERSON.fields for level in field.levels}


def words_of(field: str, level: str) -> str:
    """The meaning of a level of a field as a sentence. Raises KeyError for a field that doesn't have the level."""
    return _WORDS[field, level]
