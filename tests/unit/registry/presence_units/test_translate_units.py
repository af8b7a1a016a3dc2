"""Home units and beacons: sound records are read and go into snapshots and routes; bad ones are refused by field, with an example."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.errors import InvalidField
from services.registry.cases import translate as snapshots
from services.registry.domain.cases import build_case
from services.registry.domain.records import PersonUnit, UnitKind, WearerUnit
from services.registry.records import translate
from services.registry.records.places import AREAS
from tandem.common.v1 import log_pb2, presence_pb2
from tandem.registry.v1 import presence_unit_pb2, registry_pb2
from tests.support.registry import records

WIFI = presence_pb2.PRESENCE_UNIT_KIND_WIFI_ACCESS_POINT
Change = Callable[[registry_pb2.PresenceUnit], None]


def test_a_home_unit_of_a_wearer_is_read() -> None:
    unit = translate.parse_unit(records.unit())
    assert isinstance(unit, WearerUnit)
    assert (unit.unit_id, unit.wearer_id, unit.kind, unit.interval_s) == ("unit-1", "w-1", UnitKind.HOME_UNIT, 60)
    assert unit.installed_until_ms is None and translate.identifier_sha256(unit) == b""


def test_a_beacon_of_a_person_is_read_and_only_its_hash_leaves() -> None:
    unit = translate.parse_unit(records.unit(person_id="p-1"))
    assert isinstance(unit, PersonUnit) and unit.identifier == "02:00:5e:10:00:01"
    route = snapshots.route_to_proto(unit, [0], False, tokens=[])
    assert (route.kind, route.subject_id) == (log_pb2.PRESENCE_UNIT, "p-1")
    assert route.identifier_sha256 == hashlib.sha256(b"02:00:5e:10:00:01").digest()
    assert "02:00:5e" not in str(translate.unit_to_proto(unit)).lower() and "02:00" not in repr(unit)


def test_an_ibeacon_is_known_by_uuid_major_and_minor() -> None:
    message = records.unit(person_id="p-1")
    message.identifier = "E2C56DB5-DFFB-48D2-B060-D0F5A71096E0:17:1"
    assert translate.parse_unit(message).identifier == "e2c56db5-dffb-48d2-b060-d0f5a71096e0:17:1"


def test_the_snapshot_of_a_case_has_the_units_of_its_own_people() -> None:
    mine, hers = translate.parse_unit(records.unit()), translate.parse_unit(records.unit("beacon", person_id="p-1"))
    others = [
        translate.parse_unit(records.unit("other", "w-2")),
        translate.parse_unit(records.unit("o2", person_id="p-2")),
    ]
    order, wearer = translate.parse_order(records.order()), translate.parse_wearer(records.wearer())
    case = build_case(order, wearer, (), devices=(), units=[*others, hers, mine])
    snapshot = snapshots.case_to_proto(case, 1)
    assert [unit.unit_id for unit in snapshot.presence_units] == ["unit-1"]
    assert [unit.unit_id for person in snapshot.persons for unit in person.presence_units] == ["beacon"]
    assert snapshot.presence_units[0].report_interval_s == 60


def _set(**fields: object) -> Change:
    def change(message: registry_pb2.PresenceUnit) -> None:
        for name, value in fields.items():
            setattr(message, name, value)

    return change


@pytest.mark.parametrize(
    ("change", "field", "reason"),
    [
        (_set(unit_id=""), "unit_id", "is missing"),
        (_set(unit_id="exercise.x"), "unit_id", "must not begin with exercise."),
        (_set(wearer_id=""), "wearer_id", "must be set for a wearer's unit"),
        (_set(person_id="p-1"), "wearer_id", "not both"),
        (_set(source_version=-1), "source_version", "must be 0 or more"),
        (_set(kind=0), "kind", "must be HOME_UNIT, BLUETOOTH_BEACON or WIFI_ACCESS_POINT"),
        (_set(wearer_id="", person_id="p-1"), "kind", "only a wearer has a home unit"),
        (_set(identifier="02:00:5E:10:00:01"), "identifier", "must be empty for a home unit"),
        (_set(kind=WIFI, identifier="02:00"), "identifier", "example: 02:00:5E:10:00:01"),
        (_set(kind=WIFI), "identifier", "must be an address"),
        (_set(report_interval_s=14), "report_interval_s", "must be from 15 to 600"),
        (_set(report_interval_s=601), "report_interval_s", "must be from 15 to 600"),
        (_set(vendor_id="A B"), "vendor_id", "must be 1 to 64 characters"),
        (lambda message: message.ClearField("place"), "place", "is missing"),
        (lambda message: message.ClearField("installed_from"), "installed_from", "is missing"),
        (lambda message: setattr(message.place, "radius_m", 0.5), "place.radius_m", "must be from 1 to 200"),
        (lambda message: setattr(message.place, "radius_m", 201), "place.radius_m", "must be from 1 to 200"),
        (lambda message: setattr(message.place, "lat_deg", float("nan")), "place.lat_deg", "must be from -90 to 90"),
        (
            lambda message: message.installed_until.CopyFrom(Timestamp(seconds=1_600_000_000)),
            "installed_until",
            "must be later than installed_from",
        ),
    ],
)
def test_a_bad_unit_is_refused_by_field(change: Change, field: str, reason: str) -> None:
    message = records.unit()
    change(message)
    with pytest.raises(InvalidField) as error:
        translate.parse_unit(message)
    assert error.value.field == field and reason in error.value.reason


def test_a_unit_outside_the_service_area_is_refused() -> None:
    message = records.unit()
    message.place.lat_deg = 0
    with pytest.raises(InvalidField, match="lies outside Korea"):
        translate.check_unit_area(translate.parse_unit(message), AREAS["korea"])


def test_the_end_of_a_unit_needs_its_time() -> None:
    request = presence_unit_pb2.EndPresenceUnitRequest(unit_id="unit-1", source_version=2)
    with pytest.raises(InvalidField, match="is missing"):
        translate.parse_unit_end(request)
    request.removed_at.seconds = 1_700_000_000
    assert translate.parse_unit_end(request) == ("unit-1", 1_700_000_000_000, 2)
