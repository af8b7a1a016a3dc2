"""The parts of a case as lists for a checkpoint, and back: shapes, encounters, home units and the duty to wear a tag. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from services.geofence.domain.entries import Encounter, GoodCause, TagDuty, UnitPlace, UnitPlaceKind
from services.geofence.domain.kinematics.geometry import PERSON, Disc, PlanePolygon, Shape


def to_tag_duty(fit_by_ms: int, refused_ms: int | None, good_causes: Sequence[Sequence[Any]]) -> TagDuty:
    """The duty to wear a tag with these values."""
    causes = (
        GoodCause(cause_id=cause_id, from_ms=from_ms, until_ms=until_ms) for cause_id, from_ms, until_ms in good_causes
    )
    return TagDuty(fit_by_ms, refused_ms, tuple(causes))


def of_encounter(encounter: Encounter) -> list[Any]:
    """The values of an authorised encounter."""
    return [
        encounter.encounter_id,
        encounter.from_ms,
        encounter.until_ms,
        list(map(of_shape, encounter.places)),
        encounter.daily_from_s,
        encounter.daily_until_s,
    ]


def of_unit(unit: UnitPlace) -> list[Any]:
    """The values of a home unit or beacon."""
    shown = [unit.unit_id, unit.kind, unit.holder, unit.place.centre, unit.place.radius_mm]
    return [*shown, unit.installed_from_ms, unit.installed_until_ms, unit.interval_ms]


def to_unit(values: list[Any]) -> UnitPlace:
    """The home unit or beacon with these values."""
    unit_id, kind, holder, centre, radius_mm, from_ms, until_ms, interval_ms = values
    return UnitPlace(
        unit_id=unit_id,
        kind=UnitPlaceKind(kind),
        holder=holder,
        place=Disc(tuple(centre), radius_mm),
        installed_from_ms=from_ms,
        installed_until_ms=until_ms,
        interval_ms=interval_ms,
    )


def of_shape(shape: Shape) -> list[Any]:
    """The values of the shape of a target or place."""
    if isinstance(shape, Disc):
        return [shape.centre, shape.radius_mm]
    return [shape.origin, shape.east, shape.north, shape.sides, shape.radius_mm]


def to_shape(values: list[Any]) -> Shape:
    """The shape with these values."""
    if len(values) == 2:
        disc = Disc(tuple(values[0]), values[1])
        return PERSON if disc == PERSON else disc
    origin, east, north, sides, radius_mm = values
    pairs = tuple(((x0, y0), (x1, y1)) for (x0, y0), (x1, y1) in sides)
    return PlanePolygon(origin=tuple(origin), east=tuple(east), north=tuple(north), sides=pairs, radius_mm=radius_mm)
