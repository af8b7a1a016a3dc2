"""Places between messages and domain: what comes out is a circle or a simple polygon, in range. Errors as in translate.py."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import fields
from services.common.errors import InvalidField
from services.registry.area import ServiceArea
from services.registry.domain import Circle, Order, Place, Point, Polygon
from tandem.common.v1 import geometry_pb2

RADIUS_MAX_M = 20_000.0
VERTICES_MAX = 200


def parse_places(field: str, messages: Sequence[geometry_pb2.Place], greatest: int) -> tuple[Place, ...]:
    """At most so many places, no two of the same id. Raises InvalidField."""
    at_most(field, messages, greatest)
    places = tuple(_parse_place(f"{field}[{n}]", message) for n, message in enumerate(messages))
    all_different(field + "[{}].place_id", [place.place_id for place in places])
    return places


def check_area(order: Order, area: ServiceArea) -> None:
    """Refuses places outside of the service area: raises InvalidField."""
    _check_area("places", order.places, area)
    for n, encounter in enumerate(order.encounters):
        _check_area(f"encounters[{n}].places", encounter.places, area)


def _check_area(field: str, places: Sequence[Place], area: ServiceArea) -> None:
    for n, place in enumerate(places):
        shape = place.shape
        if isinstance(shape, Circle):
            if not area.holds(shape.lat_deg, shape.lon_deg):
                raise InvalidField(
                    f"{field}[{n}].circle", f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)"
                )
            continue
        for v, vertex in enumerate(shape.vertices):
            if not area.holds(vertex.lat_deg, vertex.lon_deg):
                raise InvalidField(
                    f"{field}[{n}].polygon.vertices[{v}]",
                    f"lies outside {area.name}, the service area (TANDEM_SERVICE_AREA)",
                )


def _parse_place(field: str, msg: geometry_pb2.Place) -> Place:
    place_id = fields.required_id(f"{field}.place_id", msg.place_id)
    if msg.HasField("circle"):
        inside = f"{field}.circle"
        return Place(
            place_id,
            Circle(
                fields.number(f"{inside}.lat_deg", msg.circle.lat_deg, -90, 90),
                fields.number(f"{inside}.lon_deg", msg.circle.lon_deg, -180, 180),
                fields.number(f"{inside}.radius_m", msg.circle.radius_m, 0, RADIUS_MAX_M),
            ),
        )
    if msg.HasField("polygon"):
        return Place(place_id, _polygon(f"{field}.polygon", msg.polygon))
    raise InvalidField(field, "needs a circle or a polygon")


def _polygon(field: str, msg: geometry_pb2.Polygon) -> Polygon:
    count = len(msg.vertices)
    if count < 3:
        raise InvalidField(f"{field}.vertices", "must hold at least 3")
    at_most(f"{field}.vertices", msg.vertices, VERTICES_MAX)
    vertices = tuple(
        Point(
            fields.number(f"{field}.vertices[{n}].lat_deg", vertex.lat_deg, -90, 90),
            fields.number(f"{field}.vertices[{n}].lon_deg", vertex.lon_deg, -180, 180),
        )
        for n, vertex in enumerate(msg.vertices)
    )
    longitudes = [vertex.lon_deg for vertex in vertices]
    if max(longitudes) - min(longitudes) > 180:
        raise InvalidField(field, "must not cross the 180th meridian")
    # In units of 1e-7 degrees, so that the tests below are exact.
    corners = [(round(vertex.lon_deg * 1e7), round(vertex.lat_deg * 1e7)) for vertex in vertices]
    for n, corner in enumerate(corners):
        if corner == corners[n - 1]:
            where = n if n else count - 1
            raise InvalidField(f"{field}.vertices[{where}]", "repeats its neighbour")
    if _crosses_itself(corners):
        raise InvalidField(field, "its sides must not cross or touch")
    return Polygon(vertices)


_Corner = tuple[int, int]


def _crosses_itself(corners: Sequence[_Corner]) -> bool:
    """Whether two sides of the closed line share more than the corner between them."""
    count = len(corners)
    sides = [(corners[n], corners[(n + 1) % count]) for n in range(count)]
    for n, (a, b) in enumerate(sides):
        c = corners[(n + 2) % count]
        # The next side runs back over this one.
        if _turn(a, b, c) == 0 and (c[0] - b[0]) * (b[0] - a[0]) + (c[1] - b[1]) * (b[1] - a[1]) < 0:
            return True
        last = count - 1 if n == 0 else count  # the first side and the last are neighbours
        if any(_meet(a, b, *sides[other]) for other in range(n + 2, last)):
            return True
    return False


def _meet(a: _Corner, b: _Corner, c: _Corner, d: _Corner) -> bool:
    """Whether the segments ab and cd have a point in common."""
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]) or max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    # Their boxes overlap: they meet where neither lies wholly on one side of the other.
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: _Corner, b: _Corner, c: _Corner) -> int:
    """Sign of the turn from ab to ac: 1 left, -1 right, 0 straight."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (cross > 0) - (cross < 0)


def at_most(field: str, values: Sequence[object], greatest: int) -> None:
    """Raises InvalidField where there are more than that."""
    if len(values) > greatest:
        raise InvalidField(field, f"must hold at most {greatest}")


def all_different(field: str, values: Sequence[object]) -> None:
    """Raises InvalidField where a value is there twice; `field` has a place for its number."""
    seen: set[object] = set()
    for n, value in enumerate(values):
        if value in seen:
            raise InvalidField(field.format(n), "is given twice")
        seen.add(value)


def place_to_proto(place: Place) -> geometry_pb2.Place:
    """A protected place."""
    shape = place.shape
    if isinstance(shape, Circle):
        circle = geometry_pb2.Circle(lat_deg=shape.lat_deg, lon_deg=shape.lon_deg, radius_m=shape.radius_m)
        return geometry_pb2.Place(place_id=place.place_id, circle=circle)
    vertices = [geometry_pb2.Point(lat_deg=vertex.lat_deg, lon_deg=vertex.lon_deg) for vertex in shape.vertices]
    return geometry_pb2.Place(place_id=place.place_id, polygon=geometry_pb2.Polygon(vertices=vertices))
