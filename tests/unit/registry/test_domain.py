"""Rules of the registry's domain: puts, matches, joint cases and the partitions that need a device's reports."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.common import ids
from services.common.errors import Conflict
from services.registry.cases import translate as snapshots
from services.registry.domain import lifecycle
from services.registry.domain.cases import build_case, device_partitions, tag_partitions, withdrawn_case
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import Action, OrderRing, is_match
from services.registry.records import translate
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support.registry import records

WEARER = translate.parse_wearer(records.wearer())
ORDER = translate.parse_order(records.order(person_ids=("p-2", "p-1")))
TAGS = [
    translate.parse_tag(records.tag(device_id, wearer_id))
    for device_id, wearer_id in (("t2", "w-1"), ("t1", "w-1"), ("t3", "w-9"))
]
DEVICES = [
    translate.parse_device(records.device(device_id, person_id))
    for device_id, person_id in (("b", "p-1"), ("a", "p-1"), ("c", "p-9"))
]


@pytest.mark.parametrize(
    ("stored_version", "stored_digest", "version", "digest", "outcome"),
    [
        (None, None, 0, b"x", PutOutcome.STORED),
        (1, b"x", 2, b"x", PutOutcome.STORED),
        (1, b"x", 2, b"y", PutOutcome.STORED),
        (2, b"x", 2, b"x", PutOutcome.UNCHANGED),
        (3, b"x", 2, b"x", PutOutcome.SUPERSEDED),
        (3, b"x", 2, b"y", PutOutcome.SUPERSEDED),
    ],
)
def test_the_outcome_of_a_put_follows_from_version_and_digest(
    stored_version: int | None, stored_digest: bytes | None, version: int, digest: bytes, outcome: PutOutcome
) -> None:
    assert lifecycle.decide_put(stored_version, stored_digest, version, digest=digest) is outcome


def test_the_same_version_with_other_content_is_a_conflict() -> None:
    with pytest.raises(Conflict, match="version 2"):
        lifecycle.decide_put(2, b"x", 2, digest=b"y")


def test_the_same_national_number_is_a_match_with_any_name() -> None:
    assert is_match(ORDER.respondent, replace(WEARER, name="other"))
    assert not is_match(ORDER.respondent, replace(WEARER, national_id="8001011234568"))


def test_a_case_holds_exactly_the_tags_devices_and_rings_of_its_order_and_wearer() -> None:
    case = build_case(ORDER, WEARER, TAGS, devices=DEVICES)
    assert case.case_id == ids.hash_id("case", "o-1", "w-1")
    assert case.tag_device_ids == ("t1", "t2")
    assert [(person.person_id, person.device_ids) for person in case.persons] == [("p-2", ()), ("p-1", ("a", "b"))]
    assert [(ring.radius_m, ring.action) for ring in case.rings] == [
        (2000, Action.WARN),
        (1000, Action.NOTIFY),
        (100, Action.RESPOND),
    ]


def test_rings_of_the_order_replace_the_default_rings() -> None:
    ring = OrderRing(600, Action.RESPOND)
    assert build_case(replace(ORDER, rings=(ring,)), WEARER, (), devices=()).rings == (ring,)


def test_the_snapshot_holds_the_case_and_no_personal_data() -> None:
    snapshot = snapshots.case_to_proto(build_case(ORDER, WEARER, TAGS, devices=DEVICES), 7)
    assert snapshot == log_pb2.CaseSnapshot(
        case_id=ids.hash_id("case", "o-1", "w-1"),
        version=7,
        order_id="o-1",
        wearer_id="w-1",
        tag_device_ids=["t1", "t2"],
        persons=[
            log_pb2.ProtectedTarget(person_id="p-2"),
            log_pb2.ProtectedTarget(person_id="p-1", device_ids=["a", "b"]),
        ],
        places=[records.circle()],
        rings=[
            geometry_pb2.Ring(radius_m=2000, action=geometry_pb2.WARN),
            geometry_pb2.Ring(radius_m=1000, action=geometry_pb2.NOTIFY),
            geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND),
        ],
        valid_from_ms=1_600_000_000_000,
        valid_until_ms=4_000_000_000_000,
    )
    assert records.NAME.encode() not in snapshot.SerializeToString()


def test_a_polygon_is_unchanged_in_the_snapshot() -> None:
    message = records.order()
    message.places.append(records.polygon((37.0, 127.0), (37.0, 127.1), (37.1, 127.1)))
    case = build_case(translate.parse_order(message), WEARER, (), devices=())
    assert list(snapshots.case_to_proto(case, 1).places) == list(message.places)


@pytest.mark.parametrize(
    ("at_ms", "until_ms"),
    [
        (2_000_000_000_000, 2_000_000_000_000),
        (
            1_000_000_000_000,
            1_600_000_000_001,
        ),  # before its start: 1 ms of validity is left, so that the case stays well formed
        (5_000_000_000_000, 4_000_000_000_000),
    ],
)
def test_a_withdrawn_case_ends_at_the_withdrawal_at_the_latest(at_ms: int, until_ms: int) -> None:
    case = build_case(ORDER, WEARER, TAGS, devices=DEVICES)
    assert withdrawn_case(case, at_ms) == replace(case, valid_until_ms=until_ms)


def test_reports_go_to_the_sorted_partitions_that_need_them() -> None:
    wearer_ids = [f"w-{n}" for n in range(20)]
    assert tag_partitions("w-1", 3) == (ids.partition_of("w-1", 3),)
    assert device_partitions("p-1", (), 3) == (ids.partition_of("p-1", 3),)
    assert device_partitions("p-1", wearer_ids, 3) == (0, 1, 2)
    assert device_partitions("p-1", wearer_ids, 1) == (0,)
