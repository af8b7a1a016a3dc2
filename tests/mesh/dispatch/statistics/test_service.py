"""The statistics of a leg over gRPC: who may read them, what is refused, and that a list of people is in the stream of disclosures."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from services.common import times
from services.common.clock import wall_us
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from tandem.common.v1 import ledger_pb2
from tandem.dispatch.v1 import statistics_pb2, statistics_pb2_grpc
from tandem.registry.v1 import disclosure_pb2
from tests.support.common.nats import TestServer
from tests.support.dispatch.dispatch import DESKS, PATIENCE_S, SECRET, alert, publish, running, settings

REVIEWER = "spiffe://tandem/reviewer/kim"
GROUNDS = disclosure_pb2.Grounds(legal_basis="STALKING_9_1_3_2", purpose=disclosure_pb2.PURPOSE_AUDIT)
DAY_MS = 86_400_000
INCIDENTS = 3
PERSON, WEARER = statistics_pb2.BURDENED_PROTECTED_PERSON, statistics_pb2.BURDENED_WEARER


def period(days: float = 2) -> dict[str, Any]:
    """Fields of a request for the days until tomorrow."""
    until_ms = wall_us() // 1000 + DAY_MS
    return {"from": times.to_timestamp(until_ms - int(days * DAY_MS)), "until": times.to_timestamp(until_ms)}


class Caller:
    """A caller of a leg's statistics with a SPIFFE id."""

    def __init__(self, channel: grpc.aio.Channel, spiffe_id: str) -> None:
        self._stub = statistics_pb2_grpc.StatisticsServiceStub(channel)
        self._identity = server.bearer(spiffe_id, SECRET)

    async def statistics(self, **fields: Any) -> statistics_pb2.GetStatisticsResponse:
        request = statistics_pb2.GetStatisticsRequest(**(fields or period()))
        return await self._stub.GetStatistics(request, metadata=self._identity, timeout=20)

    async def burdens(self, **fields: Any) -> statistics_pb2.ListBurdensResponse:
        request = statistics_pb2.ListBurdensRequest(**{**period(), "grounds": GROUNDS, "kind": PERSON, **fields})
        return await self._stub.ListBurdens(request, metadata=self._identity, timeout=20)


@asynccontextmanager
async def counted_leg(leg: str, nats: TestServer, bus: Bus, folder: Path) -> AsyncIterator[grpc.aio.Channel]:
    """A leg that has counted three incidents, and a channel to it."""
    configured = settings(leg, nats, folder)
    async with running(configured), server.channel(f"127.0.0.1:{configured.port}") as channel:
        await publish(bus, *(alert(number, incident=f"incident-{number}") for number in range(1, INCIDENTS + 1)))
        reviewer = Caller(channel, REVIEWER)
        async with asyncio.timeout(PATIENCE_S):
            while (found := await reviewer.statistics()).behind or found.incidents < INCIDENTS:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        yield channel


async def code_of(call: Any) -> str:
    """Status code and details of a refused call."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return f"{caught.value.code().name} {caught.value.details()}"


async def test_a_list_of_people_needs_grounds_and_is_disclosed_first(
    nats: TestServer, bus: Bus, tmp_path: Path
) -> None:
    async with counted_leg("police", nats, bus, tmp_path) as channel:
        police, reviewer = Caller(channel, DESKS["police"]), Caller(channel, REVIEWER)
        for caller in (police, reviewer):
            found = await caller.statistics()
            assert "p1" not in str(found) and "w1" not in str(found)
            (persons,) = [spread for spread in found.burdens if spread.kind == PERSON]
            assert (persons.people, persons.max_incidents) == (1, INCIDENTS)
        assert [row async for row in disclosures(bus)] == []
        for grounds in (
            disclosure_pb2.Grounds(),
            disclosure_pb2.Grounds(legal_basis="TAG_16_2", purpose=GROUNDS.purpose),
        ):
            assert (await code_of(reviewer.burdens(grounds=grounds))).startswith("INVALID_ARGUMENT grounds.legal_basis")
        assert [row async for row in disclosures(bus)] == []
        listed = await reviewer.burdens()
        assert [(burden.subject_id, burden.incidents) for burden in listed.burdens] == [("p1", INCIDENTS)]
        assert not listed.next_page_token
        rows = [row async for row in disclosures(bus)]
        assert [(row.who, row.record_kind, row.record_id, row.order_id, row.legal_basis) for row in rows] == [
            (REVIEWER, "PROTECTED_PERSON", "p1", "order-1", "STALKING_9_1_3_2")
        ]
        empty = await reviewer.statistics(**{"from": times.to_timestamp(0), "until": times.to_timestamp(DAY_MS)})
        assert empty.incidents == 0 and not empty.response_times and not empty.burdens


async def test_wrong_requests_are_refused_by_field(nats: TestServer, bus: Bus, tmp_path: Path) -> None:
    async with counted_leg("police", nats, bus, tmp_path) as channel:
        reviewer = Caller(channel, REVIEWER)
        now, later = period()["from"], period()["until"]
        for fields, says in (
            ({"until": later}, "from is missing"),
            ({"from": now}, "until is missing"),
            ({"from": later, "until": now}, "until must be after"),
            ({"from": times.to_timestamp(0), "until": later}, "until must be at most 3660 days"),
        ):
            said = await code_of(reviewer.statistics(**fields))
            assert said.startswith("INVALID_ARGUMENT") and says in said.replace(":", ""), said
        for fields, says in (
            ({"kind": statistics_pb2.BURDENED_PLACE}, "kind"),
            ({"page_size": 101}, "page_size"),
            ({"page_token": "-1"}, "page_token"),
            ({"page_token": "9" * 300}, "page_token"),
            ({"page_token": "²"}, "page_token"),
        ):
            said = await code_of(reviewer.burdens(**fields))
            assert said.startswith(f"INVALID_ARGUMENT {says}"), said
        for stranger in (DESKS["probation"], "spiffe://tandem/operator/kim", DESKS["warning"]):
            assert (await code_of(Caller(channel, stranger).statistics())).startswith("PERMISSION_DENIED")
            assert (await code_of(Caller(channel, stranger).burdens())).startswith("PERMISSION_DENIED")


async def test_probation_lists_wearers_alone(nats: TestServer, bus: Bus, tmp_path: Path) -> None:
    async with counted_leg("probation", nats, bus, tmp_path) as channel:
        desk = Caller(channel, DESKS["probation"])
        found = await desk.statistics()
        assert {spread.kind for spread in found.burdens} == {WEARER}
        assert (await code_of(desk.burdens())).startswith("INVALID_ARGUMENT kind")
        assert [burden.subject_id for burden in (await desk.burdens(kind=WEARER)).burdens] == ["w1"]


async def disclosures(bus: Bus) -> AsyncIterator[ledger_pb2.Disclosure]:
    """All messages of DISCLOSURES."""
    last = (await bus.bounds_of(flow.DISCLOSURES.name)).last
    if last:
        async for message in pull.between(bus, flow.DISCLOSURES.name, 1, last=last):
            yield ledger_pb2.Disclosure.FromString(message.data)
