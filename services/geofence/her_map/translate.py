"""Translates the views of her map to messages, and to rows for the registry's ledger."""

from __future__ import annotations

from services.common import ids, times
from services.common.privacy.notice_rows import GivenNotice, row_of
from services.geofence.domain.her_map.coarse import SECTORS, FromHer
from services.geofence.domain.her_map.view import MapGround, MapView, ViewOutcome
from services.geofence.domain.kinematics.track import UNKNOWN_AFTER_MS
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import region_map_pb2

_DIRECTIONS = {"": region_map_pb2.DIRECTION_UNSPECIFIED} | {
    sector: region_map_pb2.Direction.ValueType(number) for number, sector in enumerate(SECTORS, 1)
}


def disclosures_of(view: MapView, ground: MapGround, now_ms: int, *, device_id: str) -> list[ledger_pb2.Disclosure]:
    """Rows of a view for a device: the notice, and the location that goes with it, each under its article."""
    given = GivenNotice(
        person_id=view.person_id,
        wearer_id=ground.wearer_id,
        order_id=ground.order_id,
        incident_id=ground.incident_id,
        at_ms=now_ms,
    )
    return [
        row_of(given, article, ids.hash_id("map", device_id, view.case_id, article, now_ms))
        for article in (ground.ground.value, ground.location_basis)
    ]


def shown(view: MapView, now_ms: int) -> region_map_pb2.RegionView:
    """The message of a view with a region."""
    message = region_map_pb2.RegionView(
        outcome=region_map_pb2.REGION_SHOWN,
        circles=[
            region_map_pb2.RegionCircle(lat_deg=lat_e7 / 1e7, lon_deg=lon_e7 / 1e7, radius_m=radius_m)
            for lat_e7, lon_e7, radius_m in view.circles
        ],
        grows_mps=round(view.grows_mps, 1),
        fix_time=times.to_timestamp(view.fix_ms),
        as_of=times.to_timestamp(now_ms),
        unknown_from=times.to_timestamp(view.fix_ms + UNKNOWN_AFTER_MS),
    )
    if view.from_her is not None:
        message.from_her.CopyFrom(_from_her(view.from_her))
    return message


def without_region(view: MapView) -> region_map_pb2.RegionView:
    """The message of a view that gives no location."""
    # The reason stays here: "far" or "at rest" would be a location of its own.
    is_unknown = view.outcome is ViewOutcome.UNKNOWN
    return region_map_pb2.RegionView(
        outcome=region_map_pb2.REGION_UNKNOWN if is_unknown else region_map_pb2.REGION_WITHHELD
    )


def _from_her(place: FromHer) -> region_map_pb2.RegionFromHer:
    return region_map_pb2.RegionFromHer(
        least_m=place.least_m,
        greatest_m=place.greatest_m,
        direction=_DIRECTIONS[place.direction],
        way_out=_DIRECTIONS[place.way_out],
    )
