"""Legal grounds for disclosing personal data: the closed list of articles, and the kinds of records that each article covers. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from services.common import fields
from services.common.errors import InvalidField
from services.common.privacy import notices
from services.common.privacy.notices import NoticeGround, NoticeTerms
from services.common.words import ARTICLE_WORDS


class RecordKind(Enum):
    """Kind of a record that holds personal data."""

    WEARER = "WEARER"
    PROTECTED_PERSON = "PROTECTED_PERSON"
    ORDER = "ORDER"
    PRESENCE_UNIT = "PRESENCE_UNIT"
    """Home unit or beacon. No article allows to read its record; only its destruction is in the ledger."""


class Purpose(Enum):
    """Purpose of a disclosure. It is a code, so that no free text brings personal data into the ledger."""

    ENFORCEMENT = "ENFORCEMENT"
    MATCH_REVIEW = "MATCH_REVIEW"
    VICTIM_CONTACT = "VICTIM_CONTACT"
    COURT = "COURT"
    AUDIT = "AUDIT"
    SUBJECT_REQUEST = "SUBJECT_REQUEST"
    RETENTION = "RETENTION"
    """The retention period is over. Only the registry itself uses this purpose."""


@dataclass(frozen=True, slots=True)
class LegalBasis:
    """An article of law that allows a disclosure."""

    code: str
    kinds: frozenset[RecordKind]
    """Kinds of records that the article allows to disclose."""
    in_force_from_ms: int = 0
    """Time at which the article comes into force, milliseconds since 1970 UTC. If 0, the default, it always has been in force."""
    notice: NoticeTerms | None = None
    """Terms of an article under which the Ministry notifies a protected person; None for an article that allows reading a record."""

    @property
    def article(self) -> str:
        """Name of the article in English."""
        _korean, english = ARTICLE_WORDS[self.code]
        return english


_ALL = frozenset({RecordKind.WEARER, RecordKind.PROTECTED_PERSON, RecordKind.ORDER})
_WEARER = frozenset({RecordKind.WEARER})
_NONE = frozenset[RecordKind]()

LEGAL_BASES = (
    LegalBasis("STALKING_9_1_2", _ALL),
    LegalBasis("STALKING_9_1_3", _ALL),
    LegalBasis("STALKING_9_1_3_2", _ALL),
    LegalBasis("STALKING_4", _ALL),
    # In force from 2027-04-22T00:00:00+09:00.
    LegalBasis(
        code="STALKING_17_6",
        kinds=_ALL,
        in_force_from_ms=1_808_319_600_000,
    ),
    LegalBasis(
        code="STALKING_17_7",
        kinds=_ALL,
        in_force_from_ms=1_808_319_600_000,
    ),
    LegalBasis("DV_29_1", _ALL),
    LegalBasis("DV_PROTECTION", _ALL),
    LegalBasis("TAG_9_2_1_3", _ALL),
    LegalBasis("TAG_16_2", _WEARER),
    LegalBasis("TAG_16_3_2", _WEARER),
    LegalBasis("TAG_31_8_2", _WEARER),
    LegalBasis("TAG_DECREE_23_10", _ALL),
    # Act 21229 and Decree 36387, in force since 2026-06-24, also for tags that were worn before. They allow no caller to read a record:
    # the recipient is the protected person.
    LegalBasis(
        "TAG_15_2",
        _NONE,
        notice=notices.terms(NoticeGround.JUDGMENT, "a breach of the condition, or a marked risk of one"),
    ),
    LegalBasis(
        "TAG_16_2_5",
        _NONE,
        notice=notices.terms(NoticeGround.JUDGMENT, "a notice under 15-2 and urgency", gives_location=True),
    ),
    LegalBasis(
        "TAG_DECREE_13_3",
        _NONE,
        notice=notices.terms(NoticeGround.JUDGMENT, "a distance and a danger that make it urgent", gives_location=True),
    ),
    LegalBasis(
        "TAG_31_6_4",
        _NONE,
        notice=notices.terms(NoticeGround.STALKING_ORDER, "item 2: a breach of that order, or a risk of one"),
    ),
    LegalBasis(
        "TAG_31_8_2_5",
        _NONE,
        notice=notices.terms(NoticeGround.STALKING_ORDER, "a notice under 31-6(4) and urgency", gives_location=True),
    ),
    LegalBasis(
        "TAG_DECREE_23_17",
        _NONE,
        notice=notices.terms(
            NoticeGround.STALKING_ORDER, "a distance and a danger that make it urgent", gives_location=True
        ),
    ),
)
"""Closed list of the articles that allow a disclosure. An article that isn't in it allows none."""

_BY_CODE = {basis.code: basis for basis in LEGAL_BASES}
_LOOKS_PERSONAL = re.compile(r"[0-9]{6}-?[0-9]{7}|0[0-9]{1,2}-?[0-9]{3,4}-?[0-9]{4}")


def codes_for(*kinds: RecordKind) -> list[str]:
    """Codes of the articles that allow to read records of all these kinds."""
    return [basis.code for basis in LEGAL_BASES if basis.kinds.issuperset(kinds)]


@dataclass(frozen=True, slots=True)
class Grounds:
    """Grounds for reading a record: legal basis, purpose and reference."""

    legal_basis: str
    """Code of an article in LEGAL_BASES."""
    purpose: Purpose
    reference: str
    """Id of the incident, case or order for which the record is read. Empty if there is none."""


def check_grounds(
    legal_basis: str, purpose: Purpose | None, reference: str, *, kind: RecordKind, now_ms: int
) -> Grounds:
    """Checks that the grounds allow reading a record of a kind now, and returns them. Raises InvalidField otherwise.

    `reference` may be empty. Any reading that the list of articles doesn't allow is refused.
    """
    if not legal_basis:
        raise InvalidField("legal_basis", "is missing: without one nothing is disclosed")
    basis = _BY_CODE.get(legal_basis)
    if basis is None:
        raise InvalidField("legal_basis", "isn't in the list of articles")
    if now_ms < basis.in_force_from_ms:
        raise InvalidField("legal_basis", "isn't in force yet")
    if kind not in basis.kinds:
        raise InvalidField("legal_basis", f"doesn't allow reading a record of the kind {kind.value}")
    if purpose is None or purpose is Purpose.RETENTION:
        raise InvalidField("purpose", "is missing: without one nothing is disclosed")
    if reference:
        fields.required_id("reference", reference)
        if _LOOKS_PERSONAL.fullmatch(reference):
            raise InvalidField("reference", "must be the id of a record, not a person's number")
    return Grounds(legal_basis, purpose, reference)


def is_of_notice(legal_basis: str) -> bool:
    """Whether a code names an article under which the Ministry notifies a protected person, or gives a location with a notice."""
    basis = _BY_CODE.get(legal_basis)
    return basis is not None and basis.notice is not None


def check_notice(legal_basis: str, reference: str, *, now_ms: int) -> LegalBasis:
    """Checks that an article allows a notice to a protected person, or a location with it, and returns it. Raises InvalidField.

    `reference` is the id of the incident, which a notice always has.
    """
    if not legal_basis:
        raise InvalidField("legal_basis", "is missing: without one there is no notice (example: TAG_15_2)")
    basis = _BY_CODE.get(legal_basis)
    if basis is None:
        raise InvalidField("legal_basis", "isn't in the list of articles")
    if basis.notice is None:
        raise InvalidField("legal_basis", "allows no notice to a protected person (example: TAG_15_2)")
    if now_ms < basis.in_force_from_ms:
        raise InvalidField("legal_basis", "isn't in force yet")
    fields.required_id("reference", reference)
    return basis
