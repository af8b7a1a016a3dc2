"""Grounds for reading a record, fields that each role sees, and hashes of the ledger's rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common.errors import InvalidField
from services.common.messaging import flow
from services.common.privacy import notices
from services.common.privacy.grounds import LEGAL_BASES, Grounds, LegalBasis, Purpose, RecordKind, check_grounds
from services.common.rpc.identity import Role
from services.registry.disclosure.published import named_ids
from services.registry.disclosure.translate import published_disclosure
from services.registry.domain.disclosure import KnownIds, first_unknown
from services.registry.domain.ledger import GENESIS, ChainVerifier, Disclosure, LedgerHead, hash_of, next_row
from services.registry.records.kinds import PERSONS, WEARERS
from tandem.common.v1 import ledger_pb2

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
    first = next_row(None, row("a", "b"))
    second = next_row(LedgerHead(first.sequence, first.hash, 1), row("a", "b"))
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


def row_of_map(**changes: object) -> ledger_pb2.Disclosure:
    """A row of her map, as an evaluator publishes it."""
    content = {
        "disclosure_id": "map-1",
        "at_ms": NOW_MS,
        "who": notices.TRACKING_CENTRE,
        "legal_basis": "TAG_16_2_5",
        "purpose": "VICTIM_CONTACT",
        "reference": "incident-1",
        "record_kind": "WEARER",
        "record_id": "w",
        "order_id": "o",
        "recipient": notices.recipient_id("p"),
    }
    return ledger_pb2.Disclosure(**(content | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("basis", ["TAG_15_2", "TAG_16_2_5", "TAG_31_6_4", "TAG_31_8_2_5"])
def test_an_evaluator_may_give_a_location_to_a_protected_person_under_an_article_of_a_notice(basis: str) -> None:
    row = row_of_map(legal_basis=basis)
    parsed = published_disclosure(flow.disclosure_subject("geofence", "map-1"), row.SerializeToString())
    assert (parsed.deed, parsed.legal_basis, parsed.recipient) == ("NOTIFIED", basis, notices.recipient_id("p"))


@pytest.mark.parametrize(
    ("publisher", "changes", "field"),
    [
        ("geofence", {"legal_basis": "TAG_16_2"}, "recipient"),
        ("geofence", {"legal_basis": ""}, "legal_basis"),
        ("geofence", {"recipient": "spiffe://npa/desk/a"}, "recipient"),
        ("geofence", {"who": "spiffe://npa/desk/a"}, "who"),
        ("geofence", {"reference": ""}, "reference"),
        ("dispatch-police", {}, "legal_basis"),
        ("explain", {}, "legal_basis"),
    ],
)
def test_a_row_of_her_map_that_is_wrong_or_of_another_user_is_refused(
    publisher: str, changes: dict[str, object], field: str
) -> None:
    row = row_of_map(**changes)
    with pytest.raises(InvalidField) as refused:
        published_disclosure(flow.disclosure_subject(publisher, "map-1"), row.SerializeToString())
    assert refused.value.field == field


KNOWN = KnownIds(
    records={
        RecordKind.WEARER: {"w"},
        RecordKind.PROTECTED_PERSON: {"p"},
        RecordKind.ORDER: {"o", "exercise.canary.1"},
    },
    incidents={"incident-1"},
)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({}, ""),
        ({"reference": "case-7"}, ""),
        ({"record_id": "another"}, "record_id"),
        ({"order_id": "another"}, "order_id"),
        ({"recipient": notices.recipient_id("another")}, "recipient"),
        ({"reference": "incident-2"}, "reference"),
        ({"reference": "incident-2", "order_id": "exercise.canary.1"}, ""),
    ],
)
def test_a_disclosure_names_only_what_the_registry_knows(changes: dict[str, object], field: str) -> None:
    row = row_of_map(**changes).SerializeToString()
    disclosure = published_disclosure(flow.disclosure_subject("geofence", "map-1"), row)
    error = first_unknown(named_ids(disclosure), KNOWN)
    assert (error.field if error else "") == field


def test_without_a_reader_of_alerts_no_incident_is_asked_for() -> None:
    row = row_of_map(reference="incident-2").SerializeToString()
    named = named_ids(published_disclosure(flow.disclosure_subject("geofence", "map-1"), row))
    assert first_unknown(named, KNOWN) is not None and first_unknown(named, replace(KNOWN, incidents=None)) is None
