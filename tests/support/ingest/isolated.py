"""An intake without a log: the parts around it know every device, store at once, and count nothing."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.errors import InvalidField
from services.ingest.admission.checks import REFUSALS_BURST, REFUSALS_PER_S, Checks, RateLimits
from services.ingest.admission.routes import Partitions
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, EquipmentEvent, Position, Positions, Reason, ReportedBatteries, Sender
from services.ingest.intake import Intake
from services.ingest.log import LogWriters, Origin
from services.ingest.metrics import IngestMetrics
from services.ingest.observed import ObservedReports
from tandem.common.v1 import log_pb2

VENDOR = Sender("spiffe://vendor/a", "a", "")
BURST = 300
"""Number of reports that a device may send at once."""
UNDELAYED_WITHIN_S = 8.0
"""Time within which an undelayed call ends, in s."""


class PhoneSurroundings:
    """Stands in for all parts around the intake: knows every device, stores at once, and counts nothing."""

    def __init__(self) -> None:
        self.stored: list[str] = []
        """Devices of the stored reports."""

    # routes
    def allowed(self, sender: Sender) -> Mapping[str, Partitions]:
        return {sender.device_id or "tag": (0,)}

    async def is_current(self, device_ids: object) -> bool:
        return True

    async def resolve(self, sender: Sender, device_id: str, *, is_current: bool) -> Partitions | Reason:
        return Reason.UNKNOWN_DEVICE

    # the writer of a partition
    def positions(self, origin: Origin, positions: Positions, **_: Any) -> None:
        self.stored += positions.device_ids

    def equipment(self, origin: Origin, event: EquipmentEvent) -> None:
        self.stored.append(event.device_id)

    def heard(self, origin: Origin, device_id: str, report_id: str) -> None:
        self.stored.append(device_id)

    # quarantine
    def refused(self, *_: Any, phone_id: str) -> None:
        pass


class LastReports:
    def stored(self, *_: Any) -> None:
        pass


class IsolatedIntake:
    """An intake with stand-ins for the parts around it."""

    def __init__(self) -> None:
        self.surroundings = cast(Any, PhoneSurroundings())
        self.rate_limits = RateLimits(10.0, BURST)
        last = cast(Any, LastReports())
        clock = MeshClock()
        self.intake = Intake(
            Checks(self.surroundings, self.surroundings, self.rate_limits, clock=clock),
            LogWriters({0: self.surroundings}, clock),
            last,
            rate_limits=self.rate_limits,
            clock=clock,
            observed=ObservedReports(),
            batteries=ReportedBatteries(),
            metrics=IngestMetrics(CollectorRegistry()),
        )

    def owe(self, sender: Sender, penalty_s: float) -> None:
        """Counts as many refused reports of a sender as give it a penalty delay of `penalty_s`."""
        refused = round(REFUSALS_BURST + penalty_s * REFUSALS_PER_S)
        self.rate_limits.refusals.charge(sender.refusal_key, refused, time.monotonic())

    async def send(
        self, sender: Sender, *reports: Position | EquipmentEvent | InvalidField, patient: bool = False
    ) -> None:
        await self.intake.admit(
            Batch(), sender, Reports.of(reports, [""] * len(reports)), endpoint=Endpoint.HTTP, patient=patient
        )


def phone(name: str) -> Sender:
    return Sender("", "", name)


def position(device_id: str) -> Position:
    return Position(device_id, "r", time.time_ns() // 1_000_000, 375_000_000, 1_270_000_000, 5_000)


def panic(device_id: str) -> EquipmentEvent:
    return EquipmentEvent(device_id, "p", log_pb2.PANIC_BUTTON, time.time_ns() // 1_000_000)
