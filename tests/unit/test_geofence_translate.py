"""Entries that no evaluator could use are refused where they are read, never in the middle of a decision."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from services.common.errors import InvalidField
from services.geofence import translate
from tandem.common.v1 import geometry_pb2, log_pb2
from tests.support import log


def _ring(case: log_pb2.CaseSnapshot) -> None:
    case.rings[0].radius_m = math.inf


def _place(case: log_pb2.CaseSnapshot) -> None:
    case.places.add(place_id="x", circle=geometry_pb2.Circle(lat_deg=math.nan, lon_deg=0))


def _polygon(case: log_pb2.CaseSnapshot) -> None:
    case.places.add(place_id="x", polygon=geometry_pb2.Polygon())


def _twice(case: log_pb2.CaseSnapshot) -> None:
    case.persons.append(case.persons[0])


def _same_ring(case: log_pb2.CaseSnapshot) -> None:
    case.rings.append(case.rings[0])


def _no_action(case: log_pb2.CaseSnapshot) -> None:
    case.rings[0].action = geometry_pb2.DEMAND_UNSPECIFIED


@pytest.mark.parametrize("spoil", [_ring, _place, _polygon, _twice, _same_ring, _no_action])
def test_a_case_that_cannot_be_used_is_refused(spoil: Callable[[log_pb2.CaseSnapshot], None]) -> None:
    entry = log.case_entry()
    translate.entry_body(entry.SerializeToString())
    spoil(entry.case)
    with pytest.raises(InvalidField):
        translate.entry_body(entry.SerializeToString())


@pytest.mark.parametrize("data", [b"", b"\xff\xff", b"\x12\x02\x0a\x00"])
def test_bytes_that_are_no_entry_are_refused(data: bytes) -> None:
    with pytest.raises(InvalidField):
        translate.entry_body(data)
