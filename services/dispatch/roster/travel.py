"""Travel times of units to a destination. An offer waits at most `WITHIN_S` for the travel times."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from prometheus_client import Counter

from services.common.geometry import LatLon, great_circle_m
from services.common.observability.telemetry import logger
from services.dispatch.domain.enums import Estimate
from services.dispatch.domain.roster import Travel

DETOUR = 1.4
"""Ratio of road distance to great-circle distance, as is usual in towns."""
SPEED_MPS = 12.0
"""Average speed of a unit, metres per second (43 km/h)."""
WITHIN_S = 0.3
"""Timeout of a request to the OSRM service, seconds."""
SOURCES_MAX = 100
"""Maximum number of points in one table request, including the destination. It is the default limit of an OSRM service."""


class TravelTimes(ABC):
    """Port for travel times from several origins to one destination."""

    @abstractmethod
    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """Returns the travel time from each origin, in the order of the origins."""


class GreatCircle(TravelTimes):
    """Estimates travel times from the great-circle distance, with DETOUR and SPEED_MPS."""

    def __init__(self, estimate: Estimate = Estimate.GREAT_CIRCLE) -> None:
        self._estimate = estimate

    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """See TravelTimes."""
        return [
            Travel(math.ceil(great_circle_m(origin, destination) * DETOUR / SPEED_MPS), self._estimate)
            for origin in origins
        ]


class Roads(TravelTimes):
    """Travel times from a service with OSRM's table protocol. If the service fails or finds no route, the great circle is used."""

    def __init__(self, url: str, session: aiohttp.ClientSession, failed: Counter) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._failed = failed
        self._fallback = GreatCircle(Estimate.GREAT_CIRCLE_INSTEAD)

    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """See TravelTimes."""
        travels = await self._fallback.to(destination, origins)
        # Request only the origins that are nearest by great circle: by road, another origin is hardly ever nearer.
        nearest = sorted(range(len(origins)), key=lambda n: travels[n].travel_s)[: SOURCES_MAX - 1]
        if not nearest:
            return travels
        try:
            async with asyncio.timeout(WITHIN_S):
                durations_s = await self._ask(destination, [origins[n] for n in nearest])
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = type(error).__name__
            self._failed.labels(reason).inc()
            logger().warning("road_times_failed", reason=reason)
            return travels
        for n, duration_s in zip(nearest, durations_s, strict=True):
            if duration_s is None:
                self._failed.labels("no_way").inc()
            else:
                travels[n] = Travel(math.ceil(duration_s), Estimate.ROAD)
        return travels

    async def _ask(self, destination: LatLon, origins: Sequence[LatLon]) -> list[float | None]:
        """Requests the travel time from each origin, seconds; None without a route. Raises ValueError if the response is invalid."""
        points = ";".join(f"{point.lon_deg:.6f},{point.lat_deg:.6f}" for point in (destination, *origins))
        sources = ";".join(str(n) for n in range(1, len(origins) + 1))
        url = f"{self._url}/table/v1/driving/{points}?sources={sources}&destinations=0"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"HTTP status {response.status}, expected 200")
            answer = await response.json(content_type=None)
        return _durations_s(answer, len(origins))


def _durations_s(answer: object, count: int) -> list[float | None]:
    rows = answer.get("durations") if isinstance(answer, dict) and answer.get("code") == "Ok" else None
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError("durations: the response has no row for each origin")
    durations_s: list[float | None] = []
    for row in rows:
        duration_s = row[0] if isinstance(row, list) and len(row) == 1 else math.nan
        if duration_s is not None and not (isinstance(duration_s, int | float) and 0 <= duration_s < 1e6):
            raise ValueError("durations: a row isn't one number of seconds from 0 to 1e6")
        durations_s.append(duration_s)
    return durations_s


@asynccontextmanager
async def open_travel_times(url: str, failed: Counter) -> AsyncIterator[TravelTimes]:
    """Opens travel times from the OSRM service at a URL, or from the great circle if the URL is empty.

    `failed` counts travel times that the service failed to return, by reason.
    """
    if not url:
        yield GreatCircle()
        return
    async with aiohttp.ClientSession() as session:
        yield Roads(url, session, failed)
