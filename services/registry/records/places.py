"""Translation of places between messages and domain, with validation of circles and polygons. Errors as in translate.py.

A place must lie in the service area, so that a mistyped coordinate doesn't enforce an order in the sea.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import assert_never

from services.common import fields, geometry
from services.common.errors import InvalidField
from services.common.geometry import Circle, LatLon, Polygon
from services.registry.domain.records import Order, Place
from tandem.common.v1 import geometry_pb2


@dataclass(frozen=True, slots=True)
class ServiceArea:
    """A box of latitudes and longitudes (WGS84), including the edges."""

    name: str
    least_lat_deg: float
    greatest_lat_deg: float
    least_lon_deg: float
    greatest_lon_deg: float

    def holds(self, lat_deg: float, lon_deg: float) -> bool:
        """Whether a point lies in the area."""
        return (
            self.least_lat_deg <= lat_deg <= self.greatest_lat_deg
            and self.least_lon_deg <= lon_deg <= self.greatest_lon_deg
        )


AREAS: Mapping[str, ServiceArea] = {
    # From Marado to the northern border, from Baengnyeongdo to Dokdo.
    "korea": ServiceArea(
        name="Korea", least_lat_deg=33.0, greatest_lat_deg=38.7, least_lon_deg=124.5, greatest_lon_deg=132.0
    ),
    "world": ServiceArea(
        name="the world", least_lat_deg=-90.0, greatest_lat_deg=90.0, least_lon_deg=-180.0, greatest_lon_deg=180.0
    ),
}
"""Service areas by their value in the setting TANDEM_SERVICE_AREA."""


RADIUS_MAX_M = 20_000.0
HOLES_MAX = 20
M_PER_DEG = 111_320.0
"""Metres per degree of latitude, accurate to 0.5 %."""


def parse_places(field: str, messages: Sequence[geometry_pb2.Place], greatest: int) -> tuple[Place, ...]:
    """Parse at most `greatest` places with distinct ids. Raises InvalidField."""
    fields.at_most(field, messages, greatest)
    places = tuple(_parse_place(f"{field}[{n}]", message) for n, message in enumerate(messages))
    all_different(field + "[{}].place_id", [place.place_id for place in places])
    return places


def check_area(order: Order, area: ServiceArea) -> None:
    """Check that all places of an order lie in the service area. Raises InvalidField."""
    _check_area("places", order.places, area)
    for n, encounter in enumerate(order.encounters):
        _check_area(f"encounters[{n}].places", encounter.places, area)


def _check_area(field: str, places: Sequence[Place], area: ServiceArea) -> None:
    for n, place in enumerate(places):
        for path, point in _marks(place.shape):
            if not area.holds(point.lat_deg, point.lon_deg):
                raise InvalidField(
                    f"{field}[{n}].{path}", f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)"
                )


def _marks(shape: Circle | Polygon) -> Iterator[tuple[str, Circle | LatLon]]:
    """The points of a shape that must lie in the service area, each with its path in the shape's message."""
    match shape:
        case Circle():
            yield "circle", shape
        case Polygon():
            for v, vertex in enumerate(shape.vertices):
                yield f"polygon.vertices[{v}]", vertex
        case _:
            assert_never(shape)


def _parse_place(field: str, msg: geometry_pb2.Place) -> Place:
    place_id = fields.required_id(f"{field}.place_id", msg.place_id)
    if msg.HasField("circle"):
        inside = f"{field}.circle"
        return Place(
            place_id,
            Circle(
                fields.number(f"{inside}.lat_deg", msg.circle.lat_deg, -90, greatest=90),
                fields.number(f"{inside}.lon_deg", msg.circle.lon_deg, -180, greatest=180),
                fields.number(f"{inside}.radius_m", msg.circle.radius_m, 0, greatest=RADIUS_MAX_M),
            ),
            msg.named_to_respondent,
        )
    if msg.HasField("polygon"):
        return Place(place_id, _polygon(f"{field}.polygon", msg.polygon), msg.named_to_respondent)
    raise InvalidField(field, "needs a circle or a polygon")


def _polygon(field: str, msg: geometry_pb2.Polygon) -> Polygon:
    # Counts are checked first, so that rejecting an oversized polygon is cheap.
    fields.at_most(f"{field}.vertices", msg.vertices, geometry.MAX_CORNERS)
    fields.at_most(f"{field}.holes", msg.holes, HOLES_MAX)
    for n, hole in enumerate(msg.holes):
        fields.at_most(f"{field}.holes[{n}].vertices", hole.vertices, geometry.MAX_CORNERS)
    vertices = _points(f"{field}.vertices", msg.vertices)
    holes = tuple(_points(f"{field}.holes[{n}].vertices", hole.vertices) for n, hole in enumerate(msg.holes))
    geometry.check_polygon(field, _corners(vertices), [_corners(hole) for hole in holes])
    _check_size(field, vertices)
    return Polygon(vertices, holes)


def _points(field: str, messages: Sequence[geometry_pb2.Point]) -> tuple[LatLon, ...]:
    return tuple(
        LatLon(
            fields.number(f"{field}[{n}].lat_deg", vertex.lat_deg, -90, greatest=90),
            fields.number(f"{field}[{n}].lon_deg", vertex.lon_deg, -180, greatest=180),
        )
        for n, vertex in enumerate(messages)
    )


def _corners(points: Sequence[LatLon]) -> list[geometry.Corner]:
    return [(round(point.lat_deg * 1e7), round(point.lon_deg * 1e7)) for point in points]


def _check_size(field: str, vertices: Sequence[LatLon]) -> None:
    """Check the size of a polygon: evaluators measure in a plane at its middle, exact to 0.1 m up to 20 km (docs/adr/0024)."""
    middle_lat_deg = sum(vertex.lat_deg for vertex in vertices) / len(vertices)
    middle_lon_deg = sum(vertex.lon_deg for vertex in vertices) / len(vertices)
    m_per_lon_deg = M_PER_DEG * math.cos(math.radians(middle_lat_deg))
    away_m = [
        math.hypot((vertex.lat_deg - middle_lat_deg) * M_PER_DEG, (vertex.lon_deg - middle_lon_deg) * m_per_lon_deg)
        for vertex in vertices
    ]
    if max(away_m) > RADIUS_MAX_M:
        farthest = away_m.index(max(away_m))
        raise InvalidField(f"{field}.vertices[{farthest}]", "lies more than 20 km from the middle of the vertices")


def all_different(field: str, values: Sequence[object]) -> None:
    """Check that all values differ. Raises InvalidField; `{}` in `field` becomes the index of the repeated value."""
    seen: set[object] = set()
    for n, value in enumerate(values):
        if value in seen:
            raise InvalidField(field.format(n), "is given twice")
        seen.add(value)


def place_to_proto(place: Place) -> geometry_pb2.Place:
    """A protected place as a message."""
    named = place.named_to_respondent
    match place.shape:
        case Circle() as shape:
            circle = geometry_pb2.Circle(lat_deg=shape.lat_deg, lon_deg=shape.lon_deg, radius_m=shape.radius_m)
            return geometry_pb2.Place(place_id=place.place_id, circle=circle, named_to_respondent=named)
        case Polygon() as shape:
            polygon = geometry_pb2.Polygon(
                vertices=_points_to_proto(shape.vertices),
                holes=[geometry_pb2.Hole(vertices=_points_to_proto(hole)) for hole in shape.holes],
            )
            return geometry_pb2.Place(place_id=place.place_id, polygon=polygon, named_to_respondent=named)
        case _:
            assert_never(place.shape)


def _points_to_proto(points: Sequence[LatLon]) -> list[geometry_pb2.Point]:
    return [geometry_pb2.Point(lat_deg=point.lat_deg, lon_deg=point.lon_deg) for point in points]
