"""Plays a week of the indoor study: as a week of the burden study, with presences at a home unit and a beacon at work."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from bench.burden.counts import Counts
from bench.burden.week import Week
from bench.decision.arms import ARMS
from bench.decision.noise import TAG
from bench.indoors.world import HOME, WORK, IndoorWorld
from services.geofence.domain import fold
from services.geofence.domain.entries import Body, Case, PresenceReport, Presences, UnitPlace, UnitPlaceKind
from services.geofence.domain.kinematics.geometry import Disc, ecef_mm

EVERY_MS = 60_000
ARRIVES_MS = 1_000
RANGE_MM = 30_000
UNITS = {HOME: UnitPlaceKind.HOME_UNIT, WORK: UnitPlaceKind.BLUETOOTH_BEACON}
"""Kind of the unit in each building."""


class IndoorArm(NamedTuple):
    """What the week has of losses and units."""

    name: str
    has_losses: bool
    units: tuple[str, ...]
    """Buildings with a unit."""


INDOOR_ARMS = (
    IndoorArm("reception indoors", has_losses=False, units=()),
    IndoorArm("no unit", has_losses=True, units=()),
    IndoorArm("home unit", has_losses=True, units=(HOME,)),
    IndoorArm("home unit, beacon at work", has_losses=True, units=(HOME, WORK)),
)


def perform(world: IndoorWorld, arm: IndoorArm, *, is_place: bool) -> Counts:
    """Counts of a week for an order that protects her home (`is_place`) or her with her phone. The tag obeys the fold's requests."""
    counts = IndoorWeek(world, arm, is_place=is_place).run()
    return replace(counts, arm=arm.name)


class IndoorWeek(Week):
    """A week with presences."""

    def __init__(self, world: IndoorWorld, arm: IndoorArm, *, is_place: bool) -> None:
        super().__init__(world, ARMS["asked"], is_place=is_place, step=fold.step)
        self._indoors, self._buildings = world, arm.units
        self._presences = sorted(self._all_presences(), key=lambda report: report.seen_ms, reverse=True)
        """Presences, newest first."""

    def _case(self) -> Case:
        units = []
        for where in self._buildings:
            stay = next((stay for stay in self._indoors.stays if stay.where == where), None)
            if stay is not None:
                spot = self._indoors.receiver.place_at((stay.period.start_ms + stay.period.end_ms) // 2)
                units.append(unit(where, UNITS[where], ecef_mm(spot.lat_e7, spot.lon_e7)))
        return replace(super()._case(), units=tuple(units))

    def _all_presences(self) -> list[PresenceReport]:
        found = []
        for stay in self._indoors.stays:
            if stay.where not in self._buildings:
                continue
            from_ms, until_ms = stay.period
            moments_ms = [*range(from_ms, until_ms, EVERY_MS)]
            if UNITS[stay.where] is UnitPlaceKind.HOME_UNIT:
                moments_ms.append(until_ms)  # a home unit says when it hears the tag no more, a beacon can't
            found += [presence(stay.where, at_ms, from_ms, left=at_ms == until_ms) for at_ms in moments_ms]
        return found

    def _next_happening_ms(self) -> int | None:
        event_ms = super()._next_happening_ms()
        if not self._presences:
            return event_ms
        presence_ms = self._presences[-1].seen_ms + ARRIVES_MS
        return presence_ms if event_ms is None else min(event_ms, presence_ms)

    def _happening(self) -> Body:
        event_ms = super()._next_happening_ms()
        if self._presences and (event_ms is None or self._presences[-1].seen_ms + ARRIVES_MS <= event_ms):
            return Presences((self._presences.pop(),), 0)
        return super()._happening()


def unit(unit_id: str, kind: UnitPlaceKind, centre: tuple[int, int, int]) -> UnitPlace:
    """A unit of the wearer, installed before everything."""
    return UnitPlace(
        unit_id=unit_id,
        kind=kind,
        holder="",
        place=Disc(centre, RANGE_MM),
        installed_from_ms=0,
        installed_until_ms=None,
        interval_ms=EVERY_MS,
    )


def presence(unit_id: str, seen_ms: int, since_ms: int, *, left: bool = False) -> PresenceReport:
    """A presence of the tag at a unit."""
    return PresenceReport(
        device_id=TAG,
        report_id=f"{unit_id} {seen_ms}",
        unit_id=unit_id,
        since_ms=since_ms,
        seen_ms=seen_ms,
        left=left,
    )
