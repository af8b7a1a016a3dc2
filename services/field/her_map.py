"""Her map, while a notice is open on the screen of her app: the region where the wearer may be, and the way out by road.

The views come from the evaluators. The way out leads from where she is in a direction away from him, by the agency's own OSRM route
service.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable
from typing import Any, NamedTuple

import aiohttp
import grpc
import grpc.aio
from aiohttp import web

from services.common import fields, times
from services.common.errors import InvalidField
from services.common.geometry import METRES_PER_DEGREE
from services.common.observability.telemetry import logger
from services.field.domain import text_of
from services.field.guard import PhoneCall, PhoneGuard, Refused
from services.field.mesh import WITHIN_S, FieldMesh
from tandem.geofence.v1 import region_map_pb2

MAP_RETRY_S = 10.0
"""When the app may ask again after a region left for it a moment ago, seconds."""


class HerMapPages:
    """Her map for an enrolled phone: of the phone's own device, and of nobody else."""

    def __init__(self, guard: PhoneGuard, mesh: FieldMesh) -> None:
        self._guard, self._mesh = guard, mesh

    def routes(self) -> Iterable[web.RouteDef]:
        """The routes of the map."""
        return (self._guard.get("/api/map", self._map),)

    async def _map(self, ask: PhoneCall) -> web.Response:
        try:
            made = await read_map(self._mesh, ask.session.device_id)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                raise Refused(429, "too_often", wait_s=MAP_RETRY_S) from None
            raise
        return web.json_response(map_content(made))


MAX_CALLS = 6
"""Maximum number of calls for one map. Each goes to the next evaluator: one that is behind the log refuses, and one that doesn't fold
all partitions leaves the others to the next."""
_OUTCOMES = {
    region_map_pb2.REGION_SHOWN: "shown",
    region_map_pb2.REGION_WITHHELD: "withheld",
    region_map_pb2.REGION_UNKNOWN: "unknown",
}


class ReadMap(NamedTuple):
    """The views of a device."""

    views: tuple[region_map_pb2.RegionView, ...]
    is_whole: bool
    """Whether all partitions of the log answered. A wearer of whom a notice is open may be missing otherwise."""


async def read_map(mesh: FieldMesh, device_id: str) -> ReadMap:
    """Reads the views of a device from as many evaluators as the partitions need.

    Raises AioRpcError if the last evaluator that was asked refuses and none has answered, or if a region left for the device a moment
    ago.
    """
    views: list[region_map_pb2.RegionView] = []
    covered: set[int] = set()
    for number in range(1, MAX_CALLS + 1):
        request = region_map_pb2.ReadRegionMapRequest(device_id=device_id, covered_partitions=sorted(covered))
        try:
            answer = await mesh.region_maps.ReadRegionMap(request, metadata=mesh.to_geofence, timeout=WITHIN_S)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE and number < MAX_CALLS:
                continue
            if covered:
                break
            raise
        views += answer.views
        covered.update(answer.partitions)
        if len(covered) >= answer.partition_count:
            return ReadMap(tuple(views), is_whole=True)
    return ReadMap(tuple(views), is_whole=False)


def map_content(made: ReadMap) -> dict[str, Any]:
    """The map as the app gets it. Times are seconds from the answer on, since a phone's clock may be wrong."""
    return {"views": [_view(view) for view in made.views], "is_whole": made.is_whole}


def _view(view: region_map_pb2.RegionView) -> dict[str, Any]:
    drawn: dict[str, Any] = {"outcome": _OUTCOMES.get(view.outcome, "unknown")}
    if view.outcome != region_map_pb2.REGION_SHOWN:
        return drawn
    as_of_ms = times.from_timestamp(view.as_of)
    drawn |= {
        "circles": [
            {"lat": circle.lat_deg, "lon": circle.lon_deg, "radius_m": circle.radius_m} for circle in view.circles
        ],
        "grows_mps": view.grows_mps,
        "age_s": (as_of_ms - times.from_timestamp(view.fix_time)) / 1000,
        "unknown_in_s": (times.from_timestamp(view.unknown_from) - as_of_ms) / 1000,
    }
    if view.HasField("from_her"):
        drawn["from_her"] = {
            "least_m": view.from_her.least_m,
            "greatest_m": view.from_her.greatest_m,
            "direction": _direction(view.from_her.direction),
            "way_out": _direction(view.from_her.way_out),
        }
    return drawn


def _direction(direction: region_map_pb2.Direction.ValueType) -> str:
    return region_map_pb2.Direction.Name(direction).lower() if direction else ""


DIRECTIONS = ("north", "north_east", "east", "south_east", "south", "south_west", "west", "north_west")
DISTANCE_M = 1_000.0
"""Distance of the way's end from her as the crow flies, metres: about a quarter of an hour on foot."""
ROUTER_WITHIN_S = 3.0
"""Maximum time of a request to the router, seconds. Without an answer the app shows the direction alone."""
MAX_POINTS = 200
MAX_LAT_DEG = 85.0


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
        per_degree = METRES_PER_DEGREE * math.cos(math.radians(self.place.lat_deg))
        return WayPoint(
            self.place.lat_deg + DISTANCE_M * math.cos(turn) / METRES_PER_DEGREE,
            self.place.lon_deg + DISTANCE_M * math.sin(turn) / per_degree,
        )


def parse_way_wish(content: Any) -> WayWish:
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
            async with asyncio.timeout(ROUTER_WITHIN_S), self._session.get(url, allow_redirects=False) as answer:
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
        wish = parse_way_wish(ask.content)
        way = await self._router.way(wish)
        return web.json_response({"way": [{"lat": point.lat_deg, "lon": point.lon_deg} for point in way]})
