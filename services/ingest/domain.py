"""Types of ingest: reports as the log keeps them, their senders, battery charges, and the reasons for refusing a report. Pure."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, TypeAlias

FUTURE_MS = 120_000
"""Maximum time by which a report may be ahead of mesh time, milliseconds. A report further ahead is refused with CLOCK_AHEAD."""
LIVE_MS = 180_000
"""Maximum age of a live report, milliseconds. An older report says nothing about the present, so it goes into the backfill lane."""
MAX_BATCH = 1_000
"""Maximum number of reports in a batch."""
MAX_REPORTED_ACCURACY_M = 100_000.0
"""Maximum accuracy radius of a position, metres."""


class Reason(enum.IntEnum):
    """Reason for refusing a report; the numbers are those of the proto's RefusalCode."""

    INVALID = 1
    CLOCK_AHEAD = 2
    UNKNOWN_DEVICE = 3
    REVOKED = 4
    NOT_YOURS = 5
    TOO_OFTEN = 6


class Endpoint(enum.Enum):
    """Endpoint on which reports come; the values are labels of metrics."""

    STREAM = "stream"
    UNARY = "unary"
    HTTP = "http"


@dataclass(frozen=True, slots=True)
class Sender:
    """Sender of reports: a vendor, or a phone."""

    spiffe_id: str
    """SPIFFE id of a vendor; empty for a phone."""
    vendor_id: str
    """Id of a vendor; empty for a phone."""
    device_id: str
    """Device of a phone, proven by its token; empty for a vendor."""

    @property
    def key(self) -> str:
        """Key for fair shares between senders. All phones share one key, as each of them sends little."""
        return f"vendor/{self.vendor_id}" if self.vendor_id else "phones"

    @property
    def refusal_key(self) -> str:
        """Key for rejection quotas. Each phone has its own, so one misbehaving phone doesn't throttle the others."""
        return self.key if self.vendor_id else f"phone/{self.device_id}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A refused report of a batch, and the reason."""

    index: int
    """Index of the report in its batch."""
    field: str
    """Field of the report that is wrong."""
    reason: str
    """Reason as a text, for people."""
    code: Reason
    """Reason as a code, for programs."""


@dataclass(frozen=True, slots=True)
class Position:
    """Position of a device, quantised as the log keeps it."""

    device_id: str
    report_id: str
    fix_time_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int
    source: int = 0
    """Number of the proto's PositionSource; 0 if the sender doesn't name a source."""


@dataclass(frozen=True, slots=True)
class UnitPresence:
    """Presence of a device at a home unit or beacon."""

    device_id: str
    report_id: str
    unit_id: str
    since_ms: int
    """Since when the device has been there without a break, milliseconds since 1970 UTC."""
    seen_ms: int
    """When the device was last there, milliseconds since 1970 UTC."""
    left: bool
    """Whether the device left at `seen_ms`."""


@dataclass(frozen=True, slots=True)
class ContactReport:
    """A report of a device that says nothing about where the device is. It shows that the device isn't silent."""

    device_id: str
    report_id: str


@dataclass(frozen=True, slots=True)
class EquipmentEvent:
    """Event of a device's own equipment, such as an open strap; `event` is a number of the proto's EquipmentKind."""

    device_id: str
    report_id: str
    event: int
    event_time_ms: int
    silent: bool = False
    """Whether a panic was called in silence, after which nothing may be seen or heard on the phone."""


class ReportedCharge(NamedTuple):
    """Battery charge that a device reported with a position."""

    device_id: str
    charge_pct: float
    """Charge, percent, 0 to 100."""
    fix_time_ms: int
    """Time of the position, milliseconds since 1970 UTC."""


Report: TypeAlias = Position | EquipmentEvent | UnitPresence | ContactReport
"""Report of a device."""


@dataclass(slots=True)
class Positions:
    """Positions as columns of equal length. Work on whole columns costs little more for a hundred positions than for one."""

    device_ids: list[str]
    report_ids: list[str]
    fix_times_ms: list[int]
    lat_e7: list[int]
    lon_e7: list[int]
    accuracy_mm: list[int]
    sources: list[int] = field(default_factory=list)
    """Source of each position. Empty if no sender names one."""

    def __len__(self) -> int:
        return len(self.device_ids)

    @classmethod
    def of(cls, positions: Sequence[Position]) -> Positions:
        """Makes columns of single positions."""
        sources = [position.source for position in positions]
        return cls(
            device_ids=[position.device_id for position in positions],
            report_ids=[position.report_id for position in positions],
            fix_times_ms=[position.fix_time_ms for position in positions],
            lat_e7=[position.lat_e7 for position in positions],
            lon_e7=[position.lon_e7 for position in positions],
            accuracy_mm=[position.accuracy_mm for position in positions],
            sources=sources if any(sources) else [],
        )

    def only(self, rows: Sequence[int]) -> Positions:
        """Returns a copy with these rows only."""
        return Positions(
            device_ids=[self.device_ids[i] for i in rows],
            report_ids=[self.report_ids[i] for i in rows],
            fix_times_ms=[self.fix_times_ms[i] for i in rows],
            lat_e7=[self.lat_e7[i] for i in rows],
            lon_e7=[self.lon_e7[i] for i in rows],
            accuracy_mm=[self.accuracy_mm[i] for i in rows],
            sources=[self.sources[i] for i in rows] if self.sources else [],
        )

    def row(self, i: int) -> Position:
        """Returns row `i` as a single position."""
        return Position(
            device_id=self.device_ids[i],
            report_id=self.report_ids[i],
            fix_time_ms=self.fix_times_ms[i],
            lat_e7=self.lat_e7[i],
            lon_e7=self.lon_e7[i],
            accuracy_mm=self.accuracy_mm[i],
            source=self.sources[i] if self.sources else 0,
        )

    def add(self, others: Positions) -> None:
        """Appends the rows of `others`."""
        if self.sources or others.sources:
            self.sources = [*(self.sources or [0] * len(self)), *(others.sources or [0] * len(others))]
        self.device_ids += others.device_ids
        self.report_ids += others.report_ids
        self.fix_times_ms += others.fix_times_ms
        self.lat_e7 += others.lat_e7
        self.lon_e7 += others.lon_e7
        self.accuracy_mm += others.accuracy_mm


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
