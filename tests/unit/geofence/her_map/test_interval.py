"""A region leaves for a device at most each 10 s, also if its requests come together, and none leaves without its rows."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from services.common.errors import BudgetSpent, Unavailable
from services.geofence.her_map import RegionMapApi
from tandem.common.v1 import ledger_pb2, notice_pb2
from tandem.geofence.v1 import region_map_pb2
from tests.support.geofence.stories import T0_MS, Story

STEPS = 30


class Outbox:
    """An outbox that writes rows when it may, or refuses them."""

    def __init__(self) -> None:
        self.may_write, self.refuses = asyncio.Event(), False
        self.rows: list[ledger_pb2.Disclosure] = []

    async def record(self, rows: list[ledger_pb2.Disclosure]) -> None:
        await self.may_write.wait()
        if self.refuses:
            raise Unavailable("the disk refused")
        self.rows += rows


def served(outbox: Outbox) -> RegionMapApi:
    """The map of a person whom a wearer comes near, with an open notice."""
    story = Story()
    story.case(0, "1", notice_ground=notice_pb2.TAG_15_2)
    for n in range(STEPS + 1):
        story.at(1 + 15 * n, "phone", 0)
        story.at(1 + 15 * n, "tag", 1_300 - 30 * n)
    evaluators: Any = {0: SimpleNamespace(is_current=True, state=story.state)}
    clock: Any = SimpleNamespace(now_ms=lambda: T0_MS + (15 * STEPS + 6) * 1_000)
    fake: Any = outbox
    return RegionMapApi(evaluators, 1, outbox=fake, clock=clock)


async def read(api: RegionMapApi) -> region_map_pb2.RegionOutcome.ValueType:
    context: Any = None
    (view,) = (await api.ReadRegionMap(region_map_pb2.ReadRegionMapRequest(device_id="phone"), context)).views
    return view.outcome


async def test_of_requests_that_come_together_one_gets_the_region() -> None:
    outbox = Outbox()
    api = served(outbox)
    asked = [asyncio.create_task(read(api)) for _ in range(3)]
    await asyncio.sleep(0)
    outbox.may_write.set()
    answers = await asyncio.gather(*asked, return_exceptions=True)
    assert answers[0] == region_map_pb2.REGION_SHOWN and len(outbox.rows) == 2
    assert all(isinstance(answer, BudgetSpent) for answer in answers[1:])


async def test_a_region_whose_rows_were_refused_counts_as_not_given() -> None:
    outbox = Outbox()
    api = served(outbox)
    outbox.may_write.set()
    outbox.refuses = True
    with pytest.raises(Unavailable):
        await read(api)
    outbox.refuses = False
    assert await read(api) == region_map_pb2.REGION_SHOWN
    with pytest.raises(BudgetSpent):
        await read(api)
