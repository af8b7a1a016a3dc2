"""How long units take to a destination. An offer never waits for it longer than `WITHIN_S`."""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import aiohttp
from prometheus_client import Counter

from services.common.observability.telemetry import logger
from services.dispatch.domain.areas import LatLon, great_circle_m
from services.dispatch.domain.events import Estimate
from services.dispatch.domain.roster import Travel

DETOUR = 1.4
"""Roads are that much longer than the great circle, as is usual in towns."""
SPEED_MPS = 12.0
"""How fast a unit goes on the whole, 43 km/h."""
WITHIN_S = 0.3
SOURCES_MAX = 100
"""As many as an OSRM service takes in one table by default, with the destination."""

_FAILED = Counter("tandem_dispatch_road_times_failed", "Travel times that the map of roads didn't give", ["reason"])


class TravelTimes(ABC):
    """The port: how long it takes from several places to one."""

    @abstractmethod
    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """The travel time from each origin, in their order."""


class GreatCircle(TravelTimes):
    """By the great circle, with a usual detour at a usual speed."""

    def __init__(self, estimate: Estimate = Estimate.GREAT_CIRCLE) -> None:
        self._estimate = estimate

    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """See TravelTimes."""
        return [
            Travel(math.ceil(great_circle_m(origin, destination) * DETOUR / SPEED_MPS), self._estimate)
            for origin in origins
        ]


class Roads(TravelTimes):
    """By a service that speaks OSRM's table protocol; the great circle where it doesn't answer, or knows no way."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/")
        self._session = session
        self._instead = GreatCircle(Estimate.GREAT_CIRCLE_INSTEAD)

    async def to(self, destination: LatLon, origins: Sequence[LatLon]) -> list[Travel]:
        """See TravelTimes."""
        instead = await self._instead.to(destination, origins)
        # Those that are nearest by the great circle are asked for; the map would hardly bring another one before them.
        nearest = sorted(range(len(origins)), key=lambda n: instead[n].travel_s)[: SOURCES_MAX - 1]
        if not nearest:
            return instead
        try:
            async with asyncio.timeout(WITHIN_S):
                durations_s = await self._ask(destination, [origins[n] for n in nearest])
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            reason = type(error).__name__
            _FAILED.labels(reason).inc()
            logger().warning("road_times_failed", reason=reason)
            return instead
        for n, duration_s in zip(nearest, durations_s, strict=True):
            if duration_s is None:
                _FAILED.labels("no_way").inc()
            else:
                instead[n] = Travel(math.ceil(duration_s), Estimate.ROAD)
        return instead

    async def _ask(self, destination: LatLon, origins: Sequence[LatLon]) -> list[float | None]:
        """Seconds from each origin, None where there is no way. Raises ValueError where the answer isn't one."""
        points = ";".join(f"{point.lon_deg:.6f},{point.lat_deg:.6f}" for point in (destination, *origins))
        sources = ";".join(str(n) for n in range(1, len(origins) + 1))
        url = f"{self._url}/table/v1/driving/{points}?sources={sources}&destinations=0"
        async with self._session.get(url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"status {response.status}")
            answer = await response.json(content_type=None)
        return _durations_s(answer, len(origins))


def _durations_s(answer: object, count: int) -> list[float | None]:
    rows = answer.get("durations") if isinstance(answer, dict) and answer.get("code") == "Ok" else None
    if not isinstance(rows, list) or len(rows) != count:
        raise ValueError("no table of durations")
    found: list[float | None] = []
    for row in rows:
        duration_s = row[0] if isinstance(row, list) and len(row) == 1 else math.nan
        if duration_s is not None and not (isinstance(duration_s, int | float) and 0 <= duration_s < 1e6):
            raise ValueError("no duration")
        found.append(duration_s)
    return found


@asynccontextmanager
async def open_travel_times(url: str) -> AsyncIterator[TravelTimes]:
    """By the map of roads behind a URL, or by the great circle where there is none."""
    if not url:
        yield GreatCircle()
        return
    async with aiohttp.ClientSession() as session:
        yield Roads(url, session)
