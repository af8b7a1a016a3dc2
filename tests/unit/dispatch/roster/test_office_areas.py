"""Areas of offices: parsing keeps the whole area, and refuses areas with too many corners or too few."""

from __future__ import annotations

import pytest

from services.common.errors import InvalidField
from services.common.geometry import LatLon, Polygon
from services.dispatch.leg import roster
from tandem.common.v1 import geometry_pb2
from tests.support.dispatch import roster_records


def square(half_deg: float) -> list[geometry_pb2.Point]:
    """Corners of a square round 37.5 N, 127 E."""
    corners = [(-half_deg, -half_deg), (-half_deg, half_deg), (half_deg, half_deg), (half_deg, -half_deg)]
    return [geometry_pb2.Point(lat_deg=37.5 + north, lon_deg=127.0 + east) for north, east in corners]


def test_an_area_keeps_its_holes_and_a_stored_office_too() -> None:
    polygon = geometry_pb2.Polygon(vertices=square(0.2), holes=[geometry_pb2.Hole(vertices=square(0.1))])
    office = roster.parse_office(roster_records.office(polygon=polygon))
    for parsed in (office, roster.stored_office(roster.office_payload(office))):
        assert isinstance(parsed.area, Polygon)
        assert not parsed.area.contains(LatLon(37.5, 127.0)), "another office has the middle"
        assert parsed.area.contains(LatLon(37.65, 127.0))


@pytest.mark.parametrize(
    ("polygon", "field"),
    [
        (geometry_pb2.Polygon(vertices=square(0.2)[:2]), "polygon.vertices"),
        (
            geometry_pb2.Polygon(vertices=square(0.2), holes=[geometry_pb2.Hole(vertices=square(0.1)[:2])]),
            "polygon.holes[0].vertices",
        ),
        (
            geometry_pb2.Polygon(vertices=square(0.2), holes=[geometry_pb2.Hole(vertices=square(0.1))] * 21),
            "polygon.holes",
        ),
        (geometry_pb2.Polygon(vertices=square(0.2) * 250, holes=[geometry_pb2.Hole(vertices=square(0.1))]), "polygon"),
    ],
)
def test_an_area_with_too_few_or_too_many_corners_is_refused(polygon: geometry_pb2.Polygon, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        roster.parse_office(roster_records.office(polygon=polygon))
    assert refused.value.field == field
