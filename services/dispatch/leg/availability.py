"""Input for the choice of units: roster, engaged units, positions of destinations and travel times.

An offer waits at most `WITHIN_S` for the travel times. The last known positions of destinations are in memory only: a position that
isn't repeated is soon useless.
"""

from __future__ import annotations

import asyncio
import math
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import NamedTuple

import aiohttp
from prometheus_client import Counter
from sqlalchemy import Connection

from services.common.geometry import LatLon, great_circle_m
from services.common.observability.telemetry import logger
from services.dispatch.domain.enums import Estimate
from services.dispatch.domain.roster import NO_ROSTER, Board, Travel, Trip, UnitReport, units_in_reach
from services.dispatch.leg.roster import read_engaged, read_offices, read_units, roster_version
from services.dispatch.leg.store import CommittedState


class _LoadedRoster(NamedTuple):
    """A roster that was read, with its version."""

    roster: Board
    version: int | None
    """None before the first reading."""


class AvailabilityView:
    """Builds the boards of one leg."""

    def __init__(self, travel_times: TravelTimes | None = None) -> None:
        self.last_known_positions = LastKnownPositions()
        self._travel_times = travel_times or GreatCircle()
        self.loaded = _LoadedRoster(NO_ROSTER, None)
        """The roster that was read last. If the change that read it is rolled back, the caller restores the one before."""
        self._moved: set[str] = set()
        """Units of the roster that were read since `take_moved`."""

    async def ahead(self, subject_ids: Iterable[str], now_ms: int, *, unit_ids: Collection[str] = ()) -> Board:
        """Returns a board with current positions and travel times, and the roster that was read last. Waits for the travel times.

        It has the travel times of the units in reach, and of `unit_ids`, which a desk may send from anywhere.
        """
        positions = self.last_known_positions.of(subject_ids, now_ms)
        board = replace(self.loaded.roster, positions=positions)
        if not positions or not board.asks_units():
            return board
        timed = await asyncio.gather(
            *(
                self._travel(board, id_, point, unit_ids={*units_in_reach(board, id_), *unit_ids}, now_ms=now_ms)
                for id_, point in positions.items()
            )
        )
        return replace(board, travel={key: travel for times in timed for key, travel in times.items()})

    @property
    def version(self) -> int | None:
        """Version of the roster that was read last; None if none was read."""
        return self.loaded.version

    def unit_ids(self) -> Collection[str]:
        """Ids of all units of the roster that was read last."""
        return self.loaded.roster.units.keys()

    def asks_units(self) -> bool:
        """Whether the roster that was read last has an office, so that offers go to units."""
        return self.loaded.roster.asks_units()

    def load(self, connection: Connection) -> None:
        """Reads the roster if it has changed."""
        self._load(connection, roster_version(connection))

    def _load(self, connection: Connection, version: int) -> None:
        if version != self.loaded.version:
            since = self.loaded.version or 0
            offices, units = read_offices(connection, since), read_units(connection, since)
            self._moved |= units.keys()
            loaded = self.loaded.roster
            self.loaded = _LoadedRoster(Board({**loaded.offices, **offices}, {**loaded.units, **units}), version)

    def take_moved(self) -> set[str]:
        """Returns the units that reported or changed between the last call and the latest reading of the roster."""
        moved, self._moved = self._moved, set()
        return moved

    def report_of(self, unit_id: str) -> UnitReport | None:
        """Returns the last report of a unit in the roster that was read last; None if the unit is unknown."""
        entry = self.loaded.roster.units.get(unit_id)
        return entry[1] if entry else None

    def within(self, connection: Connection, seen: CommittedState) -> tuple[Board, dict[str, dict[str, str]]]:
        """Returns the board inside a transaction, and the mutable map of engaged units that the board uses.

        The caller updates the map with each decision.
        """
        self._load(connection, seen.roster_version)
        roster = self.loaded.roster
        if not roster.asks_units():
            return NO_ROSTER, {}
        engaged = read_engaged(connection) if seen.engaged is None else seen.engaged
        return replace(roster, engaged=engaged), engaged

    def gone(self, connection: Connection) -> list[tuple[str, str]]:
        """Returns (assignment id, incident id) for each assignment whose unit can no longer go."""
        self.load(connection)
        return [
            (assignment_id, incident_id)
            for unit_id, assignments in read_engaged(connection).items()
            if not self.loaded.roster.can_go(unit_id)
            for assignment_id, incident_id in assignments.items()
        ]

    async def _travel(
        self, board: Board, subject_id: str, to: LatLon, *, unit_ids: Collection[str], now_ms: int
    ) -> Mapping[Trip, Travel]:
        places = {id_: board.units[id_][1].place(now_ms) for id_ in sorted(unit_ids) if id_ in board.units}
        located = {id_: place for id_, place in places.items() if place}
        times = await self._travel_times.to(to, list(located.values()))
        return {Trip(id_, subject_id): time for id_, time in zip(located, times, strict=True)}


KNOWN_FOR_MS = 180_000
"""Age from which a position counts as unknown, milliseconds of mesh time."""
KNOWN_MAX = 100_000
"""Maximum number of destinations. The destination that was updated longest ago is dropped first."""


class LastKnownPositions:
    """Last known positions by destination: the id of a wearer or protected person, or `order/place`."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[LatLon, int | None]] = {}

    def put(self, subject_id: str, point: LatLon, at_ms: int | None) -> None:
        """Stores the position of a destination at `at_ms`, mesh time; None for a place, whose position never ages."""
        self._known.pop(subject_id, None)
        self._known[subject_id] = (point, at_ms)
        if len(self._known) > KNOWN_MAX:
            self._known.pop(next(iter(self._known)))

    def of(self, subject_ids: Iterable[str], now_ms: int) -> dict[str, LatLon]:
        """Returns the positions of destinations. Unknown or outdated positions are left out."""
        positions = {}
        for subject_id in subject_ids:
            point, at_ms = self._known.get(subject_id, (None, None))
            if point and (at_ms is None or now_ms - at_ms <= KNOWN_FOR_MS):
                positions[subject_id] = point
        return positions


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
