"""Maps of an incident: what they draw of a protected place."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from services.court.report import maps
from tandem.common.v1 import geometry_pb2
from tests.support.registry import records

OUTLINE = ((37.50, 127.00), (37.50, 127.01), (37.51, 127.01), (37.51, 127.00))
COURTYARD = ((37.504, 127.004), (37.504, 127.006), (37.506, 127.006))
PLANE = maps._Plane(lat_deg=37.5, lon_deg=127.0, middle=maps._Point(0.0, 0.0), m_per_point=5.0)


def drawn(place: geometry_pb2.Place) -> ET.Element:
    return ET.fromstring(maps._shape(place, PLANE, margin_m=0.0, style='fill="#2e7d32"'))  # noqa: S314  # our own


def test_a_hole_of_a_place_stays_empty() -> None:
    area = drawn(records.polygon(*OUTLINE, holes=[COURTYARD]))
    assert area.tag == "path" and area.get("fill-rule") == "evenodd"
    lines = [line.split() for line in area.get("d", "").replace("Z", "").split("M") if line.strip()]
    assert [len(line) for line in lines] == [len(OUTLINE), len(COURTYARD)]
    assert drawn(records.polygon(*OUTLINE)).get("points", "").split() == lines[0]
