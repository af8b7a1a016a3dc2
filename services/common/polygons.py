"""Whether closed lines enclose an area: the registry refuses what doesn't, and the fold sets it aside. Pure and exact.

Corners are pairs of whole numbers, here longitude and latitude in 1e-7 degrees, so that no test hangs on rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common.rpc.errors import InvalidField

Corner = tuple[int, int]
"""East and north, 1e-7 degrees."""

CORNERS_MAX = 200
"""Of the outline and all holes of one area together: each report near it is measured against every side."""
HALF_ROUND_E7 = 1_800_000_000


def check(field: str, outline: Sequence[Corner], holes: Sequence[Sequence[Corner]]) -> None:
    """Raises InvalidField where they are no area with holes: each a simple line, no two of which cross or touch, the holes inside
    the outline and none within another."""
    lines = [(f"{field}.vertices", field, outline)]
    lines += [(f"{field}.holes[{n}].vertices", f"{field}.holes[{n}]", hole) for n, hole in enumerate(holes)]
    for vertices, _, corners in lines:
        if len(corners) < 3:
            raise InvalidField(vertices, "must hold at least 3")
    if len(outline) > CORNERS_MAX:
        raise InvalidField(f"{field}.vertices", f"must hold at most {CORNERS_MAX}")
    if sum(len(corners) for _, _, corners in lines) > CORNERS_MAX:
        raise InvalidField(
            f"{field}.holes", f"must leave at most {CORNERS_MAX} corners in all, those of the outline included"
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
    """Whether a point that isn't on the line lies inside of it."""
    east, north = point
    inside = False
    for n, (east1, north1) in enumerate(corners):
        east0, north0 = corners[n - 1]
        if (north0 > north) != (north1 > north):
            # On which side of this side the point lies, without a division.
            across = (east1 - east0) * (north - north0) - (east - east0) * (north1 - north0)
            if (across > 0) == (north1 > north0):
                inside = not inside
    return inside


def _sides(corners: Sequence[Corner]) -> list[tuple[Corner, Corner]]:
    return [(corners[n - 1], corner) for n, corner in enumerate(corners)]


def _meets(one: Sequence[Corner], other: Sequence[Corner]) -> bool:
    """Whether two closed lines have a point in common."""
    return any(_meet(*side, *another) for side in _sides(one) for another in _sides(other))


def _crosses_itself(corners: Sequence[Corner]) -> bool:
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


def _meet(a: Corner, b: Corner, c: Corner, d: Corner) -> bool:
    """Whether the segments ab and cd have a point in common."""
    for axis in (0, 1):
        if max(a[axis], b[axis]) < min(c[axis], d[axis]) or max(c[axis], d[axis]) < min(a[axis], b[axis]):
            return False
    # Their boxes overlap: they meet where neither lies wholly on one side of the other.
    return _turn(a, b, c) * _turn(a, b, d) <= 0 and _turn(c, d, a) * _turn(c, d, b) <= 0


def _turn(a: Corner, b: Corner, c: Corner) -> int:
    """Sign of the turn from ab to ac: 1 left, -1 right, 0 straight."""
    cross = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
    return (cross > 0) - (cross < 0)
