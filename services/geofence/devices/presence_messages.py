"""Parses home units and beacons, and presences at them, from the messages of the log."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from services.common.rpc.errors import InvalidField
from services.geofence.domain.entries import PresenceReport, Presences, UnitPlace, UnitPlaceKind
from services.geofence.domain.kinematics.geometry import Disc, ecef_mm
from tandem.common.v1 import presence_pb2

_UNIT_KINDS = frozenset(kind.value for kind in UnitPlaceKind)


def presences(batch: presence_pb2.PresenceBatch) -> Presences:
    """Parses presences. Raises InvalidField if their columns have unequal lengths."""
    columns = (batch.device_id, batch.report_id, batch.unit_id, batch.since_ms, batch.seen_ms, batch.left)
    if any(len(column) != len(batch.device_id) for column in columns):
        raise InvalidField("presences", "has columns of unequal length")
    return Presences(tuple(map(PresenceReport._make, zip(*columns, strict=True))), batch.received_wall_us)


def units(field: str, messages: Iterable[presence_pb2.PresenceUnitPlace], holder: str) -> Iterator[UnitPlace]:
    """Parses the home units and beacons of one holder: a protected person's key, or empty for the wearer.

    Raises InvalidField. `field` is the path of the messages, for its text.
    """
    for msg in messages:
        if msg.kind not in _UNIT_KINDS:
            raise InvalidField(f"{field}.kind", "isn't known")
        centre = ecef_mm(round(msg.place.lat_deg * 1e7), round(msg.place.lon_deg * 1e7))
        yield UnitPlace(
            unit_id=msg.unit_id,
            kind=UnitPlaceKind(msg.kind),
            holder=holder,
            place=Disc(centre, round(msg.place.radius_m * 1000)),
            installed_from_ms=msg.installed_from_ms,
            installed_until_ms=msg.installed_until_ms or None,
            interval_ms=msg.report_interval_s * 1000,
        )
