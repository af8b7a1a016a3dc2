"""Service area in which protected places must lie, so that a mistyped coordinate doesn't enforce an order in the sea. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ServiceArea:
    """A box of latitudes and longitudes (WGS84), including the edges."""

    name: str
    least_lat_deg: float
    greatest_lat_deg: float
    least_lon_deg: float
    greatest_lon_deg: float

    def holds(self, lat_deg: float, lon_deg: float) -> bool:
        """Whether a point lies in the area."""
        return (
            self.least_lat_deg <= lat_deg <= self.greatest_lat_deg
            and self.least_lon_deg <= lon_deg <= self.greatest_lon_deg
        )


AREAS: Mapping[str, ServiceArea] = {
    # From Marado to the northern border, from Baengnyeongdo to Dokdo.
    "korea": ServiceArea(
        name="Korea", least_lat_deg=33.0, greatest_lat_deg=38.7, least_lon_deg=124.5, greatest_lon_deg=132.0
    ),
    "world": ServiceArea(
        name="the world", least_lat_deg=-90.0, greatest_lat_deg=90.0, least_lon_deg=-180.0, greatest_lon_deg=180.0
    ),
}
"""Service areas by their value in the setting TANDEM_SERVICE_AREA."""
