"""Penalty delays for refused reports: they slow their own sender, no other sender, and are short on a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.common.clock import MeshClock
from services.common.rpc.errors import InvalidField, StoreFull
from services.ingest import intake
from services.ingest.admission.checks import Checks
from services.ingest.admission.rate_limit import REFUSALS_BURST, REFUSALS_PER_S, RateLimits
from services.ingest.admission.routes import Partitions
from services.ingest.batch import Batch, Reports
from services.ingest.batteries.charges import ReportedBatteries
from services.ingest.domain import Endpoint, EquipmentEvent, Position, Positions, Reason, Sender
from services.ingest.intake import Intake
from services.ingest.log.partitions import LogWriters
from services.ingest.log.writer import Origin
from services.ingest.metrics import IngestMetrics
from services.ingest.sensing.observed import ObservedReports
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


BAD = InvalidField("alarm", "is none")


async def test_one_phones_refusals_hold_up_no_other_phone() -> None:
    isolated = IsolatedIntake()
    calls = [asyncio.ensure_future(isolated.send(phone("flood"), *[BAD] * 16)) for _ in range(3_500)]
    await asyncio.sleep(0.1)
    assert not all(call.done() for call in calls), "the flooding phone itself waits"
    async with asyncio.timeout(UNDELAYED_WITHIN_S):
        await isolated.send(phone("honest"), position("honest"))
        await isolated.send(phone("hers"), panic("hers"), BAD)
    assert isolated.surroundings.stored == ["honest", "hers"]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("sender", [VENDOR, phone("tag")], ids=["vendor", "phone"])
async def test_accepted_reports_are_written_before_their_sender_waits(sender: Sender) -> None:
    isolated = IsolatedIntake()
    isolated.owe(sender, 0.9)
    call = asyncio.ensure_future(isolated.send(sender, position("tag"), panic("tag"), BAD))
    await asyncio.sleep(0.1)
    assert isolated.surroundings.stored == ["tag", "tag"] and not call.done()
    call.cancel()


async def test_calls_of_a_penalised_sender_are_turned_away_unless_they_carry_events() -> None:
    isolated = IsolatedIntake()
    isolated.owe(VENDOR, 20.0)
    with pytest.raises(StoreFull) as refusal:
        await isolated.send(VENDOR, position("tag"))
    assert 10 < refusal.value.retry_after_s < 20 and isolated.surroundings.stored == []
    async with asyncio.timeout(UNDELAYED_WITHIN_S):
        await isolated.send(VENDOR, position("tag"), panic("tag"))
    assert isolated.surroundings.stored == ["tag", "tag"]


async def test_on_a_stream_accepted_reports_do_not_wait_for_earlier_refusals() -> None:
    isolated = IsolatedIntake()
    isolated.owe(VENDOR, 20.0)
    async with asyncio.timeout(UNDELAYED_WITHIN_S):
        await isolated.send(VENDOR, position("tag"), patient=True)
    assert isolated.surroundings.stored == ["tag"]


async def test_the_penalty_delay_after_a_batch_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    isolated = IsolatedIntake()
    monkeypatch.setattr(intake, "MAX_BATCH_PENALTY_S", 0.2)
    isolated.owe(VENDOR, 20.0)
    began_s = time.monotonic()
    await isolated.send(VENDOR, panic("tag"), BAD)
    assert 0.2 <= time.monotonic() - began_s < UNDELAYED_WITHIN_S


async def test_a_device_whose_clock_is_ahead_writes_no_more_contacts_than_reports() -> None:
    isolated = IsolatedIntake()
    ahead = replace(position("tag"), fix_time_ms=time.time_ns() // 1_000_000 + 3_600_000)
    await isolated.send(VENDOR, *[ahead] * 1_000, patient=True)
    contacts = len(isolated.surroundings.stored)
    assert BURST - 1 <= contacts <= BURST  # the limit adds up fractions of a second
    await isolated.send(VENDOR, panic("tag"), position("tag"), patient=True)
    assert len(isolated.surroundings.stored) == contacts + 2, "the contacts use up no other limit"
