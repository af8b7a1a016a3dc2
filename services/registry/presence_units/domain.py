"""Records of home units and beacons: registered devices at a fixed place, which show that a tag or protective device is there. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from services.common.geometry import Circle

DEFAULT_INTERVAL_S = 60


class UnitKind(Enum):
    """Kind of a unit; its value is the number of the proto's PresenceUnitKind."""

    HOME_UNIT = 1
    BLUETOOTH_BEACON = 2
    WIFI_ACCESS_POINT = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class PresenceUnit:
    """A home unit or beacon at a fixed place."""

    unit_id: str
    source_version: int
    kind: UnitKind
    place: Circle = field(repr=False)
    """The place; its radius is the unit's range."""
    installed_from_ms: int
    """First moment at which the unit counts, milliseconds since 1970 UTC."""
    installed_until_ms: int | None = None
    """End, exclusive, milliseconds since 1970 UTC; None until the unit is removed."""
    interval_s: int = DEFAULT_INTERVAL_S
    """Interval at which presence at the unit is reported, seconds."""
    vendor_id: str = ""
    """Vendor that may report for the unit; empty if no vendor may."""
    identifier: str = field(default="", repr=False)
    """What is heard of a beacon, in lower case; empty for a home unit."""

    @property
    def device_id(self) -> str:
        """Id of the unit's route."""
        return self.unit_id

    def is_removed(self, now_ms: int) -> bool:
        """Whether the unit counts no longer."""
        return self.installed_until_ms is not None and self.installed_until_ms <= now_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class WearerUnit(PresenceUnit):
    """A home unit or beacon of a wearer; the Ministry's record."""

    wearer_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PersonUnit(PresenceUnit):
    """A beacon of a protected person; the police's record."""

    person_id: str
