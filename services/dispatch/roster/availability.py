"""Builds the input for the choice of units: roster, engaged units, positions of destinations and travel times."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import NamedTuple

from sqlalchemy import Connection

from services.common.geometry import LatLon
from services.dispatch.domain.choosing import units_in_reach
from services.dispatch.domain.roster import NO_ROSTER, Board, Travel, Trip, UnitReport
from services.dispatch.leg.change_store import CommittedState
from services.dispatch.roster import store
from services.dispatch.roster.last_known_positions import LastKnownPositions
from services.dispatch.roster.travel import GreatCircle, TravelTimes


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

    async def ahead(self, subject_ids: Iterable[str], now_ms: int) -> Board:
        """Returns a board with current positions and travel times, and the roster that was read last. Waits for the travel times."""
        positions = self.last_known_positions.of(subject_ids, now_ms)
        board = replace(self.loaded.roster, positions=positions)
        if not positions or not board.asks_units():
            return board
        timed = await asyncio.gather(
            *(self._travel(board, id_, point, now_ms=now_ms) for id_, point in positions.items())
        )
        return replace(board, travel={key: travel for times in timed for key, travel in times.items()})

    @property
    def version(self) -> int | None:
        """Version of the roster that was read last; None if none was read."""
        return self.loaded.version

    def asks_units(self) -> bool:
        """Whether the roster that was read last has an office, so that offers go to units."""
        return self.loaded.roster.asks_units()

    def load(self, connection: Connection) -> None:
        """Reads the roster if it has changed."""
        self._load(connection, store.version(connection))

    def _load(self, connection: Connection, version: int) -> None:
        if version != self.loaded.version:
            since = self.loaded.version or 0
            offices, units = store.offices(connection, since), store.units(connection, since)
            self._moved |= units.keys()
            loaded = self.loaded.roster
            self.loaded = _LoadedRoster(Board({**loaded.offices, **offices}, {**loaded.units, **units}), version)

    def take_moved(self) -> set[str]:
        """Returns the units that reported or changed since the last call, as far as the roster was read since."""
        moved, self._moved = self._moved, set()
        return moved

    def report_of(self, unit_id: str) -> UnitReport | None:
        """Returns the last report of a unit in the roster that was read last; None if the unit is unknown."""
        entry = self.loaded.roster.units.get(unit_id)
        return entry[1] if entry else None

    def within(
        self, connection: Connection, ahead: Board, seen: CommittedState
    ) -> tuple[Board, dict[str, dict[str, str]]]:
        """Returns the board inside a transaction, and the mutable map of engaged units that the board uses.

        The caller updates the map with each decision.
        """
        self._load(connection, seen.roster_version)
        roster = self.loaded.roster
        if not roster.asks_units():
            return NO_ROSTER, {}
        engaged = store.engaged(connection) if seen.engaged is None else seen.engaged
        return replace(ahead, offices=roster.offices, units=roster.units, engaged=engaged), engaged

    def gone(self, connection: Connection) -> list[tuple[str, str]]:
        """Returns (assignment id, incident id) for each assignment whose unit can no longer go."""
        self.load(connection)
        return [
            (assignment_id, incident_id)
            for unit_id, assignments in store.engaged(connection).items()
            if not self.loaded.roster.can_go(unit_id)
            for assignment_id, incident_id in assignments.items()
        ]

    async def _travel(self, board: Board, subject_id: str, to: LatLon, *, now_ms: int) -> Mapping[Trip, Travel]:
        places = {id_: board.units[id_][1].place(now_ms) for id_ in units_in_reach(board, subject_id)}
        located = {id_: place for id_, place in places.items() if place}
        times = await self._travel_times.to(to, list(located.values()))
        return {Trip(id_, subject_id): time for id_, time in zip(located, times, strict=True)}
