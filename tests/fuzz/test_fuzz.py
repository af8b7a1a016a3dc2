"""Fuzz tests of ingest's endpoints: any input is accepted within bounds or refused with InvalidField.

`make fuzz` runs them for minutes, `make test` briefly.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import quote_plus, urlencode

import pytest
from google.protobuf.message import DecodeError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.common import fields, times
from services.common.errors import InvalidField
from services.ingest import translate
from services.ingest.domain import MAX_REPORTED_ACCURACY_M, ContactReport, Position, UnitPresence
from services.ingest.endpoints import phones
from services.ingest.endpoints.phones import Said
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
"""Duration for all targets together, seconds. If 0, the default, each target gets one round of a hundred examples."""
RECEIVED_MS = 1_800_000_000_000


def check(said: Said) -> None:
    """Asserts that a parsed report is within bounds, or that a refusal has a reason."""
    if isinstance(said, InvalidField):
        assert said.reason
        return
    fields.required_id("device_id", said.device_id)
    fields.required_id("report_id", said.report_id)
    if isinstance(said, Position):
        assert -900_000_000 <= said.lat_e7 <= 900_000_000 and -1_800_000_000 <= said.lon_e7 <= 1_800_000_000
        assert 1 <= said.accuracy_mm <= MAX_REPORTED_ACCURACY_M * 1_000
        assert times.MIN_MS <= said.fix_time_ms <= times.MAX_MS
        numbers: tuple[int, ...] = (said.lat_e7, said.lon_e7, said.accuracy_mm, said.fix_time_ms)
    elif isinstance(said, UnitPresence):
        assert times.MIN_MS <= said.since_ms <= said.seen_ms <= times.MAX_MS
        numbers = (said.since_ms, said.seen_ms)
    elif isinstance(said, ContactReport):
        numbers = ()
    else:
        assert said.event in log_pb2.EquipmentKind.values() and said.event
        assert times.MIN_MS <= said.event_time_ms <= times.MAX_MS
        numbers = (said.event, said.event_time_ms)
    assert all(type(number) is int for number in numbers)


def check_all(said: Sequence[Said]) -> None:
    assert said
    for report in said:
        check(report)


# ── inputs ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

ODD_NUMBERS = st.sampled_from(
    [
        "0",
        "-0",
        "90",
        "-90.0000000001",
        "180",
        "1e9",
        "1e-9",
        "1e999",
        "nan",
        "inf",
        "+1",
        "1_0",
        "0x1",
        "١",
        " 1",
        "1 ",
    ]
)
ODD_TIMES = st.sampled_from(
    [
        "0",
        "1377177267",
        "99999999999",
        "100000000000",
        "253402300799999",
        "253402300800000",
        "9999999999999999",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "2016-01-27T18:55:47Z",
        "2016-01-27T18:55:47.999999999Z",
        "2016-W04-3",
        "20160127T185547Z",
        "2014-06-04 09:10:11",
        "2014-13-04 09:10:11",
        "24:00",
    ]
)
ALARM_NAMES = st.lists(st.sampled_from(["sos", "lowBattery", "removing", "overspeed", "", "SOS"]), max_size=20).map(
    ",".join
)
TEXTS = ODD_NUMBERS | ODD_TIMES | ALARM_NAMES | st.text(max_size=20) | st.floats().map(repr) | st.integers().map(str)
IDS = st.sampled_from(["phone", "a.b", "a..b", "*", "", "x" * 65]) | st.text(max_size=10)
NAMES = st.sampled_from(
    ["lat", "lon", "location", "timestamp", "accuracy", "hdop", "alarm", "valid", "id", "deviceid", "cell"]
)
PAIRS = st.lists(st.tuples(NAMES | st.text(max_size=5), TEXTS), max_size=12)
NEARLY_SOUND = st.fixed_dictionaries(
    {"id": st.just("phone"), "lat": st.just("37.5") | TEXTS, "lon": st.just("127.0") | TEXTS},
    optional={
        "timestamp": ODD_TIMES | TEXTS,
        "accuracy": st.just("5") | TEXTS,
        "hdop": TEXTS,
        "alarm": ALARM_NAMES,
        "valid": st.sampled_from(["true", "1", "false", ""]),
    },
)
QUERIES = (
    PAIRS.map(lambda pairs: urlencode(pairs, errors="replace"))
    | NEARLY_SOUND.map(lambda given: urlencode(given, errors="replace"))
    | st.text(max_size=200)
    | st.binary(max_size=100).map(lambda raw: f"id=phone&lat={quote_plus(raw)}&lon=1")
)

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
NUMBERS = st.floats() | st.integers() | st.floats(-200, 200) | st.just(10**400)
COORDS = st.fixed_dictionaries(
    {"latitude": st.just(37.5) | NUMBERS | ANY_JSON, "longitude": st.just(127) | NUMBERS | ANY_JSON},
    optional={"accuracy": st.just(5) | NUMBERS | ANY_JSON, "speed": NUMBERS | ANY_JSON},
)
LOCATION = st.fixed_dictionaries(
    {},
    optional={
        "timestamp": st.just("2016-01-27T18:55:47Z") | ODD_TIMES | ANY_JSON,
        "coords": COORDS | ANY_JSON,
        "alarm": ALARM_NAMES | ANY_JSON,
        "uuid": IDS | ANY_JSON,
        "extras": st.dictionaries(st.just("alarm"), ALARM_NAMES | ANY_JSON) | ANY_JSON,
    },
)
REQUEST = (
    st.fixed_dictionaries({"device_id": st.just("phone"), "location": LOCATION})
    | st.fixed_dictionaries({"device_id": IDS, "location": LOCATION | ANY_JSON})
    | ANY_JSON
)


@st.composite
def mangled(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Valid bytes with some of them removed, doubled or replaced."""
    raw = bytearray(draw(whole))
    for _ in range(draw(st.integers(0, 4))):
        if raw:
            at = draw(st.integers(0, len(raw) - 1))
            raw[at : at + draw(st.integers(0, 3))] = draw(st.binary(max_size=3))
    return bytes(raw)


BODIES = REQUEST.map(lambda request: json.dumps(request).encode())
RAW_BODIES = BODIES | mangled(BODIES) | st.binary(max_size=100)

WIRE_TIMES = st.builds(
    lambda seconds, nanos: {"seconds": seconds, "nanos": nanos},
    st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 253_402_300_800),
    st.integers(-(2**31), 2**31 - 1) | st.integers(0, 999_999_999),
)
WIRE_NUMBERS = st.floats() | st.floats(-200, 400)
WIRE_IDS = IDS.filter(lambda text: text.encode(errors="replace").decode() == text)
POSITIONS = st.builds(
    ingest_pb2.Position,
    device_id=WIRE_IDS | st.just("d"),
    report_id=WIRE_IDS | st.just("r"),
    fix_time=st.none() | WIRE_TIMES,
    lat_deg=WIRE_NUMBERS | st.floats(-90, 90),
    lon_deg=WIRE_NUMBERS | st.floats(-180, 180),
    accuracy_m=WIRE_NUMBERS | st.floats(0, 100_000),
    speed_mps=st.none() | WIRE_NUMBERS,
    course_deg=st.none() | WIRE_NUMBERS,
    battery_pct=st.none() | WIRE_NUMBERS,
)
EVENTS = st.builds(
    ingest_pb2.EquipmentEvent,
    device_id=WIRE_IDS,
    report_id=WIRE_IDS,
    event=st.integers(-(2**31), 2**31 - 1) | st.integers(0, 20),
    event_time=st.none() | WIRE_TIMES,
)
REQUESTS = st.builds(
    ingest_pb2.ReportRequest, positions=st.lists(POSITIONS, max_size=3), equipment=st.lists(EVENTS, max_size=2)
).map(lambda request: request.SerializeToString())
FRAMES = REQUESTS | mangled(REQUESTS) | st.binary(max_size=100)


# ── the targets ──────────────────────────────────────────────────────────────────────────────────────────────────────


def query(text: str) -> None:
    try:
        said = phones.said_by(phones.parse_osmand(phones.osmand_parameters(text), RECEIVED_MS), ("unit",), "lat")
    except InvalidField:
        return
    check_all(said)


def body(raw: bytes) -> None:
    try:
        said = phones.said_by(phones.parse_traccar(raw, RECEIVED_MS), ("unit",), "location.coords")
    except InvalidField:
        return
    check_all(said)


def one_by_one(msgs: Sequence[Any], parse: Callable[[Any], Said]) -> list[Said]:
    parsed: list[Said] = []
    for msg in msgs:
        try:
            parsed.append(parse(msg))
        except InvalidField as error:
            parsed.append(error)
        check(parsed[-1])
    return parsed


def frame(raw: bytes) -> None:
    """Parses a gRPC batch, and asserts that parsing it as a whole equals parsing its reports one by one."""
    try:
        request = ingest_pb2.ReportRequest.FromString(raw)
    except DecodeError:
        return
    one_by_one(request.equipment, translate.parse_equipment)
    one_by_one(request.presences, translate.parse_presence)
    single = one_by_one(request.positions, translate.parse_position)
    if not request.positions:
        return
    together = translate.read_positions(request.positions)
    for i, report in enumerate(single):
        # The batch parser doesn't check device ids, because the later lookup of the route does.
        if together is not None and not (isinstance(report, InvalidField) and report.field == "device_id"):
            assert together.row(i) == report


TARGETS: dict[str, tuple[Callable[[Any], None], st.SearchStrategy[Any]]] = {
    "query": (query, QUERIES),
    "body": (body, RAW_BODIES),
    "frame": (frame, FRAMES),
}


@pytest.mark.parametrize("name", TARGETS)
def test_any_input_is_accepted_within_bounds_or_refused(name: str) -> None:
    target, strategy = TARGETS[name]

    @settings(max_examples=2_000 if SECONDS else 100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run_round(example: Any) -> None:
        target(example)

    until_s = time.monotonic() + SECONDS / len(TARGETS)
    rounds = 0
    while not rounds or time.monotonic() < until_s:
        run_round()
        rounds += 1
    print(f"{name}: {rounds} rounds")
