"""Polygon validation: whether an outline and its holes enclose an area. Pure and exact.

The registry rejects invalid polygons, and the fold ignores them. Corners are integer pairs (longitude and latitude in 1e-7 degrees), so
that no test depends on rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.rpc.errors import InvalidField

Corner = tuple[int, int]
"""A polygon's corner: east (longitude) and north (latitude), 1e-7 degrees."""

MAX_CORNERS = 200
"""Maximum number of corners of an area, its outline and holes together. Each report near the area is measured against every side."""
HALF_ROUND_E7 = 1_800_000_000
"""Half of the way round the Earth in longitude, 1e-7 degrees."""


def check(field: str, outline: Sequence[Corner], holes: Sequence[Sequence[Corner]]) -> None:
    """Checks that an outline and its holes form a valid polygon. Raises InvalidField with the path below `field`.

    Each of them must be a simple closed line, and no two may cross or touch. Each hole lies inside the outline and outside the other
    holes.
    """
    lines = [(f"{field}.vertices", field, outline)]
    lines += [(f"{field}.holes[{n}].vertices", f"{field}.holes[{n}]", hole) for n, hole in enumerate(holes)]
    for vertices, _, corners in lines:
        if len(corners) < 3:
            raise InvalidField(vertices, "must hold at least 3")
    if len(outline) > MAX_CORNERS:
        raise InvalidField(f"{field}.vertices", f"must hold at most {MAX_CORNERS}")
    if sum(len(corners) for _, _, corners in lines) > MAX_CORNERS:
        raise InvalidField(
            f"{field}.holes", f"must leave at most {MAX_CORNERS} corners in all, those of the outline included"
        )
    for _, line, corners in lines:
        easts = [east for east, _ in corners]
        if max(easts) - min(easts) > HALF_ROUND_E7:
            raise InvalidField(line, "must not cross the 180th meridian")
    for vertices, line, corners in lines:
        for n, corner in enumerate(corners):
            if corner == corners[n - 1]:
                raise InvalidField(f"{vertices}[{n or len(corners) - 1}]", "repeats its neighbour")
        if _crosses_itself(corners):
            raise InvalidField(line, "its sides must not cross or touch")
    for n, (_, line, hole) in enumerate(lines[1:]):
        if _meets(hole, outline) or not contains(outline, hole[0]):
            raise InvalidField(line, "must lie inside the outline, without touching it")
        for other in holes[:n]:
            if _meets(hole, other) or contains(other, hole[0]) or contains(hole, other[0]):
                raise InvalidField(line, "must lie apart from the other holes")


def contains(corners: Sequence[Corner], point: Corner) -> bool:
    """Whether a point lies inside a polygon. The point must not lie on the polygon's boundary."""
    east, north = point
    inside = False
    for n, (east1, north1) in enumerate(corners):
        east0, north0 = corners[n - 1]
        if (north0 > north) != (north1 > north):
            # The sign of the cross product says on which side the point lies. A division would round.
            across = (east1 - east0) * (north - north0) - (east - east0) * (north1 - north0)
            if (across > 0) == (north1 > north0):
                inside = not inside
    return inside


def _sides(corners: Sequence[Corner]) -> list[tuple[Corner, Corner]]:
    return [(corners[n - 1], corner) for n, corner in enumerate(corners)]


def _meets(ring: Sequence[Corner], other: Sequence[Corner]) -> bool:
    """Whether two closed lines have a point in common."""
    return any(_meet(side, another) for side in _sides(ring) for another in _sides(other))


def _crosses_itself(corners: Sequence[Corner]) -> bool:
    """Whether two sides of a closed line share more than the corner between them."""
    count = len(corners)
    sides = [(corners[n], corners[(n + 1) % count]) for n in range(count)]
    for n, (a, b) in enumerate(sides):
        c = corners[(n + 2) % count]
        # A next side that runs back over this side shares more than their corner with it.
        if _turn(a, b, c) == 0 and (c[0] - b[0]) * (b[0] - a[0]) + (c[1] - b[1]) * (b[1] - a[1]) < 0:
            return True
        last = count - 1 if n == 0 else count  # the first and the last side are neighbours, so they share a corner
        if any(_meet((a, b), sides[other]) for other in range(n + 2, last)):
            return True
    return False


def _meet(ab: tuple[Corner, Corner], cd: tuple[Corner, Corner]) -> bool:
    """Whether two segments have a point in common."""
    (a, b), (c, d) = ab, cd
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]) or max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    # With overlapping bounding boxes, two segments meet unless one lies wholly on one side of the other.
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: Corner, b: Corner, c: Corner) -> int:
    """Direction of the turn from ab to ac: 1 left, -1 right, 0 straight."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (cross > 0) - (cross < 0)
