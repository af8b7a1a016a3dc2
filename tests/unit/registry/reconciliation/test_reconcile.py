"""Reconciliation: both sides compute the same digests and roots, and the comparison names exactly the differing records."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import InvalidField
from services.registry.domain import lifecycle
from services.registry.domain.reconciliation import (
    ACTION_NUMBERS,
    END_NUMBERS,
    EXERCISE_NUMBERS,
    LANGUAGE_NUMBERS,
    RELATION_NUMBERS,
    SEX_NUMBERS,
    TYPE_NUMBERS,
    WEARER_END_NUMBERS,
    Finding,
    Listed,
    compare_lists,
    is_overdue,
    root_hash,
)
from services.registry.domain.records import (
    Action,
    ContactLanguage,
    EndReason,
    ExerciseKind,
    ListedKind,
    OrderType,
    Relation,
    Sex,
    WearerEndReason,
)
from services.registry.records import kinds, translate
from tandem.common.v1 import contact_pb2, exercise_pb2, geometry_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.registry import listing, records


def full_order() -> registry_pb2.Order:
    """An order with every field set."""
    order = records.order(person_ids=("p-2", "p-1"))
    order.respondent.MergeFrom(
        registry_pb2.Respondent(sex=registry_pb2.SEX_MALE, phone="010-1234-5678", address="서울특별시 종로구 1")
    )
    order.places.append(records.polygon((37.00000004, 127.0), (37.0, 127.1), (37.1, 127.1)))
    order.places.append(records.circle("point", 0))
    order.places[-1].named_to_respondent = True
    order.rings.extend(
        geometry_pb2.Ring(radius_m=radius_m, action=action)
        for radius_m, action in ((600.0004, geometry_pb2.NOTIFY), (99.9996, geometry_pb2.RESPOND))
    )
    order.valid_from.nanos = 999_999_999
    order.type = registry_pb2.ORDER_TYPE_STALKING_APPROACH
    order.extensions = 2
    order.duration_reason = "court decision"
    order.exercise = exercise_pb2.DRILL
    return order


def full_wearer() -> registry_pb2.Wearer:
    wearer = records.wearer()
    wearer.MergeFrom(registry_pb2.Wearer(sex=registry_pb2.SEX_FEMALE, phone="+82 10 1", address="부산 1"))
    wearer.exercise = exercise_pb2.DRILL
    return wearer


def test_the_digest_equals_the_one_that_an_agency_computes() -> None:
    person = records.person()
    person.relation = registry_pb2.RELATION_COHABITANT
    for ours, message in (
        (translate.parse_wearer(records.wearer()), records.wearer()),
        (translate.parse_wearer(full_wearer()), full_wearer()),
        (translate.parse_tag(records.tag()), records.tag()),
        (translate.parse_protected_person(records.person()), records.person()),
        (translate.parse_protected_person(person), person),
        (translate.parse_device(records.device()), records.device()),
        (translate.parse_order(records.order()), records.order()),
        (translate.parse_order(full_order()), full_order()),
    ):
        ours_listed, theirs_listed = kinds.list_entry(ours), listing.listed(message)
        assert (ours_listed.kind.value, ours_listed.record_id, ours_listed.source_version, ours_listed.digest) == (
            theirs_listed.kind,
            theirs_listed.record_id,
            theirs_listed.source_version,
            theirs_listed.digest,
        )


def test_a_tag_without_a_vendor_keeps_its_older_digest() -> None:
    for vendor_id, text in (("", b"wearer_id=w-1\n"), ("acme", b"wearer_id=w-1\nvendor_id=acme\n")):
        tag = translate.parse_tag(records.tag(vendor_id=vendor_id))
        assert kinds.list_entry(tag).digest == hashlib.sha256(text).digest()


def test_the_digest_tells_an_exercise_from_a_live_record() -> None:
    wearer = translate.parse_wearer(records.wearer())
    order = translate.parse_order(records.order())
    assert kinds.list_entry(replace(wearer, exercise=ExerciseKind.DRILL)).digest != kinds.list_entry(wearer).digest
    assert kinds.list_entry(replace(order, exercise=ExerciseKind.DRILL)).digest != kinds.list_entry(order).digest


def test_the_digest_covers_the_end_of_an_order_or_a_tag() -> None:
    end = registry_pb2.EndOrderRequest(
        order_id="o-1",
        source_version=7,
        reason=registry_pb2.END_REASON_ACQUITTAL,
        ended_at=Timestamp(seconds=1_700_000_000, nanos=5_000_000),
    )
    _, ended, version = translate.parse_order_end(end)
    order = lifecycle.ended(translate.parse_order(full_order()), ended, version, covering=None)
    assert kinds.list_entry(order).digest == listing.listed(full_order(), end).digest
    assert kinds.list_entry(order).digest != listing.listed(full_order()).digest

    removal = registry_pb2.EndTagRequest(device_id="tag-1", source_version=2, removed_at=Timestamp(seconds=5))
    tag = replace(translate.parse_tag(records.tag()), removed_at_ms=5000, source_version=2)
    assert kinds.list_entry(tag).digest == listing.listed(records.tag(), removal).digest


def test_the_digest_covers_the_end_of_a_wearer_or_a_person() -> None:
    over = registry_pb2.EndWearerRequest(
        wearer_id="w-1",
        source_version=2,
        reason=registry_pb2.WEARER_END_REASON_LAPSED,
        ended_at=Timestamp(seconds=1_700_000_000),
    )
    _, end, version = translate.parse_wearer_end(over)
    wearer = replace(translate.parse_wearer(full_wearer()), end=end, source_version=version)
    assert kinds.list_entry(wearer).digest == listing.listed(full_wearer(), over).digest
    assert kinds.list_entry(wearer).digest != listing.listed(full_wearer()).digest

    safe = registry_pb2.EndProtectedPersonRequest(person_id="p-1", source_version=2, ended_at=Timestamp(seconds=5))
    _, ended_at_ms, version = translate.parse_person_end(safe)
    person = translate.parse_protected_person(records.person())
    person = replace(person, ended_at_ms=ended_at_ms, source_version=version)
    assert kinds.list_entry(person).digest == listing.listed(records.person(), safe).digest
    assert kinds.list_entry(person).digest != listing.listed(records.person()).digest


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"reason": 0}, "reason"),
        ({"reason": 9}, "reason"),
        ({"ended_at": None}, "ended_at"),
        ({"wearer_id": ""}, "wearer_id"),
    ],
)
def test_an_invalid_end_of_a_wearer_is_rejected_at_its_field(change: dict[str, Any], field: str) -> None:
    good: dict[str, Any] = {"wearer_id": "w-1", "source_version": 2, "reason": 1, "ended_at": Timestamp(seconds=5)}
    translate.parse_wearer_end(registry_pb2.EndWearerRequest(**good))
    with pytest.raises(InvalidField) as refusal:
        translate.parse_wearer_end(registry_pb2.EndWearerRequest(**(good | change)))
    assert refusal.value.field == field


def test_enum_numbers_equal_those_of_the_protos() -> None:
    for sex in Sex:
        assert SEX_NUMBERS[sex] == registry_pb2.Sex.Value(f"SEX_{sex.name}")
    for relation in Relation:
        assert RELATION_NUMBERS[relation] == registry_pb2.Relation.Value(f"RELATION_{relation.name}")
    for language in ContactLanguage:
        assert LANGUAGE_NUMBERS[language] == contact_pb2.Language.Value(f"LANGUAGE_{language.name}")
    for kind in OrderType:
        assert TYPE_NUMBERS[kind] == registry_pb2.OrderType.Value(f"ORDER_TYPE_{kind.name}")
    for reason in EndReason:
        assert END_NUMBERS[reason] == registry_pb2.EndReason.Value(f"END_REASON_{reason.name}")
    for over in WearerEndReason:
        assert WEARER_END_NUMBERS[over] == registry_pb2.WearerEndReason.Value(f"WEARER_END_REASON_{over.name}")
    for exercise in ExerciseKind:
        assert EXERCISE_NUMBERS[exercise] == exercise_pb2.Exercise.Value(exercise.name)
    for action in Action:
        assert ACTION_NUMBERS[action] == geometry_pb2.Demand.Value(action.name)


def listed_records(count: int) -> list[Listed]:
    return [Listed(ListedKind(n % 5 + 1), f"r-{n}", n % 7, n.to_bytes(32, "big")) for n in range(count)]


@pytest.mark.parametrize("seed", range(10))
def test_the_comparison_of_ten_thousand_records_names_exactly_the_differing_ones(seed: int) -> None:
    chance = random.Random(seed)
    stored = listed_records(10_000)
    picked = chance.sample(range(len(stored)), 100)
    dropped = picked[:34]
    older = picked[34:67]
    altered = picked[67:]
    theirs = list(stored)
    for n in older:
        theirs[n] = replace(stored[n], source_version=stored[n].source_version + 1)
    for n in altered:
        theirs[n] = replace(stored[n], digest=bytes(32)[:31] + b"!")
    extra = [Listed(ListedKind.ORDER, f"new-{n}", 1, bytes(32)) for n in range(33)]
    theirs = [record for n, record in enumerate(theirs) if n not in dropped] + extra
    chance.shuffle(theirs)

    found = {(difference.finding, difference.record_id) for difference in compare_lists(theirs, stored)}
    assert found == (
        {(Finding.EXTRA, stored[n].record_id) for n in dropped}
        | {(Finding.DIFFERENT, stored[n].record_id) for n in (*older, *altered)}
        | {(Finding.MISSING, record.record_id) for record in extra}
    )
    assert root_hash(theirs) != root_hash(stored)
    chance.shuffle(stored)
    assert compare_lists(stored, listed_records(10_000)) == []
    assert root_hash(stored) == root_hash(listed_records(10_000))


def test_the_root_equals_the_one_that_an_agency_computes() -> None:
    ours = [kinds.list_entry(translate.parse_wearer(records.wearer(f"w-{n}"))) for n in (3, 20, 1)]
    theirs = [listing.listed(records.wearer(f"w-{n}")) for n in (1, 3, 20)]
    assert root_hash(ours) == listing.root(theirs)
    assert root_hash([]) == listing.root([])


def test_the_time_without_proof_counts_from_the_last_proof() -> None:
    fifteen = 15 * 60_000
    assert not is_overdue(0, None, fifteen)
    assert is_overdue(0, None, fifteen + 1)
    assert not is_overdue(0, 1000, fifteen + 1000)
    assert is_overdue(0, 1000, fifteen + 1001)
