"""What a report says, as the log keeps it, who sends it, and why it is refused. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

FUTURE_MS = 120_000
"""A time by the device more than 2 minutes ahead of the mesh is refused."""
LIVE_MS = 180_000
"""What is older than 3 minutes tells nothing of where somebody is now: it takes the lane of what was buffered."""
MAX_BATCH = 1_000
"""Most reports in one batch."""
ACCURACY_MOST_M = 100_000.0


class Reason(enum.IntEnum):
    """Why a report is refused; the numbers are those of the protos' RefusalCode."""

    INVALID = 1
    CLOCK_AHEAD = 2
    UNKNOWN_DEVICE = 3
    REVOKED = 4
    NOT_YOURS = 5
    TOO_OFTEN = 6


@dataclass(frozen=True, slots=True)
class Sender:
    """Who brings reports."""

    spiffe_id: str
    """Of a vendor; empty for a phone."""
    vendor_id: str
    """Of a vendor; empty for a phone."""
    device_id: str
    """The phone's device, proven by its token; empty for a vendor."""

    @property
    def key(self) -> str:
        """Shares between senders go by it. All phones together are one sender: each of them brings little."""
        return f"vendor/{self.vendor_id}" if self.vendor_id else "phones"

    @property
    def answers_for(self) -> str:
        """What is refused counts by it: of phones each by itself, as what one of them brings is no other's fault."""
        return self.key if self.vendor_id else f"phone/{self.device_id}"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a report isn't taken."""

    index: int
    """Which of the batch."""
    field: str
    """Field of the report."""
    reason: str
    """For a person."""
    code: Reason
    """For a program."""


@dataclass(frozen=True, slots=True)
class Position:
    """A position of a device, quantised as the log keeps it."""

    device_id: str
    report_id: str
    fix_time_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int


@dataclass(frozen=True, slots=True)
class EquipmentEvent:
    """Something that a device says about itself; `event` is the number of the protos' EquipmentKind."""

    device_id: str
    report_id: str
    event: int
    event_time_ms: int


@dataclass(slots=True)
class Positions:
    """Positions as columns of equal length: what is done to a hundred of them at once costs little more than to one."""

    device_ids: list[str]
    report_ids: list[str]
    fix_times_ms: list[int]
    lat_e7: list[int]
    lon_e7: list[int]
    accuracy_mm: list[int]

    def __len__(self) -> int:
        return len(self.device_ids)

    @classmethod
    def of(cls, positions: Sequence[Position]) -> Positions:
        """Columns of single positions."""
        return cls(
            [position.device_id for position in positions],
            [position.report_id for position in positions],
            [position.fix_time_ms for position in positions],
            [position.lat_e7 for position in positions],
            [position.lon_e7 for position in positions],
            [position.accuracy_mm for position in positions],
        )

    def only(self, rows: Sequence[int]) -> Positions:
        """Some of them."""
        return Positions(
            [self.device_ids[i] for i in rows],
            [self.report_ids[i] for i in rows],
            [self.fix_times_ms[i] for i in rows],
            [self.lat_e7[i] for i in rows],
            [self.lon_e7[i] for i in rows],
            [self.accuracy_mm[i] for i in rows],
        )

    def row(self, i: int) -> Position:
        """One of them."""
        return Position(
            self.device_ids[i],
            self.report_ids[i],
            self.fix_times_ms[i],
            self.lat_e7[i],
            self.lon_e7[i],
            self.accuracy_mm[i],
        )

    def add(self, others: Positions) -> None:
        """Puts others behind these."""
        self.device_ids += others.device_ids
        self.report_ids += others.report_ids
        self.fix_times_ms += others.fix_times_ms
        self.lat_e7 += others.lat_e7
        self.lon_e7 += others.lon_e7
        self.accuracy_mm += others.accuracy_mm
