"""Why personal data may be disclosed: the closed list of articles, and what each opens. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from services.common import fields
from services.common.rpc.errors import InvalidField


class RecordKind(Enum):
    """A kind of record that holds personal data."""

    WEARER = "WEARER"
    PROTECTED_PERSON = "PROTECTED_PERSON"
    ORDER = "ORDER"


class Purpose(Enum):
    """What the reader needs it for. Coded, so that no free text brings personal data into the ledger."""

    ENFORCEMENT = "ENFORCEMENT"
    MATCH_REVIEW = "MATCH_REVIEW"
    VICTIM_CONTACT = "VICTIM_CONTACT"
    COURT = "COURT"
    AUDIT = "AUDIT"
    SUBJECT_REQUEST = "SUBJECT_REQUEST"
    RETENTION = "RETENTION"
    """The period of keeping is over; only the registry itself gives this one."""


@dataclass(frozen=True, slots=True)
class LegalBasis:
    """An article that allows a disclosure."""

    code: str
    article: str
    kinds: frozenset[RecordKind]
    """Records that it opens."""
    in_force_from_ms: int = 0
    """First moment at which it can be relied on, milliseconds since 1970 UTC."""


_ALL = frozenset(RecordKind)
_WEARER = frozenset({RecordKind.WEARER})

LEGAL_BASES = (
    LegalBasis("STALKING_9_1_2", "Stalking Punishment Act 9(1) item 2: no approach within 100 m", _ALL),
    LegalBasis("STALKING_9_1_3", "Stalking Punishment Act 9(1) item 3: no contact by telecommunication", _ALL),
    LegalBasis("STALKING_9_1_3_2", "Stalking Punishment Act 9(1) item 3-2: electronic tag", _ALL),
    LegalBasis("STALKING_4", "Stalking Punishment Act 4: police emergency measure", _ALL),
    # From 2027-04-22, 00:00 in Korea.
    LegalBasis("STALKING_17_6", "Stalking Punishment Act 17-6: victim protection order", _ALL, 1_808_319_600_000),
    LegalBasis("DV_29_1", "Domestic Violence Act 29 items 1 to 3: temporary measure", _ALL),
    LegalBasis("DV_PROTECTION", "Domestic Violence Act: victim protection order", _ALL),
    LegalBasis("TAG_9_2_1_3", "Tag Act 9-2(1)3: no approach to a named person", _ALL),
    LegalBasis("TAG_16_2", "Tag Act 16(2): closed list of uses of a wearer's data", _WEARER),
    LegalBasis("TAG_31_8_2", "Tag Act 31-8(2): use of the data of a wearer under item 3-2", _WEARER),
    LegalBasis("TAG_DECREE_23_10", "Tag Act Decree 23-10 to 23-19: police told of a breach or its risk", _ALL),
)
"""The closed list: what isn't in it opens nothing."""

_BY_CODE = {basis.code: basis for basis in LEGAL_BASES}
_LOOKS_PERSONAL = re.compile(r"[0-9]{6}-?[0-9]{7}|0[0-9]{1,2}-?[0-9]{3,4}-?[0-9]{4}")


@dataclass(frozen=True, slots=True)
class Grounds:
    """Why a record is read."""

    legal_basis: str
    """Code of LEGAL_BASES."""
    purpose: Purpose
    reference: str
    """Id of the incident, case or order that it is about; empty where there is none."""


def check_grounds(legal_basis: str, purpose: Purpose | None, reference: str, kind: RecordKind, now_ms: int) -> Grounds:
    """The grounds, where they allow reading a record of this kind now; by default nothing does. Raises InvalidField."""
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
