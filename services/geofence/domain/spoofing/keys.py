"""Keys of withheld all-clears and of the ways that they rest on, and their form in checkpoints."""

from __future__ import annotations

from typing import Any, NamedTuple

from services.geofence.domain.spoofing import travel_feasibility
from services.geofence.domain.spoofing.travel_feasibility import Way


class ClearingKey(NamedTuple):
    """Key of an all-clear."""

    target_key: str
    radius_mm: int | None
    """Radius of the ring; None for a wearer who is unseen near the target."""


class DevicePair(NamedTuple):
    """A tag and a device of the target."""

    tag_id: str
    device_id: str | None
    """None for a place, which has no device."""


class WayKey(NamedTuple):
    """Key of the ways of one device."""

    clearing: ClearingKey
    pair: DevicePair | None
    """The pair of devices that left a ring; None for an unseen wearer."""
    device_id: str


class NearKey(NamedTuple):
    """Key of the last near moment of a pair of devices."""

    clearing: ClearingKey
    pair: DevicePair


def withheld_to_json(withheld: dict[ClearingKey, int | None]) -> dict[str, int]:
    """Withheld all-clears as JSON values."""
    return {_clearing_to_text(key): since_ms or 0 for key, since_ms in withheld.items()}


def withheld_of(content: dict[str, int]) -> dict[ClearingKey, int | None]:
    """The inverse of `withheld_to_json`."""
    return {_clearing_of(*text.split(" ")): since_ms or None for text, since_ms in content.items()}


def ways_to_json(ways: dict[WayKey, list[Way]]) -> dict[str, Any]:
    """Ways as JSON values."""
    return {_way_to_text(key): [travel_feasibility.to_json(way) for way in known] for key, known in ways.items()}


def ways_of(content: dict[str, Any]) -> dict[WayKey, list[Way]]:
    """The inverse of `ways_to_json`."""
    return {_way_of(text): [travel_feasibility.of_json(way) for way in known] for text, known in content.items()}


def near_to_json(moments_ms: dict[NearKey, int]) -> dict[str, int]:
    """Last near moments as JSON values."""
    return {f"{_clearing_to_text(key.clearing)} {_pair_to_text(key.pair)}": at_ms for key, at_ms in moments_ms.items()}


def near_of(content: dict[str, int]) -> dict[NearKey, int]:
    """The inverse of `near_to_json`."""
    return {_near_of(*text.split(" ")): at_ms for text, at_ms in content.items()}


def _near_of(target_key: str, radius_mm: str, *pair: str) -> NearKey:
    return NearKey(_clearing_of(target_key, radius_mm), _pair_of(*pair))


def _pair_to_text(pair: DevicePair) -> str:
    return f"{pair.tag_id} {pair.device_id or ''}"


def _pair_of(tag_id: str, device_id: str) -> DevicePair:
    return DevicePair(tag_id, device_id or None)


def _clearing_to_text(key: ClearingKey) -> str:
    return f"{key.target_key} {key.radius_mm or 0}"


def _clearing_of(target_key: str, radius_mm: str) -> ClearingKey:
    return ClearingKey(target_key, int(radius_mm) or None)


def _way_to_text(key: WayKey) -> str:
    pair = f"{_pair_to_text(key.pair)} " if key.pair else ""
    return f"{_clearing_to_text(key.clearing)} {pair}{key.device_id}"


def _way_of(text: str) -> WayKey:
    target_key, radius_mm, *pair, device_id = text.split(" ")
    return WayKey(_clearing_of(target_key, radius_mm), _pair_of(*pair) if pair else None, device_id)
