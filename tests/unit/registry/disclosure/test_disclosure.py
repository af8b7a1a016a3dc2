"""Grounds for reading a record, fields that each role sees, and hashes of the ledger's rows."""

from __future__ import annotations

import pytest

from services.common.privacy.grounds import LEGAL_BASES, Grounds, LegalBasis, Purpose, RecordKind, check_grounds
from services.common.rpc.errors import InvalidField
from services.common.rpc.identity import Role
from services.registry.ledger.chain import GENESIS, ChainVerifier, Disclosure, LedgerHead, append, hash_of
from services.registry.records.kinds import PERSONS, WEARERS

NOW_MS = 1_780_000_000_000


def check(
    legal_basis: str = "STALKING_9_1_3_2",
    purpose: Purpose | None = Purpose.ENFORCEMENT,
    reference: str = "",
    kind: RecordKind = RecordKind.WEARER,
    now_ms: int = NOW_MS,
) -> Grounds:
    return check_grounds(legal_basis, purpose, reference, kind=kind, now_ms=now_ms)


@pytest.mark.parametrize("basis", LEGAL_BASES, ids=lambda basis: basis.code)
def test_each_article_allows_its_kinds_of_records_from_its_date_in_force(basis: LegalBasis) -> None:
    for kind in RecordKind:
        now_ms = max(NOW_MS, basis.in_force_from_ms)
        if kind in basis.kinds:
            assert check(basis.code, kind=kind, now_ms=now_ms).legal_basis == basis.code
        else:
            with pytest.raises(InvalidField, match="doesn't allow"):
                check(basis.code, kind=kind, now_ms=now_ms)
    if basis.in_force_from_ms:
        with pytest.raises(InvalidField, match="in force"):
            check(basis.code, now_ms=basis.in_force_from_ms - 1)


def test_codes_of_legal_bases_are_unique() -> None:
    assert len({basis.code for basis in LEGAL_BASES}) == len(LEGAL_BASES)


@pytest.mark.parametrize(
    ("wrong", "field"),
    [
        ({"legal_basis": ""}, "legal_basis"),
        ({"legal_basis": "stalking_9_1_3_2"}, "legal_basis"),
        ({"purpose": None}, "purpose"),
        ({"purpose": Purpose.RETENTION}, "purpose"),
        ({"reference": "a b"}, "reference"),
        ({"reference": "800101-1234567"}, "reference"),
        ({"reference": "8001011234567"}, "reference"),
        ({"reference": "010-1234-5678"}, "reference"),
    ],
)
def test_invalid_grounds_are_rejected_at_their_field(wrong: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        check(**wrong)  # type: ignore[arg-type]
    assert refusal.value.field == field


def test_probation_sees_no_places_and_only_records_and_reviewers_see_numbers() -> None:
    assert "places" not in PERSONS.shows[Role.ROLE_MOJ_DESK]
    assert {role for role, names in WEARERS.shows.items() if "national_id" in names} == {
        Role.ROLE_MOJ_RECORDS,
        Role.ROLE_REVIEWER,
    }


def test_the_hash_of_a_row_depends_on_the_boundaries_of_its_fields() -> None:
    def row(who: str, purpose: str) -> Disclosure:
        return Disclosure("d", 1, "READ", who, "", purpose, "", "WEARER", "w", "", "", 0, None)

    assert hash_of(1, row("ab", "c"), GENESIS) != hash_of(1, row("a", "bc"), GENESIS)
    first = append(None, row("a", "b"))
    second = append(LedgerHead(first.sequence, first.hash, 1), row("a", "b"))
    assert (first.sequence, second.sequence, second.previous) == (1, 2, first.hash)
    verifier = ChainVerifier()
    verifier.verify_next(first)
    verifier.verify_next(second)
    assert verifier.sequence == 2


def test_a_row_without_positions_keeps_its_older_hash() -> None:
    def row(positions: int | None) -> Disclosure:
        return Disclosure("d", 1, "READ", "who", "", "COURT", "", "WEARER", "w", "", "", 0, positions)

    old = "747f862ad3798f79bca3aec05fe3730354f92fd0627a220ae9143a871cff40e1"
    assert hash_of(1, row(None), GENESIS).hex() == old
    assert len({hash_of(1, row(positions), GENESIS) for positions in (None, 0, 1)}) == 3
