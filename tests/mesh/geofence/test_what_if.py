"""What-if questions to running evaluators: who may ask what, the row for the ledger, and that nothing real comes of it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common.messaging import flow, pull
from services.common.messaging.bus import Bus
from services.common.rpc import server
from services.registry.translate_ledger import parse_disclosure
from tandem.common.v1 import alert_pb2, geometry_pb2
from tandem.geofence.v1 import what_if_pb2
from tandem.registry.v1 import disclosure_pb2
from tests.support.geofence.evaluators import (
    OPERATOR,
    POLICE,
    PROBATION,
    REVIEWER,
    WITHIN_S,
    Client,
    Evaluators,
    approach,
    connected,
    fields_of,
    running_evaluators,
)
from tests.support.geofence.log import E7_PER_KM, LAT_E7, LON_E7, case_entry
from tests.support.ingest.ingest import SECRET

GROUNDS = disclosure_pb2.Grounds(legal_basis="STALKING_9_1_2", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT)


@pytest.fixture(scope="module")
def evaluators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Evaluators]:
    with running_evaluators(tmp_path_factory.mktemp("one"), 1) as running:
        yield running


def walk(*norths_m: float) -> list[what_if_pb2.WhatIfStep]:
    """The wearer so far north of the home, a minute apart."""
    steps = []
    for n, north_m in enumerate(norths_m):
        point = geometry_pb2.Point(lat_deg=(LAT_E7 + north_m * E7_PER_KM / 1000) / 1e7, lon_deg=LON_E7 / 1e7)
        step = what_if_pb2.WhatIfStep(subject_id="w1", position=what_if_pb2.WhatIfPosition(point=point, accuracy_m=5))
        step.at.FromMilliseconds(1_800_000_000_000 + n * 60_000)
        steps.append(step)
    return steps


def made_up(*norths_m: float) -> what_if_pb2.EvaluateRequest:
    return what_if_pb2.EvaluateRequest(case=case_entry("1", place=True).case, steps=walk(*norths_m))


def of_records(*norths_m: float, case_id: str = "case-1", grounds: Any = GROUNDS) -> what_if_pb2.EvaluateRequest:
    return what_if_pb2.EvaluateRequest(case_id=case_id, grounds=grounds, steps=walk(*norths_m))


async def ask(client: Client, request: what_if_pb2.EvaluateRequest, who: str) -> what_if_pb2.EvaluateResponse:
    answer: what_if_pb2.EvaluateResponse = await client.what_if.Evaluate(
        request, metadata=server.bearer(who, SECRET), timeout=WITHIN_S
    )
    return answer


async def refusal(client: Client, request: what_if_pb2.EvaluateRequest, who: str) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await ask(client, request, who)
    return refused.value


async def rows(bus: Bus) -> list[bytes]:
    """Disclosures on their way to the ledger."""
    last = (await bus.bounds_of(flow.DISCLOSURES.name)).last
    found: list[bytes] = []
    if last:
        async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
            found += [message.data for message in messages]
            if messages[-1].sequence >= last:
                break
    return found


async def real_case(bus: Bus, clients: list[Client]) -> None:
    """A real case, whose wearer stands 57 m from the protected person."""
    log_ends = (await bus.bounds_of(flow.log_stream(0))).last
    if log_ends < 10:  # not there from an earlier test
        log_ends = await approach(bus, "1")
    for client in clients:
        await client.case("case-1", log_ends)
    async with asyncio.timeout(WITHIN_S):
        before: list[int] = []
        while True:  # until the figures of each alert are stored, at two looks: nothing real is on its way from here on
            found = await counts(bus)
            if found == before and 6 <= found[1] == found[2]:
                return
            before = found
            await asyncio.sleep(0.3)


async def counts(bus: Bus) -> list[int]:
    """Messages of the log, of alerts and of figures."""
    return [(await bus.bounds_of(name)).last for name in (flow.log_stream(0), flow.ALERTS.name, flow.MEASURES.name)]


async def test_either_evaluator_answers_the_same_and_nothing_real_comes_of_it(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        before, state = await counts(bus), await clients[0].case("case-1")
        for request, who in ((made_up(2500, 900, 60), OPERATOR), (of_records(2500, 900, 60), POLICE)):
            one, other = [await ask(client, request, who) for client in clients]
            assert one.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
            of_place = [told for told in one.alerts if told.alert.kind == alert_pb2.RING_ENTERED]
            assert [told.alert.ring_m for told in of_place] == [2000, 1000, 100]
            assert {told.alert.target_id for told in of_place} == {"home1"}
            assert of_place[-1].alert.demand == geometry_pb2.RESPOND and of_place[-1].alert.destinations
            assert of_place[-1].measure.HasField("distance_m")
        assert await counts(bus) == before and await clients[0].case("case-1") == state


async def test_no_answer_rests_on_where_anybody_really_is(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        assert {ring.target_id for ring in (await clients[0].case("case-1")).open_rings} == {"p1", "home1"}
        for who in (POLICE, REVIEWER):
            # A real report of either side would enter a ring of the person, who is at home.
            answer = await ask(clients[0], of_records(60, 50), who)
            assert {alert.alert.target_id for alert in answer.alerts} == {"home1"}
            assert not (await ask(clients[0], of_records(9000, 9000), who)).alerts


async def test_who_may_ask_what(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        client, before = clients[0], await rows(bus)
        for request in (made_up(60), of_records(60)):
            assert (await refusal(client, request, PROBATION)).code() == grpc.StatusCode.PERMISSION_DENIED
        assert (await refusal(client, of_records(60), OPERATOR)).code() == grpc.StatusCode.PERMISSION_DENIED
        for who in (OPERATOR, POLICE, REVIEWER):
            assert (await ask(client, made_up(60), who)).alerts
        nothing = disclosure_pb2.Grounds()
        unlisted = disclosure_pb2.Grounds(legal_basis="CURIOSITY", purpose=disclosure_pb2.PURPOSE_AUDIT)
        aimless = disclosure_pb2.Grounds(legal_basis="STALKING_9_1_2")
        for grounds, field in ((nothing, "legal_basis"), (unlisted, "legal_basis"), (aimless, "purpose")):
            error = await refusal(client, of_records(60, grounds=grounds), POLICE)
            assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
            assert fields_of(error) == [f"grounds.{field}"]
        assert (await refusal(client, of_records(60, case_id="case-9"), POLICE)).code() == grpc.StatusCode.NOT_FOUND
        assert fields_of(await refusal(client, what_if_pb2.EvaluateRequest(steps=walk(60)), POLICE)) == ["subject"]
        assert fields_of(await refusal(client, of_records(), POLICE)) == ["steps"]
        assert await rows(bus) == before, "what is refused or made up discloses nothing"


async def test_a_real_case_is_a_row_for_the_ledger_before_it_is_an_answer(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        before = await rows(bus)
        await ask(clients[0], of_records(60), POLICE)
        await ask(clients[1], of_records(60), REVIEWER)
        taken = [parse_disclosure(row) for row in (await rows(bus))[len(before) :]]
        assert [one.who for one in taken] == [one.recipient for one in taken] == [POLICE, REVIEWER]
        assert {(one.record_kind, one.record_id, one.order_id, one.reference, one.legal_basis) for one in taken} == {
            ("ORDER", "order-1", "order-1", "case-1", "STALKING_9_1_2")
        }
        evaluators.nats.kill()
        error = await refusal(clients[0], of_records(60), POLICE)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert (await ask(clients[0], made_up(60), POLICE)).alerts, "what discloses nothing needs no row"
