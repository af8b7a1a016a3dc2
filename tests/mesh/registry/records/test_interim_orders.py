"""Interim protection orders (Stalking Punishment Act 17-7) through the registry process. On both engines."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.registry.domain.lifecycle import PROTECTION_FROM_MS
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.registry import NPA, Client, RegistryMesh

Code = grpc.StatusCode
FROM_S = PROTECTION_FROM_MS // 1000
DAY_S = 86_400
_numbers = itertools.count(1)


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


def order(
    order_id: str, number: str, kind: int, from_s: int, until_s: int | None, *, version: int = 1
) -> registry_pb2.Order:
    message = records.order(order_id, national_id=number, version=version)
    message.type = kind  # type: ignore[assignment]
    message.valid_from.CopyFrom(Timestamp(seconds=from_s))
    message.ClearField("valid_until")
    if until_s is not None:
        message.valid_until.CopyFrom(Timestamp(seconds=until_s))
    return message


async def interim_of(client: Client) -> tuple[str, str]:
    """The id of an interim protection order without an end, and the number of its respondent, who is a wearer."""
    n = next(_numbers)
    number, order_id = f"820101-1{n:06d}", f"interim-{n}"
    await client.put(records.person(), records.wearer(f"w-{n}", number), records.tag(f"tag-{n}", f"w-{n}"))
    await client.put(order(order_id, number, registry_pb2.ORDER_TYPE_STALKING_INTERIM, FROM_S, None))
    return order_id, number


async def test_stalking_act_17_7_an_interim_order_is_valid_until_the_decision(client: Client) -> None:
    order_id, _ = await interim_of(client)
    [snapshot] = await client.cases_of(order_id)
    assert (snapshot.valid_from_ms, snapshot.valid_until_ms) == (PROTECTION_FROM_MS, 0)
    [(kept,)] = client.mesh.query(f"select valid_until_ms from cases where order_id = '{order_id}'")  # noqa: S608
    [(destroy_ms,)] = client.mesh.query(f"select destroy_at_ms from data_keys where owner = 'orders/{order_id}'")  # noqa: S608
    assert kept is None and destroy_ms is None


async def test_stalking_act_17_7_2_the_decision_takes_over_without_a_gap_in_one_call(client: Client) -> None:
    order_id, number = await interim_of(client)
    decision_s = FROM_S + 20 * DAY_S
    decision = order(
        f"d-{order_id}", number, registry_pb2.ORDER_TYPE_STALKING_PROTECTION, decision_s, decision_s + 90 * DAY_S
    )
    request = registry_pb2.PutOrderRequest(
        order=decision, replaces=registry_pb2.ReplacedOrder(order_id=order_id, source_version=2)
    )
    for outcome in (registry_pb2.STORED, registry_pb2.UNCHANGED):
        assert (await client.ask(client.stub.PutOrder, request, NPA)).outcome == outcome
    snapshots = [case for _, case in await client.cases() if case.order_id in (order_id, f"d-{order_id}")]
    assert [case.order_id for case in snapshots] == [order_id, f"d-{order_id}", order_id]
    follows, ended = snapshots[1:]
    assert ended.valid_until_ms == follows.valid_from_ms == decision_s * 1000
    rows = client.mesh.query("select order_id, stage, end_reason from order_stages order by source_version")
    stages = [tuple(row)[1:] for row in rows if row[0] == order_id]
    assert stages == [("ISSUED", ""), ("LAPSED", "DECIDED")]


async def test_a_decision_that_cant_take_over_changes_nothing(client: Client) -> None:
    order_id, number = await interim_of(client)
    _, stranger = await interim_of(client)
    decision_s = FROM_S + 20 * DAY_S
    protection = registry_pb2.ORDER_TYPE_STALKING_PROTECTION
    for decision, replaced, code, text in (
        (
            order("d-1", stranger, protection, decision_s, decision_s + DAY_S),
            order_id,
            Code.INVALID_ARGUMENT,
            "replaces.order_id: can't be ended by this order: covering_order_id must be the id of an order against the same respondent",
        ),
        (
            order("d-2", number, protection, FROM_S, decision_s),
            order_id,
            Code.INVALID_ARGUMENT,
            "replaces.order_id: can't be ended by this order: ended_at must be later than the valid_from of the interim",
        ),
        (
            order("d-3", number, protection, decision_s, decision_s + DAY_S),
            "interim-none",
            Code.NOT_FOUND,
            "replaces.order_id: no such order",
        ),
    ):
        request = registry_pb2.PutOrderRequest(
            order=decision, replaces=registry_pb2.ReplacedOrder(order_id=replaced, source_version=2)
        )
        found = await client.rejection(client.stub.PutOrder, request, NPA)
        assert found[0] is code and found[1].startswith(text)
        assert not await client.cases_of(decision.order_id)
    assert len(await client.cases_of(order_id)) == 1


async def test_decided_needs_the_moment_at_which_the_decision_begins(client: Client) -> None:
    order_id, number = await interim_of(client)
    decision_s = FROM_S + 20 * DAY_S
    protection = registry_pb2.ORDER_TYPE_STALKING_PROTECTION
    await client.put(order(f"d-{order_id}", number, protection, decision_s, decision_s + DAY_S))
    request = registry_pb2.EndOrderRequest(
        order_id=order_id,
        source_version=2,
        reason=registry_pb2.END_REASON_DECIDED,
        ended_at=Timestamp(seconds=decision_s - 60),
        covering_order_id=f"d-{order_id}",
    )
    code, text = await client.rejection(client.stub.EndOrder, request, NPA)
    assert code is Code.INVALID_ARGUMENT and text.startswith("ended_at: must be the valid_from of the covering order")
    request.ended_at.seconds = decision_s
    assert (await client.ask(client.stub.EndOrder, request, NPA)).stage == registry_pb2.ORDER_STAGE_LAPSED


@pytest.mark.parametrize(
    ("kind", "from_s", "until_s", "text"),
    [
        ("STALKING_INTERIM", FROM_S - 1, None, "order.type: this type is in force from 2027-04-22T00:00:00+09:00"),
        ("STALKING_PROTECTION", FROM_S - 1, FROM_S + DAY_S, "order.type: this type is in force from 2027-04-22"),
        ("STALKING_PROTECTION", FROM_S, None, "order.valid_until: is missing: only an interim protection order"),
        ("UNSPECIFIED", FROM_S, None, "order.valid_until: is missing"),
        ("STALKING_INTERIM", FROM_S, FROM_S, "order.valid_until: must be later than valid_from"),
    ],
)
async def test_types_before_their_date_of_force_and_orders_without_an_end_are_rejected(
    client: Client, kind: str, from_s: int, until_s: int | None, text: str
) -> None:
    message = order("o-bad", "830101-1000001", registry_pb2.OrderType.Value(f"ORDER_TYPE_{kind}"), from_s, until_s)
    found = await client.refusal(message)
    assert found.code() is Code.INVALID_ARGUMENT and (found.details() or "").startswith(text)
