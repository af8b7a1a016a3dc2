"""The crowd of bench.geofence: wearers under orders, the protected persons, and their movement.

All devices report in turn. A wearer stays 22 km from the protected persons. One wearer in a hundred stays at 1.5 km instead, within the
widest ring, so that an episode is always open. Each order protects a person, whose phone also reports, and a home with five corners.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.ingestion.reports import device_id
from services.common.ids import partition_of
from tandem.common.v1 import geometry_pb2, log_pb2

REPORT_INTERVAL_MS = 15_000
"""Time between two reports of a device."""
NEAR_ONE_IN = 100
FAR_DEG = 0.2
NEAR_DEG = 0.0135
TRIGGER_DEG = 0.0005
"""Distances from a person to a wearer who is far, near, or triggers an incident, degrees of latitude: 22 km, 1.5 km and 55 m."""
STEP_DEG = 0.0001
"""Movement from report to report, degrees: 11 m."""
WALK = (0, 1, 2, 3, 4, 3, 2, 1)
"""Offset to the north of the walk's start by turn, in steps."""
RINGS = ((2000.0, geometry_pb2.WARN), (1000.0, geometry_pb2.NOTIFY), (100.0, geometry_pb2.RESPOND))
_CORNERS_DEG = ((0.0, 0.0), (0.0008, 0.0002), (0.0009, 0.0012), (0.0004, 0.0015), (-0.0003, 0.0008))
_YEAR_MS = 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Crowd:
    """A number of wearers with a number of orders each. Device numbers of a wearer's cases are consecutive, the tag first."""

    wearers: int
    orders: int = 1

    @property
    def devices(self) -> int:
        """Number of tags and phones."""
        return self.wearers * (1 + self.orders)

    def home(self, wearer: int) -> tuple[float, float]:
        """Latitude and longitude of the persons protected from a wearer, degrees."""
        return 33.0 + wearer % 400 * 0.0123456789, 124.5 + wearer // 400 * 0.0223456789

    def place(self, device: int, turn: int, trigger: bool = False) -> tuple[float, float]:
        """Latitude and longitude of a device at a turn, degrees."""
        wearer, phone = divmod(device, 1 + self.orders)
        lat_deg, lon_deg = self.home(wearer)
        step_deg = WALK[turn % len(WALK)] * STEP_DEG
        if phone:
            return lat_deg + step_deg, lon_deg + (phone - 1) * STEP_DEG
        north_deg = TRIGGER_DEG if trigger else NEAR_DEG if wearer % NEAR_ONE_IN == 0 else FAR_DEG
        return lat_deg + north_deg + step_deg, lon_deg

    def cases(self, wearer: int, from_ms: int) -> Iterator[log_pb2.CaseSnapshot]:
        """Cases of a wearer's orders, valid for a year from `from_ms` on."""
        lat_deg, lon_deg = self.home(wearer)
        first = wearer * (1 + self.orders)
        corners = [geometry_pb2.Point(lat_deg=lat_deg + n, lon_deg=lon_deg + e) for n, e in _CORNERS_DEG]
        for order in range(self.orders):
            name = f"{wearer}-{order}"
            yield log_pb2.CaseSnapshot(
                case_id=f"case-{name}",
                version=1,
                order_id=f"order-{name}",
                wearer_id=f"wearer-{wearer}",
                tag_device_ids=[device_id(first)],
                persons=[
                    log_pb2.ProtectedTarget(person_id=f"person-{name}", device_ids=[device_id(first + 1 + order)])
                ],
                places=[geometry_pb2.Place(place_id=f"home-{name}", polygon=geometry_pb2.Polygon(vertices=corners))],
                rings=[geometry_pb2.Ring(radius_m=radius_m, action=action) for radius_m, action in RINGS],
                valid_from_ms=from_ms,
                valid_until_ms=from_ms + _YEAR_MS,
            )

    def partition(self, device: int, partitions: int) -> int:
        """Partition of a device's reports."""
        return partition_of(f"wearer-{device // (1 + self.orders)}", partitions)
