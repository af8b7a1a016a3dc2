"""Unusable log entries are rejected when they are parsed, never in the middle of a decision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from services.common.errors import InvalidField
from services.geofence import translate
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support.geofence import log

Corners = tuple[tuple[float, float], ...]
SQUARE: Corners = ((37, 127), (37, 128), (38, 128), (38, 127))


def _ring(case: log_pb2.CaseSnapshot) -> None:
    case.rings[0].radius_m = math.inf


def _place(case: log_pb2.CaseSnapshot) -> None:
    case.places.add(place_id="x", circle=geometry_pb2.Circle(lat_deg=math.nan, lon_deg=0))


def _polygon(case: log_pb2.CaseSnapshot) -> None:
    case.places.add(place_id="x", polygon=geometry_pb2.Polygon())


def _area(case: log_pb2.CaseSnapshot, outline: Corners, *holes: Corners) -> None:
    lines = [[geometry_pb2.Point(lat_deg=lat, lon_deg=lon) for lat, lon in line] for line in (outline, *holes)]
    area = geometry_pb2.Polygon(vertices=lines[0], holes=[geometry_pb2.Hole(vertices=line) for line in lines[1:]])
    case.places.add(place_id="x", polygon=area)


def _crossing(case: log_pb2.CaseSnapshot) -> None:
    _area(case, (SQUARE[0], SQUARE[2], SQUARE[1], SQUARE[3]))


def _hole_outside(case: log_pb2.CaseSnapshot) -> None:
    _area(case, SQUARE, tuple((lat + 1, lon) for lat, lon in SQUARE))


def _hole_of_two_corners(case: log_pb2.CaseSnapshot) -> None:
    _area(case, SQUARE, ((37.2, 127.2), (37.3, 127.3)))


def _antimeridian(case: log_pb2.CaseSnapshot) -> None:
    _area(case, ((0, 179.9), (0, -179.9), (1, 179.9)))


def _corners_without_end(case: log_pb2.CaseSnapshot) -> None:
    _area(case, tuple((37 + n / 1000, 127 + n * n / 1e6) for n in range(201)))


def _hole_at_no_place(case: log_pb2.CaseSnapshot) -> None:
    _area(case, SQUARE, ((37.2, 127.2), (37.3, math.inf), (37.3, 127.2)))


def _twice(case: log_pb2.CaseSnapshot) -> None:
    case.persons.append(case.persons[0])


def _same_ring(case: log_pb2.CaseSnapshot) -> None:
    case.rings.append(case.rings[0])


def _no_action(case: log_pb2.CaseSnapshot) -> None:
    case.rings[0].action = geometry_pb2.DEMAND_UNSPECIFIED


OF_AREAS = [
    _crossing,
    _hole_outside,
    _hole_of_two_corners,
    _antimeridian,
    _corners_without_end,
    _hole_at_no_place,
]


@pytest.mark.parametrize("spoil", [_ring, _place, _polygon, *OF_AREAS, _twice, _same_ring, _no_action])
def test_an_unusable_case_is_rejected(spoil: Callable[[log_pb2.CaseSnapshot], None]) -> None:
    entry = log.case_entry()
    translate.entry_body(entry.SerializeToString())
    spoil(entry.case)
    with pytest.raises(InvalidField):
        translate.entry_body(entry.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\x12\x02\x0a\x00"])
def test_bytes_that_are_no_entry_are_rejected(data: bytes) -> None:
    with pytest.raises(InvalidField):
        translate.entry_body(data)
