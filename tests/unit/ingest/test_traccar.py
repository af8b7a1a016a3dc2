"""JSON of Traccar Client: the app's requests are read; missing or mistyped values are refused by path."""

from __future__ import annotations

import json
from typing import Any

import pytest

from services.common.errors import InvalidField
from services.ingest.domain import EquipmentEvent, Position
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import Said
from tandem.common.v1 import log_pb2

RECEIVED_MS = 1_800_000_000_000
AT_MS = 1_626_854_794_444

# By the app's template (lib/preferences.dart): it has no uuid, and ends with a part by which the server finds the device.
TEMPLATE = b"""{"location":{"timestamp":"2021-07-21T08:06:34.444Z","coords":{"latitude":37.4219983,"longitude":-122.084,"accuracy":5,
"speed":0,"heading":-1,"altitude":5},"is_moving":false,"odometer":0,"event":"motionchange","battery":{"level":1,
"is_charging":false},"activity":{"type":"still"},"extras":{},
"_":"&id=48241179&lat=37.4219983&lon=-122.084&timestamp=2021-07-21T08:06:34.444Z&"},"device_id":"48241179"}"""

# By the SDK's template, which has a uuid. The Traccar server's tests have similar requests.
ANDROID = b"""{"location":{"event":"motionchange","is_moving":false,"uuid":"0e9a2473-a9a7-4c00-997b-fb97d2154e75",
"timestamp":"2021-07-21T08:06:34.444Z","odometer":0,"coords":{"latitude":-6.1148096,"longitude":106.6837015,"accuracy":3.8,
"speed":18.67,"speed_accuracy":0.26,"heading":63,"heading_accuracy":0.28,"altitude":35.7,"altitude_accuracy":3.8},
"activity":{"type":"still","confidence":100},"battery":{"is_charging":false,"level":0.79},"extras":{}},
"device_id":"8737767034"}"""

# By the SDK's template, from an iPhone that knows few values.
IPHONE = b"""{"location":{"extras":{},"coords":{"speed_accuracy":-1,"speed":-1,"longitude":-122.406417,
"ellipsoidal_altitude":0,"floor":null,"heading_accuracy":-1,"latitude":37.785834000000001,"accuracy":5,"altitude_accuracy":-1,
"altitude":0,"heading":-1},"is_moving":false,"age":188,"odometer":0,"uuid":"2FB04C65-99CF-42AB-8DD3-EBCB4B108BF8",
"event":"motionchange","battery":{"level":-1,"is_charging":false},"activity":{"type":"unknown","confidence":100},
"timestamp":"2021-07-21T08:06:34.444Z"},"device_id":"658765"}"""


def reports(body: bytes) -> list[Said]:
    return phones.said_by(phones.parse_traccar(body, RECEIVED_MS), (), "location.coords")


def changed(**changes: Any) -> bytes:
    """Returns a valid request with values changed by path, such as location__coords__latitude; None removes a value."""
    request = json.loads(ANDROID)
    for path, value in changes.items():
        *parents, last = path.split("__")
        inside = request
        for parent in parents:
            inside = inside[parent]
        if value is None:
            del inside[last]
        else:
            inside[last] = value
    return json.dumps(request).encode()


def refusal(body: bytes) -> tuple[str, str]:
    try:
        (report,) = reports(body)
    except InvalidField as error:
        return error.field, error.reason
    assert isinstance(report, InvalidField), report
    return report.field, report.reason


def test_requests_of_the_app_are_read() -> None:
    uuid = "0e9a2473-a9a7-4c00-997b-fb97d2154e75"
    assert phones.parse_traccar(ANDROID, RECEIVED_MS).device_id == "8737767034"
    assert reports(ANDROID) == [Position("8737767034", uuid, AT_MS, -61_148_096, 1_066_837_015, 3_800)]
    uuid = "2FB04C65-99CF-42AB-8DD3-EBCB4B108BF8"
    assert reports(IPHONE) == [Position("658765", uuid, AT_MS, 377_858_340, -1_224_064_170, 5_000)]
    (fix,) = reports(TEMPLATE)
    assert isinstance(fix, Position) and fix.report_id.startswith("traccar-")
    assert fix == Position("48241179", fix.report_id, AT_MS, 374_219_983, -1_220_840_000, 5_000)


@pytest.mark.parametrize("value", [0, 0.0, None])
def test_a_missing_accuracy_is_fifty_metres(value: float | None) -> None:
    (fix,) = reports(changed(location__coords__accuracy=value))
    assert isinstance(fix, Position) and fix.accuracy_mm == 50_000


@pytest.mark.parametrize(
    ("body", "field", "reason"),
    [
        (changed(location__coords__latitude=91), "location.coords.latitude", "must be from -90 to 90"),
        (changed(location__coords__latitude="37"), "location.coords.latitude", "must be a number"),
        (changed(location__coords__latitude=True), "location.coords.latitude", "must be a number"),
        (changed(location__coords__latitude=10**400), "location.coords.latitude", "must be from -90 to 90"),
        (changed(location__coords__latitude=None), "location.coords.latitude", "is missing"),
        (changed(location__coords__longitude=-181), "location.coords.longitude", "must be from -180 to 180"),
        (changed(location__coords__accuracy=-1), "location.coords.accuracy", "must be from 0 to 100000"),
        (changed(location__coords=[]), "location.coords", "must be an object"),
        (changed(location__coords=None), "location.coords", "is missing"),
        (changed(location__timestamp=None), "location.timestamp", "is missing"),
        (changed(location__timestamp=1626854794), "location.timestamp", "must be text"),
        (changed(location__timestamp="2021-07-21T08:06:34"), "location.timestamp", "must be ISO 8601"),
        (changed(location__timestamp="0001-01-01T00:00:00+14:00"), "location.timestamp", "must be between the years"),
        (changed(location=None), "location", "is missing"),
        (changed(location=[]), "location", "must be an object"),
        (changed(device_id=None), "device_id", "is missing"),
        (changed(device_id=8737767034), "device_id", "must be text"),
        (changed(device_id="a b"), "device_id", "must be 1 to 64"),
        (changed(device_id="\ud800"), "device_id", "must be 1 to 64"),
        (ANDROID.replace(b"18.67", b"NaN"), "", "isn't JSON, which has no NaN"),
        (ANDROID.replace(b"18.67", b"-Infinity"), "", "isn't JSON, which has no -Infinity"),
        (ANDROID.replace(b"18.67", b"1" * 5_000), "", "isn't JSON"),
        (ANDROID.replace(b'"speed"', b'"latitude"'), "", "has a name twice in one object"),
        (ANDROID.replace(b"still", b"\xff"), "", "isn't text in UTF-8"),
        (ANDROID[:-1], "", "isn't JSON"),
        (b"[" * 60_000, "", "isn't JSON"),
        (b"", "", "isn't JSON"),
        (b"null", "", "is missing"),
        (b"[]", "", "must be an object"),
    ],
)
def test_a_missing_or_mistyped_value_is_refused_by_its_path(body: bytes, field: str, reason: str) -> None:
    actual_field, actual_reason = refusal(body)
    assert actual_field == field and actual_reason.startswith(reason), (actual_field, actual_reason)


@pytest.mark.parametrize("uuid", [None, "", "no id.", "x" * 41, 7])
def test_without_a_usable_uuid_the_id_is_a_hash_of_the_content(uuid: object) -> None:
    body = changed(location__uuid=uuid)
    (first,) = reports(body)
    (repeated,) = reports(body)
    (other,) = reports(body.replace(b"18.67", b"18.68"))
    assert isinstance(first, Position) and first == repeated
    assert isinstance(other, Position) and other.report_id != first.report_id


@pytest.mark.parametrize("timestamp", [None, ""])
def test_without_a_uuid_and_a_timestamp_each_press_of_the_button_counts(timestamp: str | None) -> None:
    body = changed(location__uuid=None, location__timestamp=timestamp, location__coords=None, location__alarm="sos")
    (first,), (second,) = (phones.parse_traccar(body, at_ms).said for at_ms in (RECEIVED_MS, RECEIVED_MS + 1))
    assert isinstance(first, EquipmentEvent) and isinstance(second, EquipmentEvent)
    assert first.report_id != second.report_id


@pytest.mark.parametrize(
    ("changes", "time_ms"),
    [
        ({"location__alarm": "sos"}, AT_MS),
        ({"location__extras": {"alarm": "sos"}}, AT_MS),
        ({"location__alarm": "sos", "location__extras": {"alarm": "overspeed"}}, AT_MS),
        ({"location__alarm": "sos", "location__coords": None}, AT_MS),
        ({"location__alarm": "sos", "location__coords": 7}, AT_MS),
        ({"location__alarm": "sos", "location__timestamp": None}, RECEIVED_MS),
        ({"location__alarm": "sos", "location__timestamp": "2100-01-01T00:00:00Z"}, RECEIVED_MS),
    ],
)
def test_a_panic_is_never_lost_for_another_error_in_its_request(changes: dict[str, Any], time_ms: int) -> None:
    uuid = "0e9a2473-a9a7-4c00-997b-fb97d2154e75"
    panics = [report for report in reports(changed(**changes)) if isinstance(report, EquipmentEvent)]
    assert panics == [EquipmentEvent("8737767034", f"{uuid}-sos", log_pb2.PANIC_BUTTON, time_ms)]


@pytest.mark.parametrize(
    ("changes", "silent"),
    [
        ({}, False),
        ({"location__silent": True}, True),
        ({"location__extras": {"silent": "true"}}, True),
        ({"location__silent": False}, False),
        ({"location__silent": {"a": 1}}, True),
    ],
)
def test_a_panic_says_whether_it_was_called_in_silence(changes: dict[str, Any], silent: bool) -> None:
    said = reports(changed(location__alarm="sos", **changes))
    assert [event.silent for event in said if isinstance(event, EquipmentEvent)] == [silent]


@pytest.mark.parametrize("alarm", ["overspeed", "", 7, {}])
def test_an_unknown_alarm_is_refused_and_its_position_accepted(alarm: object) -> None:
    fix, refused = reports(changed(location__alarm=alarm))
    assert isinstance(fix, Position) and isinstance(refused, InvalidField)
    assert refused.field == "location.alarm"
