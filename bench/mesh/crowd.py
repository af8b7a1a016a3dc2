"""The people of bench.geofence: wearers under orders, the persons whom those protect, and how all of them move.

Everybody reports in turn. A wearer and the persons protected from them stay 22 km apart, but for one wearer in a hundred, who
keeps to 1.5 km: within the widest ring, so that an episode is open all the time. Each order protects a person, whose phone
reports too, and a home with five corners.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bench.ingestion.reports import device_id
from services.common.ids import partition_of
from tandem.common.v1 import geometry_pb2, log_pb2

EVERY_MS = 15_000
"""Between two reports of a device."""
NEAR_ONE_IN = 100
FAR_DEG, NEAR_DEG, TRIGGER_DEG = 0.2, 0.0135, 0.0005
"""From a person to a wearer who is far, near, or about to trigger an incident, degrees of latitude: 22 km, 1.5 km and 55 m."""
STEP_DEG = 0.0001
"""From report to report: 11 m."""
WALK = (0, 1, 2, 3, 4, 3, 2, 1)
"""Steps that somebody is to the north of where the walk began, by turn."""
RINGS = ((2000.0, geometry_pb2.WARN), (1000.0, geometry_pb2.NOTIFY), (100.0, geometry_pb2.RESPOND))
_CORNERS_DEG = ((0.0, 0.0), (0.0008, 0.0002), (0.0009, 0.0012), (0.0004, 0.0015), (-0.0003, 0.0008))
_YEAR_MS = 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Crowd:
    """So many wearers under so many orders each. Devices are numbered: those of a wearer's case stand together, the tag first."""

    wearers: int
    orders: int = 1

    @property
    def devices(self) -> int:
        """Tags and phones together."""
        return self.wearers * (1 + self.orders)

    def home(self, wearer: int) -> tuple[float, float]:
        """Where the persons are whom a wearer's orders protect, degrees."""
        return 33.0 + wearer % 400 * 0.0123456789, 124.5 + wearer // 400 * 0.0223456789

    def place(self, device: int, turn: int, trigger: bool = False) -> tuple[float, float]:
        """Where a device is at a turn, degrees."""
        wearer, phone = divmod(device, 1 + self.orders)
        lat_deg, lon_deg = self.home(wearer)
        step_deg = WALK[turn % len(WALK)] * STEP_DEG
        if phone:
            return lat_deg + step_deg, lon_deg + (phone - 1) * STEP_DEG
        north_deg = TRIGGER_DEG if trigger else NEAR_DEG if wearer % NEAR_ONE_IN == 0 else FAR_DEG
        return lat_deg + north_deg + step_deg, lon_deg

    def cases(self, wearer: int, from_ms: int) -> Iterator[log_pb2.CaseSnapshot]:
        """A wearer's orders, valid for a year from a moment on."""
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
        """Where a device's reports go."""
        return partition_of(f"wearer-{device // (1 + self.orders)}", partitions)
