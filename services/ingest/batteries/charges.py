"""Battery charges that devices report with their positions, and when a battery will be empty. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from services.ingest.domain import ReportedCharge

RECHARGED_PCT = 2.0
"""A charge that is higher than the last one by so much was caused by a charger, and not by the measurement."""
MIN_FALL_PCT = 3.0
"""Minimum fall since the last charging for an estimate: the steps of a charge are 1 percent, and often 5."""


@dataclass(frozen=True, slots=True)
class BatteryCharge:
    """Newest charge of a device, and the one from which on it falls."""

    charge_pct: float
    at_ms: int
    """Time of the fix with which it was reported, milliseconds since 1970 UTC."""
    full_pct: float
    """Charge when the device was last charged, or when it was first heard."""
    full_at_ms: int

    @classmethod
    def first(cls, charge_pct: float, at_ms: int) -> BatteryCharge:
        """The battery of a device that is heard for the first time, or was charged."""
        return cls(charge_pct=charge_pct, at_ms=at_ms, full_pct=charge_pct, full_at_ms=at_ms)

    @property
    def empty_ms(self) -> int | None:
        """When the battery will be empty at the rate since `full_at_ms`; None if the charge fell too little for an estimate."""
        fell_pct, took_ms = self.full_pct - self.charge_pct, self.at_ms - self.full_at_ms
        if fell_pct < MIN_FALL_PCT or took_ms <= 0:
            return None
        return self.at_ms + round(self.charge_pct * took_ms / fell_pct)

    def after(self, charge_pct: float, at_ms: int) -> BatteryCharge:
        """The battery after a newer report."""
        if charge_pct >= self.charge_pct + RECHARGED_PCT or charge_pct >= self.full_pct:
            return BatteryCharge.first(charge_pct, at_ms)
        return replace(self, charge_pct=charge_pct, at_ms=at_ms)


class ReportedBatteries:
    """Newest charge of each device, as this process and the others accepted it."""

    def __init__(self) -> None:
        self._charges: dict[str, BatteryCharge] = {}
        self._unshared: dict[str, ReportedCharge] = {}
        """Charges that the other processes don't know, by device."""

    def get(self, device_id: str) -> BatteryCharge | None:
        """Returns the battery of a device; None if it has reported no charge."""
        return self._charges.get(device_id)

    def lowest_first(self, max_pct: float) -> list[tuple[str, BatteryCharge]]:
        """Returns the devices with at most this charge, the lowest first."""
        found = [item for item in self._charges.items() if item[1].charge_pct <= max_pct]
        return sorted(found, key=lambda item: (item[1].charge_pct, item[0]))

    def accepted(self, charges: Sequence[ReportedCharge], device_ids: Collection[str]) -> None:
        """Notes the charges of the devices whose reports were accepted. A charge that is older than the newest counts no more."""
        if not charges:
            return
        accepted = set(device_ids)
        for charge in charges:
            if charge.device_id not in accepted:
                continue
            before = self._charges.get(charge.device_id)
            if self._note(charge) and (before is None or round(before.charge_pct) != round(charge.charge_pct)):
                self._unshared[charge.device_id] = charge

    def accepted_elsewhere(self, charges: Iterable[ReportedCharge]) -> None:
        """Notes charges that another process accepted."""
        for charge in charges:
            self._note(charge)

    def unshared(self) -> list[ReportedCharge]:
        """Returns the charges that weren't returned before."""
        charges, self._unshared = list(self._unshared.values()), {}
        return charges

    def _note(self, charge: ReportedCharge) -> bool:
        device_id, charge_pct, at_ms = charge
        known = self._charges.get(device_id)
        if known is not None and at_ms <= known.at_ms:
            return False
        self._charges[device_id] = known.after(charge_pct, at_ms) if known else BatteryCharge.first(charge_pct, at_ms)
        return True
