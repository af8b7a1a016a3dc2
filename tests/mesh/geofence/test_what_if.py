"""What-if questions to running evaluators: permissions, the row of the ledger, and no effect on real alerts."""

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
from services.registry.disclosure.translate import parse_disclosure
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
    """Steps of a wearer at these distances north of the home, a minute apart."""
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
    """All messages of DISCLOSURES, which become rows of the ledger."""
    last = (await bus.bounds_of(flow.DISCLOSURES.name)).last
    disclosures: list[bytes] = []
    if last:
        async for messages in pull.read(bus, flow.DISCLOSURES.name, 1):
            disclosures += [message.data for message in messages]
            if messages[-1].sequence >= last:
                break
    return disclosures


async def real_case(bus: Bus, clients: list[Client]) -> None:
    """Publishes a real case whose wearer is 57 m from the protected person, unless an earlier test did."""
    log_ends = (await bus.bounds_of(flow.log_stream(0))).last
    if log_ends < 10:  # no earlier test has published it
        log_ends = await approach(bus, "1")
    for client in clients:
        await client.case("case-1", log_ends)
    async with asyncio.timeout(WITHIN_S):
        before: list[int] = []
        while (
            True
        ):  # until the figures of each alert are stored in two rounds, so that no real output is pending any more
            now = await counts(bus)
            if now == before and 6 <= now[1] == now[2]:
                return
            before = now
            await asyncio.sleep(0.3)


async def counts(bus: Bus) -> list[int]:
    """Last sequences of the log, of ALERTS and of MEASURES."""
    return [(await bus.bounds_of(name)).last for name in (flow.log_stream(0), flow.ALERTS.name, flow.MEASURES.name)]


async def test_either_evaluator_answers_the_same_and_publishes_nothing(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        before, state = await counts(bus), await clients[0].case("case-1")
        for request, who in ((made_up(2500, 900, 60), OPERATOR), (of_records(2500, 900, 60), POLICE)):
            answer, other = [await ask(client, request, who) for client in clients]
            assert answer.SerializeToString(deterministic=True) == other.SerializeToString(deterministic=True)
            entered = [measured for measured in answer.alerts if measured.alert.kind == alert_pb2.RING_ENTERED]
            assert [measured.alert.ring_m for measured in entered] == [2000, 1000, 100]
            assert {measured.alert.target_id for measured in entered} == {"home1"}
            assert entered[-1].alert.demand == geometry_pb2.RESPOND and entered[-1].alert.destinations
            assert entered[-1].measure.HasField("distance_m")
        assert await counts(bus) == before and await clients[0].case("case-1") == state


async def test_answers_do_not_depend_on_real_positions(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        assert {ring.target_id for ring in (await clients[0].case("case-1")).open_rings} == {"p1", "home1"}
        for who in (POLICE, REVIEWER):
            # If real reports counted, the wearer would enter a ring of the protected person, who is at home.
            answer = await ask(clients[0], of_records(60, 50), who)
            assert {alert.alert.target_id for alert in answer.alerts} == {"home1"}
            assert not (await ask(clients[0], of_records(9000, 9000), who)).alerts


async def test_only_permitted_roles_may_ask_about_a_real_case(evaluators: Evaluators) -> None:
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
        assert await rows(bus) == before, "rejected and made-up questions disclose nothing"


async def test_a_disclosure_of_a_real_case_is_recorded_before_the_answer(evaluators: Evaluators) -> None:
    async with connected(evaluators) as (bus, clients):
        await real_case(bus, clients)
        before = await rows(bus)
        await ask(clients[0], of_records(60), POLICE)
        await ask(clients[1], of_records(60), REVIEWER)
        recorded = [parse_disclosure(row) for row in (await rows(bus))[len(before) :]]
        assert [row.who for row in recorded] == [row.recipient for row in recorded] == [POLICE, REVIEWER]
        assert {(row.record_kind, row.record_id, row.order_id, row.reference, row.legal_basis) for row in recorded} == {
            ("ORDER", "order-1", "order-1", "case-1", "STALKING_9_1_2")
        }
        evaluators.nats.kill()
        error = await refusal(clients[0], of_records(60), POLICE)
        assert error.code() == grpc.StatusCode.UNAVAILABLE
        assert (await ask(clients[0], made_up(60), POLICE)).alerts, "a made-up question needs no row of the ledger"
