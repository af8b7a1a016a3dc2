"""The way out by road: from where she is in a direction that leads away from him, by the agency's own OSRM route service."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from services.common import fields
from services.common.observability.telemetry import logger
from services.common.rpc.errors import InvalidField
from services.field.guard import PhoneCall, PhoneGuard, text_of

DIRECTIONS = ("north", "north_east", "east", "south_east", "south", "south_west", "west", "north_west")
DISTANCE_M = 1_000.0
"""Distance of the way's end from her as the crow flies, metres: about a quarter of an hour on foot."""
WITHIN_S = 3.0
"""Maximum time of a request to the router, seconds. Without an answer the app shows the direction alone."""
MAX_POINTS = 200
MAX_LAT_DEG = 85.0
_M_PER_DEGREE = 111_195.0


class WayPoint(NamedTuple):
    """A point of a way, degrees on WGS84."""

    lat_deg: float
    lon_deg: float


class WayWish(NamedTuple):
    """A way that a phone asks for: from its place in a direction."""

    place: WayPoint
    direction: str

    @property
    def end(self) -> WayPoint:
        """The point that is DISTANCE_M away in the direction."""
        turn = math.radians(45 * DIRECTIONS.index(self.direction))
        per_degree = _M_PER_DEGREE * math.cos(math.radians(self.place.lat_deg))
        return WayPoint(
            self.place.lat_deg + DISTANCE_M * math.cos(turn) / _M_PER_DEGREE,
            self.place.lon_deg + DISTANCE_M * math.sin(turn) / per_degree,
        )


def parse(content: Any) -> WayWish:
    """Parses a phone's wish. Raises InvalidField."""
    direction = text_of(content, "direction")
    if direction not in DIRECTIONS:
        raise InvalidField("direction", f"must be one of {', '.join(DIRECTIONS)}")
    lat_deg = _degrees(content, "lat", MAX_LAT_DEG)
    return WayWish(WayPoint(lat_deg, _degrees(content, "lon", 180.0)), direction)


def _degrees(content: Any, name: str, greatest: float) -> float:
    value = content.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise InvalidField(name, "must be a number of degrees (example: 37.56)")
    return float(fields.number(name, value, -greatest, greatest=greatest))


def way_of(answer: Any) -> list[WayPoint]:
    """The points of the first route in an answer of the router, at most MAX_POINTS. Raises ValueError if it has none."""
    try:
        pairs = answer["routes"][0]["geometry"]["coordinates"] if answer["code"] == "Ok" else []
        points = [WayPoint(float(lat_deg), float(lon_deg)) for lon_deg, lat_deg in pairs[:MAX_POINTS]]
    except (KeyError, IndexError, TypeError):
        raise ValueError("routes: the answer has no route with coordinates") from None
    if len(points) < 2 or not all(map(_is_on_earth, points)):
        raise ValueError("routes: the way isn't at least two places on the earth")
    return points


def _is_on_earth(point: WayPoint) -> bool:
    return abs(point.lat_deg) <= 90 and abs(point.lon_deg) <= 180  # false for NaN, too


class Router:
    """A service of OSRM's route protocol. It gets her place and a direction, and nothing of him."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url, self._session = url.rstrip("/"), session

    async def way(self, wish: WayWish) -> list[WayPoint]:
        """The way by road; empty if no router is set, or if it finds none in time."""
        if not self._url:
            return []
        points = ";".join(f"{point.lon_deg:.6f},{point.lat_deg:.6f}" for point in (wish.place, wish.end))
        url = f"{self._url}/route/v1/foot/{points}?overview=simplified&geometries=geojson"
        try:
            async with asyncio.timeout(WITHIN_S), self._session.get(url, allow_redirects=False) as answer:
                if answer.status != 200:
                    raise ValueError(f"HTTP status {answer.status}, expected 200")
                return way_of(await answer.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            logger().warning("way_out_failed", reason=type(error).__name__)
            return []


class WayOutPages:
    """The route of the way out by road, for an enrolled phone."""

    def __init__(self, guard: PhoneGuard, router: Router) -> None:
        self._guard, self._router = guard, router

    def routes(self) -> Iterable[web.RouteDef]:
        """The route of the way out."""
        return (self._guard.post("/api/way-out", self._way_out),)

    async def _way_out(self, ask: PhoneCall) -> web.Response:
        wish = parse(ask.content)
        way = await self._router.way(wish)
        return web.json_response({"way": [{"lat": point.lat_deg, "lon": point.lon_deg} for point in way]})
