"""OsmAnd protocol: documented forms are read; ambiguous and out-of-range parameters are refused by name."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.ingest.domain import EquipmentEvent, Position
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import Said
from tandem.common.v1 import log_pb2

RECEIVED_MS = 1_800_000_000_000
AT_2013_MS = 1_377_177_267_000
SOS = "id=phone&timestamp=1377177267&alarm=sos"


def reports(query: str, received_ms: int = RECEIVED_MS) -> list[Said]:
    return phones.said_by(phones.parse_osmand(phones.osmand_parameters(query), received_ms), (), "lat")


def position(query: str, received_ms: int = RECEIVED_MS) -> Position:
    (report,) = reports(query, received_ms)
    assert isinstance(report, Position), report
    return report


def refusal(query: str) -> tuple[str, str]:
    """Field and reason of the only report's error, or of the request's."""
    try:
        (report,) = reports(query)
    except InvalidField as error:
        return error.field, error.reason
    assert isinstance(report, InvalidField), report
    return report.field, report.reason


@pytest.mark.parametrize(
    ("query", "device_id", "fix_time_ms", "lat_e7", "lon_e7"),
    [
        (
            "id=902064&lat=42.06288&lon=-88.23412&timestamp=2016-01-27T18%3A55%3A47Z&hdop=6.0&altitude=224.0&speed=0.0",
            "902064",
            1_453_920_947_000,
            420_628_800,
            -882_341_200,
        ),
        (
            "id=902064&lat=42.06288&lon=-88.23412&timestamp=1442068686579&hdop=6.0&altitude=224.0&speed=0.0",
            "902064",
            1_442_068_686_579,
            420_628_800,
            -882_341_200,
        ),
        (
            "lat=49.60688&lon=6.15788&timestamp=2014-06-04+09%3A10%3A11&altitude=384.7&speed=0.0&id=353861053849681",
            "353861053849681",
            1_401_873_011_000,
            496_068_800,
            61_578_800,
        ),
        ("id=a&timestamp=4102444800&lat=60.0&lon=30.0", "a", 4_102_444_800_000, 600_000_000, 300_000_000),
        ("id=123456&timestamp=1377177267&lat=60.0&lon=30.0", "123456", AT_2013_MS, 600_000_000, 300_000_000),
        ("id=123456&timestamp=1377177267&location=60.0,30.0", "123456", AT_2013_MS, 600_000_000, 300_000_000),
        (
            "lat=60.0&lon=30.0&speed=0.0&heading=0.0&vacc=0&hacc=0&altitude=0&deviceid=123456",
            "123456",
            RECEIVED_MS,
            600_000_000,
            300_000_000,
        ),
        (
            "id=861001000719969&lat=41.666667&lon=-0.883333&altitude=350.059479&speed=0.000000&batt=87",
            "861001000719969",
            RECEIVED_MS,
            416_666_670,
            -8_833_330,
        ),
        (
            "id=123456789012345&timestamp=1504763810&lat=40.7232948571&lon=-74.0061408571&bearing=7.19889788244&speed=40"
            "&ignition=true&rpm=933&fuel=24",
            "123456789012345",
            1_504_763_810_000,
            407_232_949,
            -740_061_409,
        ),
        (
            "id=a&timestamp=2025-06-15T13:45:12.862%2B09:00&lat=-90&lon=180&valid=1&charge=true&batt=12.5&event=x",
            "a",
            1_749_962_712_862,
            -900_000_000,
            1_800_000_000,
        ),
    ],
)
def test_a_documented_request_is_read(query: str, device_id: str, fix_time_ms: int, lat_e7: int, lon_e7: int) -> None:
    fix = position(query)
    assert (fix.device_id, fix.fix_time_ms, fix.lat_e7, fix.lon_e7) == (device_id, fix_time_ms, lat_e7, lon_e7)


@pytest.mark.parametrize(
    ("given", "accuracy_mm"),
    [
        ("&accuracy=3.8", 3_800),
        ("&accuracy=0.0001", 1),
        ("", 50_000),
        ("&accuracy=0.0", 50_000),
        ("&hdop=0.9", 50_000),
        ("&hdop=30", 150_000),
        ("&accuracy=5&hdop=30", 5_000),
    ],
)
def test_a_missing_accuracy_is_at_least_fifty_metres(given: str, accuracy_mm: int) -> None:
    assert position(f"id=phone&timestamp=1377177267&lat=60&lon=30{given}").accuracy_mm == accuracy_mm


@pytest.mark.parametrize(
    ("given", "field", "reason"),
    [
        ("lat=91&lon=30", "lat", "must be from -90 to 90"),
        ("lat=nan&lon=30", "lat", "must be a decimal number"),
        ("lat=1e999&lon=30", "lat", "must be from -90 to 90"),
        ("lat=6_0&lon=30", "lat", "must be a decimal number"),
        ("lat=%EF%BC%96&lon=30", "lat", "must be a decimal number"),
        ("lat=+60&lon=30", "lat", "must be a decimal number"),
        ("lat=60&lon=inf", "lon", "must be a decimal number"),
        ("lat=60&lon=180.1", "lon", "must be from -180 to 180"),
        ("lat=60", "lon", "is missing"),
        ("lat=&lon=30", "lat", "is missing"),
        ("location=60", "location", "must be latitude,longitude"),
        ("location=60,30,1", "lon", "must be a decimal number"),
        ("location=60,30&lat=60", "location", "is there besides lat or lon"),
        ("lat=60&lon=30&accuracy=-1", "accuracy", "must be from 0 to 100000"),
        ("lat=60&lon=30&accuracy=200000", "accuracy", "must be from 0 to 100000"),
        ("lat=60&lon=30&accuracy=NaN", "accuracy", "must be a decimal number"),
        ("lat=60&lon=30&hdop=-1", "hdop", "must be from 0 to 1000"),
        ("lat=60&lon=30&valid=false", "valid", "is not true: the phone has no fix"),
        ("lat=60&lon=30&timestamp=9999999999999999", "timestamp", "must be between the years 1 and 9999"),
        ("lat=60&lon=30&timestamp=-1", "timestamp", "must be seconds"),
        ("lat=60&lon=30&timestamp=", "timestamp", "must be seconds"),
        ("lat=60&lon=30&timestamp=2014-06-04T09:10:11", "timestamp", "must be seconds"),
        ("lat=60&lon=30&timestamp=2014-02-30+09:10:11", "timestamp", "must be seconds"),
        ("timestamp=1377177267&wifi=00-14,-80&beacon=x", "lat", "is missing"),
        ("alarm=overspeed", "alarm", "is none of sos, lowBattery"),
        ("alarm=" + ",".join(f"a{i}" for i in range(17)), "alarm", "has more than 16 alarms"),
        ("lat=60&lat=61&lon=30", "lat", "is there more than once"),
        ("%C3%A9=1&%C3%A9=2", "", "is there more than once"),
        ("lat=60&lon=30&x=%FF", "", "isn't text in UTF-8"),
        ("lat=60&lon=30&x=é", "", "must be percent-encoded"),
        ("&".join(f"x{i}=1" for i in range(101)), "", "has more than 100 parameters"),
    ],
)
def test_an_out_of_range_or_ambiguous_parameter_is_refused_by_name(given: str, field: str, reason: str) -> None:
    actual_field, actual_reason = refusal(f"id=phone&{given}")
    assert actual_field == field and actual_reason.startswith(reason), (actual_field, actual_reason)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("timestamp=1377177267&lat=60.0&lon=30.0", "is missing"),
        ("id=&lat=60&lon=30", "is missing"),
        ("id=a.*&lat=60&lon=30", "must be 1 to 64"),
        ("id=a&deviceid=b&lat=60&lon=30", "isn't the same as deviceid"),
        ("", "is missing"),
    ],
)
def test_a_request_that_names_no_device_or_two_is_refused(query: str, reason: str) -> None:
    field, actual_reason = refusal(query)
    assert field == "id" and actual_reason.startswith(reason)


def test_the_same_request_is_the_same_report_and_another_is_another() -> None:
    query = "id=phone&timestamp=1377177267&lat=60&lon=30"
    first = position(query).report_id
    assert position(query, RECEIVED_MS + 60_000).report_id == first
    assert position("lon=30&lat=60&deviceid=phone&timestamp=1377177267&token=new").report_id == first
    others = [
        "id=phone&timestamp=1377177268&lat=60&lon=30",
        "id=phone&timestamp=1377177267&lat=60.0000001&lon=30",
        "id=other&timestamp=1377177267&lat=60&lon=30",
    ]
    assert len({first, *(position(other).report_id for other in others)}) == 4


def test_without_a_timestamp_the_same_content_is_a_new_report_each_time() -> None:
    query = "id=phone&lat=60&lon=30"
    first, later = position(query), position(query, RECEIVED_MS + 15_000)
    assert (first.fix_time_ms, later.fix_time_ms) == (RECEIVED_MS, RECEIVED_MS + 15_000)
    assert first.report_id != later.report_id


@pytest.mark.parametrize(
    ("query", "silent"),
    [
        (SOS, False),
        *((f"{SOS}&silent={value}", True) for value in ("true", "1", "yes", "True")),
        *((f"{SOS}&silent={value}", False) for value in ("false", "0", "", "False")),
        (f"{SOS.replace('sos', 'lowBattery')}&silent=true", False),
    ],
)
def test_a_panic_says_whether_it_was_called_in_silence_and_no_value_refuses_it(query: str, silent: bool) -> None:
    assert [event.silent for event in reports(query) if isinstance(event, EquipmentEvent)] == [silent]


def test_a_position_and_its_alarms_are_separate_reports() -> None:
    fix, panic, battery = reports(f"{SOS},lowBattery,sos&lat=60&lon=30")
    assert isinstance(fix, Position)
    assert panic == EquipmentEvent("phone", f"{fix.report_id}-sos", log_pb2.PANIC_BUTTON, AT_2013_MS)
    assert battery == EquipmentEvent("phone", f"{fix.report_id}-lowBattery", log_pb2.BATTERY_LOW, AT_2013_MS)


@pytest.mark.parametrize(
    ("query", "time_ms"),
    [
        (SOS, AT_2013_MS),
        ("id=phone&alarm=sos", RECEIVED_MS),
        ("id=phone&alarm=sos&timestamp=never", RECEIVED_MS),
        ("id=phone&alarm=sos&timestamp=2100-01-01T00:00:00Z", RECEIVED_MS),
        (f"{SOS}&lat=nan&lon=30", AT_2013_MS),
        (f"{SOS}&lat=60&lon=30&valid=0", AT_2013_MS),
        (f"{SOS},overspeed", AT_2013_MS),
    ],
)
def test_a_panic_is_never_lost_for_another_error_in_its_request(query: str, time_ms: int) -> None:
    panics = [report for report in reports(query) if isinstance(report, EquipmentEvent)]
    assert [(panic.event, panic.event_time_ms) for panic in panics] == [(log_pb2.PANIC_BUTTON, time_ms)]
