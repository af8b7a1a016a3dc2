"""Maps of an incident as SVG: tracks, rings and protected places from the evidence alone, without a background map.

Distances are true to scale in a plane that touches the Earth at the first position: over 20 km it is wrong by less than a
thousandth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from services.court.report.facts import DecidedAlert, ReportedPosition, ReportFacts
from services.court.report.words import Words, clock_time, metres
from tandem.common.v1 import geometry_pb2

WIDTH, HEIGHT = 680, 420
"""Size of a map, in points of the SVG."""
MARGIN = 36
LEGEND_WIDTH, LEGEND_HEIGHT = 110, 62
"""Upper left corner that the legend takes, in points. Labels stay out of it."""
WIDE_POINTS, NARROW_POINTS = 11.0, 6.5
"""Width of a letter of a label, in points: a Korean letter, and any other."""
BEFORE_MS, AFTER_MS = 600_000, 120_000
"""Tracks are drawn from this time before the incident until this time after it, milliseconds."""
LONG_GAP_MS = 180_000
"""Positions that are farther apart in time, milliseconds, aren't joined by a line: a position of this age is unknown."""
MIN_SPAN_M = 200.0
_M_PER_DEG = math.pi * 6_371_008.8 / 180
_WEARER = "#b3261e"
_PROTECTED = "#1a5fb4"
_PLACE = "#2e7d32"
_RING = "#8a5a00"
_SCALES_M = (10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000)


class Map(NamedTuple):
    """A map with its caption."""

    caption: str
    svg: str


class _Point(NamedTuple):
    """A position in the plane: metres east and north of its origin."""

    east_m: float
    north_m: float


@dataclass(frozen=True, slots=True)
class _Plane:
    """The plane of a map: its origin on the Earth, and the rectangle that is shown."""

    lat_deg: float
    lon_deg: float
    middle: _Point
    m_per_point: float

    def at(self, lat_deg: float, lon_deg: float) -> tuple[float, float]:
        """Place on the map, in points from the upper left corner."""
        point = _flat((self.lat_deg, self.lon_deg), (lat_deg, lon_deg))
        x = WIDTH / 2 + (point.east_m - self.middle.east_m) / self.m_per_point
        y = HEIGHT / 2 - (point.north_m - self.middle.north_m) / self.m_per_point
        return x, y


def maps(facts: ReportFacts, words: Words) -> list[Map]:
    """The whole incident, and the moment of the first decision to respond; no map without positions."""
    tracks = _tracks(facts)
    found = []
    if any(fixes for _, fixes in tracks):
        overview = words.text("사건 전체", "The whole incident")
        found.append(Map(overview, _drawn(facts, words, tracks, at=facts.decisive, near=False)))
        if facts.decisive is not None:
            moment = clock_time(facts.decisive.decided_ms)
            caption = words.text(f"출동 판단 시각 {moment}", f"When the response was decided, {moment}")
            found.append(Map(caption, _drawn(facts, words, tracks, at=facts.decisive, near=True)))
    return found


def _tracks(facts: ReportFacts) -> list[tuple[str, list[ReportedPosition]]]:
    """Colour and positions of each device round the incident."""
    from_ms, until_ms = facts.began_ms - BEFORE_MS, facts.last_ms + AFTER_MS
    return [
        (
            _WEARER if device.of_wearer else _PROTECTED,
            [fix for fix in device.fixes if from_ms <= fix.time_ms <= until_ms],
        )
        for device in facts.devices
    ]


def _drawn(
    facts: ReportFacts,
    words: Words,
    tracks: Sequence[tuple[str, Sequence[ReportedPosition]]],
    *,
    at: DecidedAlert | None,
    near: bool,
) -> str:
    newest = [(colour, fix) for colour, fixes in tracks if (fix := _newest(fixes, at))]
    shown = [fix for _, fixes in tracks for fix in fixes]
    ring_m = max((ring.radius_m for case in facts.cases for ring in case.rings), default=0.0)
    if near and at is not None and newest:
        shown = [fix for _, fix in newest]
        ring_m = at.alert.ring_m
    plane = _plane(shown, ring_m if near else 0.0)
    parts = [
        *_background(),
        *_places(facts, plane, rings=near),
        *(part for colour, fix in newest if near and colour == _PROTECTED for part in _rings(facts, plane, fix, at=at)),
        *(part for colour, fixes in tracks for part in _track(fixes, plane, colour)),
        *(part for colour, fix in newest for part in _newest_fix(fix, plane, colour, words=words)),
        *_scale(plane),
        *_legend(facts, words),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="NanumSquare" font-size="11">{"".join(parts)}</svg>'
    )


def _newest(fixes: Sequence[ReportedPosition], at: DecidedAlert | None) -> ReportedPosition | None:
    """The newest position that was known when an alert was decided; without an alert, the last one."""
    known = [fix for fix in fixes if at is None or fix.arrived_ms <= at.decided_ms]
    return known[-1] if known else None


def _plane(fixes: Sequence[ReportedPosition], around_m: float) -> _Plane:
    lat_deg, lon_deg = fixes[0].lat_deg, fixes[0].lon_deg
    points = [_flat((lat_deg, lon_deg), (fix.lat_deg, fix.lon_deg)) for fix in fixes]
    east, north = [point.east_m for point in points], [point.north_m for point in points]
    width_m = max(max(east) - min(east), 2.4 * around_m, MIN_SPAN_M)
    height_m = max(max(north) - min(north), 2.4 * around_m, MIN_SPAN_M * HEIGHT / WIDTH)
    return _Plane(
        lat_deg=lat_deg,
        lon_deg=lon_deg,
        middle=_Point((min(east) + max(east)) / 2, (min(north) + max(north)) / 2),
        m_per_point=max(width_m / (WIDTH - 2 * MARGIN), height_m / (HEIGHT - 2 * MARGIN)),
    )


def _flat(origin_deg: tuple[float, float], to_deg: tuple[float, float]) -> _Point:
    """A position in the plane that touches the Earth at the origin. Both are latitude and longitude, degrees."""
    (lat_deg, lon_deg), (to_lat_deg, to_lon_deg) = origin_deg, to_deg
    east = (to_lon_deg - lon_deg + 180) % 360 - 180
    return _Point(east * _M_PER_DEG * math.cos(math.radians(lat_deg)), (to_lat_deg - lat_deg) * _M_PER_DEG)


def _background() -> Iterator[str]:
    yield f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{HEIGHT - 1}" fill="#f7f7f4" stroke="#777777"/>'
    yield f'<path d="M{WIDTH - 20} 14 l-6 18 l6 -5 l6 5 z" fill="#333333"/>'
    yield f'<text x="{WIDTH - 24}" y="46" fill="#333333">N</text>'


def _places(facts: ReportFacts, plane: _Plane, rings: bool) -> Iterator[str]:
    for case in facts.cases:
        for place in case.places:
            if rings:
                for ring in _within(case.rings, plane):
                    yield _shape(place, plane, margin_m=ring.radius_m, style=f'stroke="{_RING}" fill="none"')
            yield _shape(place, plane, margin_m=0.0, style=f'stroke="{_PLACE}" fill="{_PLACE}" fill-opacity="0.25"')
            x, y = _middle(place, plane)
            yield _label(x - 6, y - 8, place.place_id, colour=_PLACE, anchor="end")


def _shape(place: geometry_pb2.Place, plane: _Plane, *, margin_m: float, style: str) -> str:
    """A place, or the line at a margin round it. Round a polygon, the band within the margin is drawn."""
    if place.WhichOneof("shape") == "circle":
        x, y = plane.at(place.circle.lat_deg, place.circle.lon_deg)
        radius = (place.circle.radius_m + margin_m) / plane.m_per_point
        return f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" stroke-dasharray="5 4" {style}/>'
    line = _line(place.polygon.vertices, plane)
    if margin_m:
        width = 2 * margin_m / plane.m_per_point
        return (
            f'<polygon points="{line}" fill="{_RING}" fill-opacity="0.06" stroke="{_RING}" stroke-opacity="0.06" '
            f'stroke-width="{width:.2f}" stroke-linejoin="round"/>'
        )
    if place.polygon.holes:
        lines = (line, *(_line(hole.vertices, plane) for hole in place.polygon.holes))
        return f'<path d="{" ".join(f"M{line} Z" for line in lines)}" fill-rule="evenodd" {style}/>'
    return f'<polygon points="{line}" {style}/>'


def _line(vertices: Iterable[geometry_pb2.Point], plane: _Plane) -> str:
    """Corners on the map, in the order of SVG: x and y of each."""
    return " ".join(f"{x:.2f},{y:.2f}" for x, y in (plane.at(vertex.lat_deg, vertex.lon_deg) for vertex in vertices))


def _middle(place: geometry_pb2.Place, plane: _Plane) -> tuple[float, float]:
    if place.WhichOneof("shape") == "circle":
        return plane.at(place.circle.lat_deg, place.circle.lon_deg)
    corners = [plane.at(vertex.lat_deg, vertex.lon_deg) for vertex in place.polygon.vertices] or [(0.0, 0.0)]
    return sum(x for x, _ in corners) / len(corners), sum(y for _, y in corners) / len(corners)


def _rings(facts: ReportFacts, plane: _Plane, fix: ReportedPosition, *, at: DecidedAlert | None) -> Iterator[str]:
    """The rings of the order round the protected person, where she was when the alert was decided."""
    x, y = plane.at(fix.lat_deg, fix.lon_deg)
    for case in facts.cases:
        if at is None or case.order_id != at.alert.order_id:
            continue
        for ring in _within(case.rings, plane):
            radius = ring.radius_m / plane.m_per_point
            line = f'stroke="{_RING}" fill="none" stroke-dasharray="5 4"'
            yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" {line}/>'
            yield _label(x + 4, y - radius - 3, metres(ring.radius_m), colour=_RING)


def _within(rings: Iterable[geometry_pb2.Ring], plane: _Plane) -> Iterator[geometry_pb2.Ring]:
    """The rings whose lines cross the map."""
    return (ring for ring in rings if ring.radius_m / plane.m_per_point < WIDTH / 2)


def _track(fixes: Sequence[ReportedPosition], plane: _Plane, colour: str) -> Iterator[str]:
    for joined in _without_gaps(fixes):
        line = " ".join(f"{x:.2f},{y:.2f}" for x, y in (plane.at(fix.lat_deg, fix.lon_deg) for fix in joined))
        yield f'<polyline points="{line}" stroke="{colour}" fill="none" stroke-width="1.2"/>'
    for fix in fixes:
        x, y = plane.at(fix.lat_deg, fix.lon_deg)
        yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="1.8" fill="{colour}"/>'


def _without_gaps(fixes: Sequence[ReportedPosition]) -> Iterator[Sequence[ReportedPosition]]:
    """The stretches of at least two positions between which no gap is longer than LONG_GAP_MS."""
    start = 0
    for end in range(1, len(fixes) + 1):
        if end == len(fixes) or fixes[end].time_ms - fixes[end - 1].time_ms > LONG_GAP_MS:
            if end - start > 1:
                yield fixes[start:end]
            start = end


def _newest_fix(fix: ReportedPosition, plane: _Plane, colour: str, *, words: Words) -> Iterator[str]:
    x, y = plane.at(fix.lat_deg, fix.lon_deg)
    radius = max(fix.accuracy_m / plane.m_per_point, 3.0)
    yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="{radius:.2f}" fill="{colour}" fill-opacity="0.2" stroke="{colour}"/>'
    yield f'<circle cx="{x:.2f}" cy="{y:.2f}" r="3.5" fill="{colour}"/>'
    below = 16 if colour == _PROTECTED else -6
    yield _label(x + 7, y + below, f"{words(_OWNERS[colour])} {clock_time(fix.time_ms)[:8]}", colour=colour)


_OWNERS = {_WEARER: "wearer", _PROTECTED: "protected"}


def _label(x: float, y: float, text: str, *, colour: str, anchor: str = "start") -> str:
    """A label within the map, beside the legend, the north arrow and the scale. Its anchor is the start of the text, or the end."""
    width = sum(WIDE_POINTS if "\u3130" <= letter <= "\ud7a3" else NARROW_POINTS for letter in text)
    left = min(max(x if anchor == "start" else x - width, 4), WIDTH - MARGIN - width)
    top = LEGEND_HEIGHT if left < LEGEND_WIDTH else 12
    at_y = min(max(y, top), HEIGHT - 30)
    at_x = left if anchor == "start" else left + width
    return f'<text x="{at_x:.2f}" y="{at_y:.2f}" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _scale(plane: _Plane) -> Iterator[str]:
    length_m = max((length for length in _SCALES_M if length / plane.m_per_point <= WIDTH / 4), default=_SCALES_M[0])
    width, y = length_m / plane.m_per_point, HEIGHT - 14
    yield f'<path d="M12 {y - 4} V{y} H{12 + width:.2f} V{y - 4}" stroke="#333333" fill="none"/>'
    yield f'<text x="{16 + width:.2f}" y="{y}" fill="#333333">{metres(length_m)}</text>'


def _legend(facts: ReportFacts, words: Words) -> Iterator[str]:
    owners = [(_WEARER, "wearer"), (_PROTECTED, "protected")]
    shown = [
        (colour, name)
        for colour, name in owners
        if any(_colour(device.of_wearer) == colour for device in facts.devices)
    ]
    if any(case.places for case in facts.cases):
        shown.append((_PLACE, "place"))
    for number, (colour, name) in enumerate(shown):
        y = 18 + 15 * number
        yield f'<rect x="10" y="{y - 8}" width="9" height="9" fill="{colour}"/>'
        yield f'<text x="24" y="{y}" fill="#333333">{words(name)}</text>'


def _colour(of_wearer: bool) -> str:
    return _WEARER if of_wearer else _PROTECTED
