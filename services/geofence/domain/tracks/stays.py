"""The stay of a device at a home unit or beacon, beside the device's fixes."""

from __future__ import annotations

from typing import NamedTuple


class UnitStay(NamedTuple):
    """A device's newest presence at a unit."""

    unit_id: str
    since_ms: int
    """Since when the device has been there without a break, ms since 1970 UTC."""
    seen_ms: int
    """When the device was last there."""
    left: bool
    """Whether the device left then."""
