"""Warnings from alerts that were read late: a person hears nothing of a threat that is over, unless she was warned of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.dispatch.warning.consumer import STALE_MS
from services.dispatch.warning.domain import READ_MS
from tests.support.dispatch.instructed import InstructedPerson, instructed_person
from tests.support.dispatch.instructed import entered as entered_at

LONG_AGO_MS = STALE_MS + 1


@pytest.fixture
async def her(tmp_path: Path) -> AsyncIterator[InstructedPerson]:
    async with instructed_person(tmp_path) as her:
        yield her


async def test_nobody_is_warned_of_an_incident_that_began_and_ended_during_an_outage(her: InstructedPerson) -> None:
    await her.reads(entered_at(1), her.ended(2), ago_ms=LONG_AGO_MS)
    await her.passes(2 * READ_MS)
    assert await her.messages() == []


async def test_a_person_who_was_warned_before_an_outage_hears_of_the_end(her: InstructedPerson) -> None:
    await her.reads(entered_at(1))
    await her.passes(0)
    await her.reads(her.ended(2), ago_ms=LONG_AGO_MS)
    await her.passes(READ_MS)
    assert await her.kinds() == ["INSTRUCTION", "OVER"]


async def test_a_threat_that_may_still_be_active_is_warned_of_when_the_later_alerts_were_read(
    her: InstructedPerson,
) -> None:
    await her.reads(entered_at(1), ago_ms=LONG_AGO_MS)
    await her.passes(READ_MS - 1)
    assert await her.messages() == []
    await her.passes(1)
    assert await her.kinds() == ["INSTRUCTION"]


async def test_a_warning_that_waits_is_dropped_with_its_threat(her: InstructedPerson) -> None:
    await her.reads(entered_at(1), ago_ms=LONG_AGO_MS)
    await her.reads(her.ended(2))
    await her.passes(2 * READ_MS)
    assert await her.messages() == []


async def test_the_present_instruction_outlasts_an_outage_of_the_leg(her: InstructedPerson) -> None:
    await her.reads(entered_at(1))
    await her.passes(0)
    before = (await her.shown()).present
    her.stands_still(20 * 3_600_000)
    after = (await her.shown()).present
    assert before and after == before
    await her.passes(0)
    [message] = await her.messages()
    assert message.message_id == before.message_id and message.repetitions == 1, "once, however long the leg was down"
