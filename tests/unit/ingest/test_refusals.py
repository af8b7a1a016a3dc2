"""Penalty delays for refused reports: they slow their own sender, no other sender, and are short on a stream."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace

import pytest

from services.common.errors import InvalidField, StoreFull
from services.ingest import intake
from services.ingest.domain import Sender
from tests.support.ingest.isolated import BURST, UNDELAYED_WITHIN_S, VENDOR, IsolatedIntake, panic, phone, position

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
