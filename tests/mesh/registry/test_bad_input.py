"""Invalid input over gRPC: rejected with the path of its field, and nothing is stored."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common.rpc import server
from services.registry.records.kinds import RECORD_TYPES
from tandem.registry.v1 import registry_pb2
from tests.support.registry import records
from tests.support.registry.registry import NPA, SECRET, Client, RegistryMesh, running_registry

TABLES = (*(kind.table.name for kind in RECORD_TYPES), "cases", "reviews", "record_digests", "match_keys")
Code = grpc.StatusCode


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    with running_registry(tmp_path_factory.mktemp("registry"), 1) as running:
        yield running


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


def order(spoil: Callable[[registry_pb2.Order], object]) -> registry_pb2.Order:
    message = records.order("o-bad", ("p-known",))
    spoil(message)
    return message


def wearer(**changes: Any) -> registry_pb2.Wearer:
    message = records.wearer("w-bad")
    message.MergeFrom(registry_pb2.Wearer(**changes))
    return message


def _bow_tie(message: registry_pb2.Order) -> None:
    message.places.append(records.polygon((37, 127), (38, 128), (38, 127), (37, 128)))


def _polygon_in_beijing(message: registry_pb2.Order) -> None:
    message.places.append(records.polygon((39.9, 116.3), (39.9, 116.4), (40.0, 116.4)))


def _circle_in_beijing(message: registry_pb2.Order) -> None:
    message.places[0].circle.lat_deg, message.places[0].circle.lon_deg = 39.98, 116.3


def _early_encounter(message: registry_pb2.Order) -> None:
    message.encounters.append(records.encounter())
    getattr(message.encounters[0], "from").seconds = message.valid_from.seconds - 1


def _encounter_in_beijing(message: registry_pb2.Order) -> None:
    message.encounters.append(records.encounter())
    message.encounters[0].places.append(records.circle())
    circle = message.encounters[0].places[0].circle
    circle.lat_deg, circle.lon_deg = 39.98, 116.3


def _ends_first(message: registry_pb2.Order) -> None:
    message.valid_until.seconds = message.valid_from.seconds - 1


def _radius(radius_m: float) -> Callable[[registry_pb2.Order], None]:
    def spoil(message: registry_pb2.Order) -> None:
        message.places[0].circle.radius_m = radius_m

    return spoil


def _respondent(**changes: Any) -> Callable[[registry_pb2.Order], None]:
    return lambda message: message.respondent.MergeFrom(registry_pb2.Respondent(**changes))


BAD: dict[str, tuple[Message, str]] = {
    "number too short": (wearer(national_id="800101-123456"), "wearer.national_id"),
    "number with letters": (order(_respondent(national_id="800101-12345AB")), "order.respondent.national_id"),
    "30 February": (wearer(birth_date="1980-02-30"), "wearer.birth_date"),
    "month 13": (order(_respondent(birth_date="1980-13-01")), "order.respondent.birth_date"),
    "validity ends before it starts": (order(_ends_first), "order.valid_until"),
    "no validity": (order(lambda m: m.ClearField("valid_from")), "order.valid_from"),
    "polygon crosses itself": (order(_bow_tie), "order.places[1].polygon"),
    "polygon outside of the service area": (order(_polygon_in_beijing), "order.places[1].polygon.vertices[0]"),
    "circle outside of the service area": (order(_circle_in_beijing), "order.places[0].circle"),
    "radius too large": (order(_radius(20_001)), "order.places[0].circle.radius_m"),
    "radius below 0": (order(_radius(-1)), "order.places[0].circle.radius_m"),
    "radius not a number": (order(_radius(float("nan"))), "order.places[0].circle.radius_m"),
    "an encounter outside of the validity": (order(_early_encounter), "order.encounters[0].from"),
    "an encounter outside of the service area": (
        order(_encounter_in_beijing),
        "order.encounters[0].places[0].circle",
    ),
    "extensions below 0": (order(lambda m: setattr(m, "extensions", -1)), "order.extensions"),
    "an unknown type": (order(lambda m: setattr(m, "type", 99)), "order.type"),
    "an unknown sex": (order(_respondent(sex=7)), "order.respondent.sex"),
    "a phone of two lines": (wearer(phone="010\n1234"), "wearer.phone"),
    "an address too long": (wearer(address="x" * 401), "wearer.address"),
    "a name of half a megabyte": (wearer(name="가" * 170_000), "wearer.name"),
    "a blank name": (wearer(name="  "), "wearer.name"),
    "a name of invisible characters": (wearer(name="\u200b\u2060 "), "wearer.name"),
    "an address that a screen shows turned": (wearer(address="\u202e21 teertS"), "wearer.address"),
    "a name that a screen shows turned": (order(_respondent(name="\u2067Kim\u2069")), "order.respondent.name"),
}


def stored(mesh: RegistryMesh) -> dict[str, list[Any]]:
    return {table: mesh.query(f"select * from {table} order by 1, 2") for table in TABLES}  # noqa: S608


@pytest.mark.parametrize("name", BAD)
async def test_invalid_input_is_rejected_at_its_field_and_nothing_is_stored(client: Client, name: str) -> None:
    message, field = BAD[name]
    await client.put(records.person("p-known"))
    before = stored(client.mesh)
    refusal = await client.refusal(message)
    assert refusal.code() is Code.INVALID_ARGUMENT
    status = rpc_status.from_call(refusal)  # type: ignore[arg-type]
    assert status is not None
    detail = error_details_pb2.BadRequest()
    status.details[0].Unpack(detail)
    assert [field_violation.field for field_violation in detail.field_violations] == [field]
    assert stored(client.mesh) == before


async def test_unknown_ids_are_rejected_and_nothing_is_stored(client: Client) -> None:
    before = stored(client.mesh)
    end = registry_pb2.EndOrderRequest(
        order_id="o-none",
        source_version=1,
        reason=registry_pb2.END_REASON_ACQUITTAL,
        ended_at=Timestamp(seconds=1_700_000_000),
    )
    for message, field in (
        (records.tag("t-bad", "w-none"), "tag.wearer_id"),
        (records.device("d-bad", "p-none"), "device.person_id"),
        (records.order("o-bad", ("p-none",)), "order.protected_person_ids[0]"),
    ):
        refusal = await client.refusal(message)
        assert refusal.code() is Code.NOT_FOUND and field in str(refusal.details())
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await client.stub.EndOrder(end, metadata=server.bearer(NPA, SECRET))
    assert refused.value.code() is Code.NOT_FOUND and "order_id" in str(refused.value.details())
    assert stored(client.mesh) == before


async def test_an_older_version_changes_nothing_and_different_content_is_a_conflict(
    client: Client,
) -> None:
    await client.put(records.person("p-back", version=5))
    before = stored(client.mesh)
    older = records.person("p-back", version=4)
    older.name = "다른 사람"
    assert await client.put(older) == ["SUPERSEDED"]
    older.source_version = 5
    assert (await client.refusal(older)).code() is Code.ABORTED
    older.source_version = -1
    refusal = await client.refusal(older)
    assert refusal.code() is Code.INVALID_ARGUMENT and "source_version" in str(refusal.details())
    assert stored(client.mesh) == before


async def test_ten_megabytes_are_rejected_by_their_size(client: Client) -> None:
    before = stored(client.mesh)
    assert (await client.refusal(wearer(name="x" * 10_000_000))).code() is Code.RESOURCE_EXHAUSTED
    assert stored(client.mesh) == before


@pytest.mark.parametrize(
    "name", [b"\xed\xa0\x80", b"\xff\xfe", b"a\xc0\x80"], ids=["surrogate", "no UTF-8", "overlong"]
)
async def test_invalid_utf_8_is_rejected(client: Client, name: bytes) -> None:
    before = stored(client.mesh)
    message = records.person("p-bytes")
    message.name = "?" * len(name)
    raw = registry_pb2.PutProtectedPersonRequest(protected_person=message).SerializeToString()
    assert raw.count(b"?" * len(name)) == 1
    async with server.channel(client.mesh.address) as channel:
        method: grpc.aio.UnaryUnaryMultiCallable[bytes, Any] = channel.unary_unary(
            "/tandem.registry.v1.RegistryService/PutProtectedPerson"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await method(raw.replace(b"?" * len(name), name), metadata=server.bearer(NPA, SECRET))
    assert refusal.value.code() is Code.INVALID_ARGUMENT
    assert "isn't a tandem.registry.v1.PutProtectedPersonRequest" in str(refusal.value.details())
    assert stored(client.mesh) == before
