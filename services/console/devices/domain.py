"""Devices of a desk's own side that need somebody: low batteries, silence, equipment events, phones without location. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

LOW_PCT = 20.0
"""Charge from which on a device is listed and its desk is notified: a tag has some hours left then."""
_NEVER_MS = 1 << 60


@dataclass(frozen=True, slots=True)
class EquipmentCard:
    """Equipment of a device, as the decision knows it."""

    device_id: str
    subject_id: str
    """Id of the wearer or protected person."""
    events: tuple[str, ...] = ()
    """Active equipment events, such as BATTERY_LOW or STRAP_OPEN."""
    heard_ms: int | None = None
    fix_ms: int | None = None
    accuracy_m: float | None = None
    source: str = "UNSPECIFIED"
    is_silent: bool = False


@dataclass(frozen=True, slots=True)
class BatteryCard:
    """Battery charge of a device, as it reported it."""

    device_id: str
    subject_id: str
    charge_pct: float
    at_ms: int
    empty_ms: int | None = None
    """When it will be empty at its present rate; None if that isn't known."""


@dataclass(frozen=True, slots=True)
class PhoneCard:
    """What a protected person's phone last said about itself. Times are milliseconds since 1970 UTC."""

    device_id: str
    location: str
    """Whether its app gets positions: GOOD, VAGUE, DENIED, UNAVAILABLE, or UNSPECIFIED while it isn't known."""
    location_ms: int
    is_hidden: bool
    """Whether the screen is locked, or another app is on it. The app reports only while it is on the screen."""
    screen_ms: int


@dataclass(frozen=True, slots=True)
class WatchedDevice:
    """A device, as far as each service knows it."""

    device_id: str
    equipment: EquipmentCard | None = None
    battery: BatteryCard | None = None
    phone: PhoneCard | None = None

    @property
    def subject_id(self) -> str:
        """Id of the wearer or protected person; empty if it isn't known."""
        known = self.equipment or self.battery
        return known.subject_id if known else ""

    @property
    def is_low(self) -> bool:
        """Whether the device said that its battery is low, or its charge is at most LOW_PCT."""
        said_so = self.equipment is not None and "BATTERY_LOW" in self.equipment.events
        return said_so or (self.battery is not None and self.battery.charge_pct <= LOW_PCT)

    @property
    def is_silent(self) -> bool:
        """Whether no report came for 3 minutes, and the phone didn't say that its app isn't on the screen."""
        return self.equipment is not None and self.equipment.is_silent and not self.is_hidden

    @property
    def is_hidden(self) -> bool:
        """Whether it is a phone whose app isn't on the screen, so that it can't report. That is a known state, and no silence."""
        return self.phone is not None and self.phone.is_hidden

    @property
    def location_trouble(self) -> str:
        """Why a phone's app gets no usable positions, in a way that its owner can mend: DENIED or VAGUE; empty if there is none."""
        return self.phone.location if self.phone and self.phone.location in ("DENIED", "VAGUE") else ""

    @property
    def other_events(self) -> tuple[str, ...]:
        """Active equipment events but a low battery."""
        return tuple(event for event in self.equipment.events if event != "BATTERY_LOW") if self.equipment else ()

    @property
    def is_in_trouble(self) -> bool:
        """Whether somebody of the desk must look after it."""
        return self.is_low or self.is_silent or bool(self.other_events) or bool(self.location_trouble)

    def urgency(self) -> tuple[bool, int, float, str]:
        """Key of the order: low batteries first, the one that dies first at the top; then the others by id."""
        empty_ms = self.battery.empty_ms if self.battery and self.battery.empty_ms is not None else _NEVER_MS
        return not self.is_low, empty_ms, self.battery.charge_pct if self.battery else 100.0, self.device_id


def joined(
    equipment: Iterable[EquipmentCard], batteries: Iterable[BatteryCard], phones: Iterable[PhoneCard]
) -> list[WatchedDevice]:
    """Joins what the services know of each device, the most urgent first."""
    of_equipment = {card.device_id: card for card in equipment}
    of_battery = {card.device_id: card for card in batteries}
    of_phone = {card.device_id: card for card in phones}
    devices = [
        WatchedDevice(id_, of_equipment.get(id_), of_battery.get(id_), phone=of_phone.get(id_))
        for id_ in of_equipment.keys() | of_battery.keys() | of_phone.keys()
    ]
    return sorted(devices, key=WatchedDevice.urgency)


def hours_left(empty_ms: int | None, now_ms: int) -> float | None:
    """Hours until a battery is empty, at least 0; None if that isn't known."""
    return None if empty_ms is None else max(0.0, (empty_ms - now_ms) / 3_600_000)
