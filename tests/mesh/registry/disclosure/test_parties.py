"""The names behind an order by gRPC: for desks alone, on grounds that name the incident, with one row in the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from services.common.rpc import server
from tandem.registry.v1 import disclosure_pb2, parties_pb2, registry_pb2
from tests.support.registry import records
from tests.support.registry.registry import NPA, SECRET, WITHIN_S, Client, RegistryMesh

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/seoul", "spiffe://npa/desk/seoul"
BASIS = "TAG_DECREE_23_10"


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    """Client of a registry with an order; of its two protected persons one has a record."""
    async with mesh.connected() as connected:
        order = records.order("o-parties", ("p-parties",), national_id="780717-1234567")
        order.type = registry_pb2.ORDER_TYPE_STALKING_APPROACH
        order.respondent.name, order.respondent.birth_date = "남궁비밀", "1978-07-17"
        order.respondent.phone, order.respondent.address = "010-9876-5432", "서울특별시 비밀구 숨은로 17"
        await connected.put(records.person("p-parties"), order)
        yield connected


async def read(client: Client, who: str, **grounds: object) -> parties_pb2.ReadPartiesResponse:
    whole = {"legal_basis": BASIS, "purpose": disclosure_pb2.PURPOSE_ENFORCEMENT, "reference": "incident-1"} | grounds
    request = parties_pb2.ReadPartiesRequest(
        order_id="o-parties",
        grounds=disclosure_pb2.Grounds(**whole),  # type: ignore[arg-type]
    )
    answer: parties_pb2.ReadPartiesResponse = await client.order_people.ReadParties(
        request, metadata=server.bearer(who, SECRET), timeout=WITHIN_S
    )
    return answer


def rows(client: Client) -> list[tuple[str, str, str, str]]:
    return client.mesh.query(
        "select who, legal_basis, record_kind, record_id from ledger where reference = 'incident-1' order by sequence"
    )


async def test_each_desk_reads_what_its_role_may_see_with_one_row(client: Client) -> None:
    before = rows(client)
    police, probation = await read(client, NPA_DESK), await read(client, MOJ_DESK)
    for answer in (police, probation):
        assert (answer.respondent.name, answer.respondent.birth_date) == ("남궁비밀", "1978-07-17")
        assert [person.person_id for person in answer.protected_persons] == ["p-parties"]
        assert answer.protected_persons[0].name
        assert answer.article == "STALKING_9_1_2"
        assert "비밀구" not in str(answer)
    assert police.rings_m and not probation.rings_m, "a ring says how near she is"
    added = rows(client)[len(before) :]
    assert added == [(who, BASIS, "ORDER", "o-parties") for who in (NPA_DESK, MOJ_DESK)]


async def test_nothing_is_disclosed_without_grounds_or_to_another_role(client: Client) -> None:
    before = rows(client)
    for grounds, field in (
        ({"legal_basis": ""}, "legal_basis"),
        ({"legal_basis": "TAG_16_2"}, "legal_basis"),
        ({"purpose": disclosure_pb2.PURPOSE_AUDIT}, "purpose"),
        ({"reference": ""}, "reference"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read(client, NPA_DESK, **grounds)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in (refused.value.details() or "")
    for stranger in ("spiffe://tandem/reviewer/one", "spiffe://tandem/operator/one", NPA):
        with pytest.raises(grpc.aio.AioRpcError) as denied:
            await read(client, stranger)
        assert denied.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert rows(client) == before
