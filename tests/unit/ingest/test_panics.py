"""A panic of a phone has a lane of its own: it is stored although the share of all phones is full of other reports."""

from __future__ import annotations

import asyncio

import pytest

from services.common.errors import StoreFull
from services.ingest.batch import Reports
from services.ingest.domain import Endpoint, EquipmentEvent, Position
from services.ingest.intake import InFlightLimiter
from tests.support.ingest.isolated import UNDELAYED_WITHIN_S, IsolatedIntake, panic, phone, position


def of(*reports: Position | EquipmentEvent) -> Reports:
    return Reports.of(reports, [report.device_id for report in reports])


async def test_a_phones_panic_is_stored_while_all_shares_are_full() -> None:
    isolated = IsolatedIntake()
    full = isolated.intake._limiter = InFlightLimiter(max_sender=1, max_all=1)
    await full.enter(phone("other").key, 1, patient=True)
    with pytest.raises(StoreFull):
        await isolated.intake.accept(phone("hers"), of(position("hers")), endpoint=Endpoint.HTTP)
    async with asyncio.timeout(UNDELAYED_WITHIN_S):
        await isolated.intake.accept(
            phone("hers"), of(position("hers"), panic("hers")), endpoint=Endpoint.HTTP, is_panic=True
        )
    assert isolated.surroundings.stored == ["hers", "hers"] and isolated.intake.in_flight == 1


async def test_a_panic_beyond_the_bound_of_its_lane_waits_and_is_not_refused() -> None:
    isolated = IsolatedIntake()
    lane = isolated.intake._panics = InFlightLimiter(max_sender=1, max_all=1)
    await lane.enter("panic/other", 1, patient=True)
    sent = asyncio.ensure_future(
        isolated.intake.accept(phone("hers"), of(panic("hers")), endpoint=Endpoint.HTTP, is_panic=True)
    )
    for _ in range(20):
        await asyncio.sleep(0)
    assert not sent.done() and isolated.surroundings.stored == []
    lane.leave("panic/other", 1)
    await sent
    assert isolated.surroundings.stored == ["hers"]
