"""Parsing of the agencies' records: valid ones are normalised, others are rejected with the field's path, never its content."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from datetime import date

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from services.common import geometry
from services.common.errors import InvalidField
from services.common.geometry import Circle, Polygon
from services.registry.domain.records import Action, OrderRing
from services.registry.records import places, translate
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records

RingMessage = geometry_pb2.Ring
WARN = geometry_pb2.WARN
NOTIFY = geometry_pb2.NOTIFY
RESPOND = geometry_pb2.RESPOND


def test_a_parsed_wearer_is_normalised() -> None:
    wearer = translate.parse_wearer(records.wearer())
    assert wearer.national_id == "8001011234567"
    assert wearer.birth_date == date(1980, 1, 1)
    assert translate.parse_wearer(records.wearer(national_id="8001011234567")) == wearer


def test_an_order_is_parsed_completely() -> None:
    message = records.order()
    message.places.append(records.polygon((37.0, 127.0), (37.0, 127.1), (37.1, 127.1)))
    message.rings.extend([RingMessage(radius_m=600, action=NOTIFY), RingMessage(radius_m=100, action=RESPOND)])
    order = translate.parse_order(message)
    assert order.rings == (OrderRing(600, Action.NOTIFY), OrderRing(100, Action.RESPOND))
    assert order.places[0].shape == Circle(37.5, 127.0, 50.0)
    assert isinstance(order.places[1].shape, Polygon)
    assert (order.valid_from_ms, order.valid_until_ms) == (1_600_000_000_000, 4_000_000_000_000)


def test_personal_data_does_not_show_in_a_printed_record() -> None:
    order = translate.parse_order(records.order())
    text = repr(order) + repr(translate.parse_wearer(records.wearer())) + repr(translate.parse_device(records.device()))
    for secret in (records.NAME, "8001011234567", "1980"):
        assert secret not in text


@pytest.mark.parametrize(
    "number",
    [
        "80010-11234567",
        "800101-123456",
        "800101--1234567",
        "800101 1234567",
        "80010112345678",
        "８００１０１１２３４５６７",
        "800101-123456x",
        "800101-1234567\n",
    ],
)
def test_a_malformed_number_is_rejected_and_not_repeated(number: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        translate.parse_wearer(records.wearer(national_id=number))
    assert refusal.value.field == "national_id"
    assert number not in str(refusal.value)
    message = records.order(national_id=number)
    with pytest.raises(InvalidField) as refusal:
        translate.parse_order(message)
    assert refusal.value.field == "respondent.national_id"


@pytest.mark.parametrize(
    "text", ["", "1980-02-30", "1981-13-01", "19800101", "1980-W01-1", "1899-12-31", "2101-01-01", "1980-1-1", "x"]
)
def test_an_impossible_birth_date_is_rejected(text: str) -> None:
    message = records.wearer()
    message.birth_date = text
    with pytest.raises(InvalidField) as refusal:
        translate.parse_wearer(message)
    assert refusal.value.field == "birth_date"


@pytest.mark.parametrize(
    "name", ["", "   ", "a" * 201, "a" * 10_000_000, "a\x00b", "a\nb", "a\x1b[2J", "a\u2028b", "a\x85"]
)
def test_an_unusable_name_is_rejected_and_not_repeated(name: str) -> None:
    message = records.person()
    message.name = name
    with pytest.raises(InvalidField) as refusal:
        translate.parse_protected_person(message)
    assert refusal.value.field == "name"
    assert len(str(refusal.value)) < 100


def test_a_lone_surrogate_never_becomes_a_name() -> None:
    # Protobuf rejects a lone surrogate, but the check doesn't rely on protobuf.
    with pytest.raises((UnicodeEncodeError, ValueError)):
        registry_pb2.Wearer(name="a\ud800b")
    with pytest.raises(InvalidField):
        translate._name("name", "a\ud800b")


def test_a_name_of_the_maximum_length_is_accepted() -> None:
    message = records.person()
    message.name = "가" * 200
    assert translate.parse_protected_person(message).name == "가" * 200


def test_a_version_below_zero_is_rejected() -> None:
    with pytest.raises(InvalidField) as refusal:
        translate.parse_device(records.device(version=-1))
    assert refusal.value.field == "source_version"


def _no_respondent(order: registry_pb2.Order) -> None:
    order.ClearField("respondent")


def _nobody(order: registry_pb2.Order) -> None:
    order.ClearField("protected_person_ids")
    order.ClearField("places")


def _ends_before_it_starts(order: registry_pb2.Order) -> None:
    order.valid_until.CopyFrom(order.valid_from)


def _no_start(order: registry_pb2.Order) -> None:
    order.ClearField("valid_from")


def _start_out_of_range(order: registry_pb2.Order) -> None:
    order.valid_from.CopyFrom(Timestamp(seconds=-(1 << 62)))


def _nanos_out_of_range(order: registry_pb2.Order) -> None:
    order.valid_until.CopyFrom(Timestamp(seconds=4_000_000_000, nanos=-5))


def _person_twice(order: registry_pb2.Order) -> None:
    order.protected_person_ids.append("p-1")


def _place_twice(order: registry_pb2.Order) -> None:
    order.places.append(records.circle())


def _place_without_shape(order: registry_pb2.Order) -> None:
    order.places.append(geometry_pb2.Place(place_id="x"))


def _radius_too_large(order: registry_pb2.Order) -> None:
    order.places[0].circle.radius_m = 20_000.1


def _radius_below_zero(order: registry_pb2.Order) -> None:
    order.places[0].circle.radius_m = -1


def _latitude_out_of_range(order: registry_pb2.Order) -> None:
    order.places[0].circle.lat_deg = 90.1


def _longitude_not_a_number(order: registry_pb2.Order) -> None:
    order.places[0].circle.lon_deg = math.nan


def _vertex_out_of_range(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (0, 1), (-91, 1)))


def _too_few_vertices(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (0, 1)))


def _too_many_vertices(order: registry_pb2.Order) -> None:
    corners = [(math.sin(n / 40), math.cos(n / 40)) for n in range(geometry.MAX_CORNERS + 1)]
    order.places.append(records.polygon(*corners))


def _bow_tie(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (1, 1), (1, 0), (0, 1)))


def _first_repeated_at_the_end(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (0, 1), (1, 1), (0, 0)))


def _spike(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (0, 2), (0, 1)))


def _touches_itself(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 0), (0, 4), (2, 4), (0, 2), (2, 0)))


def _round_the_world(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((0, 179), (0, -179), (1, 180)))


SQUARE = ((37.0, 127.0), (37.0, 127.01), (37.01, 127.01), (37.01, 127.0))
YARD = ((37.002, 127.002), (37.002, 127.008), (37.008, 127.008), (37.008, 127.002))


def _with_holes(*holes: tuple[tuple[float, float], ...]) -> Callable[[registry_pb2.Order], None]:
    def spoil(order: registry_pb2.Order) -> None:
        order.places.append(records.polygon(*SQUARE, holes=holes))

    return spoil


def _moved(north_deg: float, size: float = 1.0) -> tuple[tuple[float, float], ...]:
    return tuple((37.005 + (lat - 37.005) * size + north_deg, 127.005 + (lon - 127.005) * size) for lat, lon in YARD)


def _too_large(order: registry_pb2.Order) -> None:
    order.places.append(records.polygon((37.0, 127.0), (37.0, 127.01), (37.3, 127.0)))


def _ring_of_nothing(order: registry_pb2.Order) -> None:
    order.rings.append(RingMessage(radius_m=0, action=WARN))


def _ring_too_large(order: registry_pb2.Order) -> None:
    order.rings.extend([RingMessage(radius_m=20_000, action=WARN), RingMessage(radius_m=20_001, action=WARN)])


def _ring_infinite(order: registry_pb2.Order) -> None:
    order.rings.append(RingMessage(radius_m=math.inf, action=WARN))


def _ring_without_action(order: registry_pb2.Order) -> None:
    order.rings.append(RingMessage(radius_m=10))


def _ring_that_only_records(order: registry_pb2.Order) -> None:
    order.rings.append(RingMessage(radius_m=10, action=geometry_pb2.RECORD))


def _ring_of_an_unknown_action(order: registry_pb2.Order) -> None:
    order.rings.append(RingMessage(radius_m=10, action=99))  # type: ignore[arg-type]


def _ring_twice(order: registry_pb2.Order) -> None:
    order.rings.extend([RingMessage(radius_m=100, action=WARN), RingMessage(radius_m=100.0001, action=RESPOND)])


def _too_many_places(order: registry_pb2.Order) -> None:
    order.places.extend(records.circle(f"x{n}") for n in range(translate.PLACES_MAX))


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (_no_respondent, "respondent"),
        (_nobody, "protected_person_ids"),
        (_ends_before_it_starts, "valid_until"),
        (_no_start, "valid_from"),
        (_start_out_of_range, "valid_from"),
        (_nanos_out_of_range, "valid_until"),
        (_person_twice, "protected_person_ids[1]"),
        (_place_twice, "places[1].place_id"),
        (_place_without_shape, "places[1]"),
        (_too_many_places, "places"),
        (_radius_too_large, "places[0].circle.radius_m"),
        (_radius_below_zero, "places[0].circle.radius_m"),
        (_latitude_out_of_range, "places[0].circle.lat_deg"),
        (_longitude_not_a_number, "places[0].circle.lon_deg"),
        (_vertex_out_of_range, "places[1].polygon.vertices[2].lat_deg"),
        (_too_few_vertices, "places[1].polygon.vertices"),
        (_too_many_vertices, "places[1].polygon.vertices"),
        (_bow_tie, "places[1].polygon"),
        (_first_repeated_at_the_end, "places[1].polygon.vertices[3]"),
        (_spike, "places[1].polygon"),
        (_touches_itself, "places[1].polygon"),
        (_round_the_world, "places[1].polygon"),
        (_too_large, "places[1].polygon.vertices[2]"),
        (_with_holes(YARD, YARD[:2]), "places[1].polygon.holes[1].vertices"),
        (_with_holes(YARD, (YARD[0], YARD[2], YARD[1], YARD[3])), "places[1].polygon.holes[1]"),
        (
            _with_holes(((37.002, 127.002), (91, 127.0), (37.0, 127.0))),
            "places[1].polygon.holes[0].vertices[1].lat_deg",
        ),
        (_with_holes((*YARD, YARD[0])), "places[1].polygon.holes[0].vertices[4]"),
        (_with_holes(_moved(0.02)), "places[1].polygon.holes[0]"),
        (_with_holes(_moved(0.005)), "places[1].polygon.holes[0]"),
        (_with_holes(_moved(0.002)), "places[1].polygon.holes[0]"),
        (_with_holes(_moved(0.0, 3.0)), "places[1].polygon.holes[0]"),
        (_with_holes(YARD, _moved(0.0, 0.5)), "places[1].polygon.holes[1]"),
        (_with_holes(_moved(0.0, 0.5), YARD), "places[1].polygon.holes[1]"),
        (_with_holes(YARD, _moved(0.001)), "places[1].polygon.holes[1]"),
        (_with_holes(*[YARD] * 21), "places[1].polygon.holes"),
        (_with_holes(*[YARD[:1] * 100] * 2), "places[1].polygon.holes"),
        (_with_holes(YARD[:1] * 201), "places[1].polygon.holes[0].vertices"),
        (_ring_of_nothing, "rings[0].radius_m"),
        (_ring_too_large, "rings[1].radius_m"),
        (_ring_infinite, "rings[0].radius_m"),
        (_ring_without_action, "rings[0].action"),
        (_ring_that_only_records, "rings[0].action"),
        (_ring_of_an_unknown_action, "rings[0].action"),
        (_ring_twice, "rings[1].radius_m"),
    ],
)
def test_an_invalid_order_is_rejected_at_its_field(spoil: Callable[[registry_pb2.Order], None], field: str) -> None:
    message = records.order()
    translate.parse_order(message)
    spoil(message)
    with pytest.raises(InvalidField) as refusal:
        translate.parse_order(message)
    assert refusal.value.field == field


def test_courtyards_are_accepted_and_are_unchanged_in_the_case() -> None:
    message = records.order()
    message.places.append(records.polygon(*SQUARE, holes=(_moved(0.001, 0.3), _moved(-0.002, 0.3))))
    order = translate.parse_order(message)
    shape = order.places[1].shape
    assert isinstance(shape, Polygon)
    assert [len(hole) for hole in shape.holes] == [4, 4]
    assert places.place_to_proto(order.places[1]) == message.places[1]


def test_an_order_with_places_only_is_accepted() -> None:
    assert translate.parse_order(records.order(person_ids=())).protected_person_ids == ()


@given(st.integers(3, 30), st.floats(0.001, 0.17), st.floats(0.0, 6.28))
def test_a_star_shaped_polygon_is_accepted_and_a_swap_of_two_corners_is_rejected(
    count: int, size: float, turn: float
) -> None:
    corners = []
    for n in range(count):
        angle = turn + 2 * math.pi * n / count
        radius = size * (1 if n % 2 else 0.6)
        corners.append((37 + radius * math.sin(angle), 127 + radius * math.cos(angle)))
    message = records.order()
    message.places.append(records.polygon(*corners))
    translate.parse_order(message)
    if count >= 5:
        corners[1], corners[3] = corners[3], corners[1]
        message.places[1].CopyFrom(records.polygon(*corners))
        with pytest.raises(InvalidField, match="cross"):
            translate.parse_order(message)


def test_the_largest_order_is_parsed_within_five_seconds() -> None:
    corners = [
        (
            37 + 0.1 * math.sin(2 * math.pi * n / geometry.MAX_CORNERS),
            127 + 0.1 * math.cos(2 * math.pi * n / geometry.MAX_CORNERS),
        )
        for n in range(geometry.MAX_CORNERS)
    ]
    message = records.order(person_ids=tuple(f"p-{n}" for n in range(translate.PERSONS_MAX)))
    del message.places[:]
    message.places.extend(records.polygon(*corners, place_id=f"place-{n}") for n in range(translate.PLACES_MAX))
    before = time.process_time()
    translate.parse_order(message)
    assert time.process_time() - before < 5
    assert message.ByteSize() < 1 << 20
