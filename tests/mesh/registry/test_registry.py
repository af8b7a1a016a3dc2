"""The registry process with a real nats-server and three partitions: matches, snapshots, routes and rejections."""

from __future__ import annotations

import asyncio
import itertools
import math
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise

import grpc
import grpc.aio
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from services.common import ids
from services.common.rpc import server
from tandem.registry.v1 import registry_pb2
from tests.conftest import ENGINES
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, SECRET, WITHIN_S, Client, RegistryMesh, running_registry

PARTITIONS = 3


def growing(versions: list[int]) -> bool:
    """Whether each version is greater than the previous one."""
    return all(earlier < later for earlier, later in pairwise(versions))


@pytest.fixture(scope="module", params=ENGINES)
def mesh(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryMesh]:
    """One registry per database engine for the tests of this file. Each test uses different ids and numbers."""
    url = request.getfixturevalue("postgres").new_database() if request.param == "postgres" else ""
    with running_registry(tmp_path_factory.mktemp("registry"), PARTITIONS, url) as running:
        yield running


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


_numbers = itertools.count(1)


def unused_number() -> str:
    """A national number that no other test uses."""
    return f"900101-{next(_numbers):07d}"


@pytest.mark.parametrize("arrival", list(itertools.permutations(("wearer", "tag", "order", "device"))), ids="-".join)
async def test_the_last_snapshot_is_complete_for_any_order_of_arrival(client: Client, arrival: tuple[str, ...]) -> None:
    key = "-".join(name[0] for name in arrival)
    number = unused_number()
    wearer_id, person_id, order_id, tag_id, device_id = (f"{kind}-{key}" for kind in ("w", "p", "o", "t", "d"))
    await client.put(records.person(person_id))
    if arrival.index("tag") < arrival.index("wearer"):
        # The registry rejects a tag of an unknown wearer, so the tag is put once more after the wearer.
        refusal = await client.refusal(records.tag(tag_id, wearer_id))
        assert refusal.code() is grpc.StatusCode.NOT_FOUND
    messages: dict[str, Message] = {
        "wearer": records.wearer(wearer_id, number),
        "tag": records.tag(tag_id, wearer_id),
        "order": records.order(order_id, (person_id,), number),
        "device": records.device(device_id, person_id),
    }
    late = arrival.index("tag") < arrival.index("wearer")
    order_of_puts = [name for name in arrival if not (late and name == "tag")] + ["tag"] * late
    for name in order_of_puts:
        assert await client.put(messages[name]) == ["STORED"]

    snapshots = await client.cases_of(order_id)
    assert growing([snapshot.version for snapshot in snapshots])
    last = snapshots[-1]
    assert (last.wearer_id, list(last.tag_device_ids)) == (wearer_id, [tag_id])
    assert [(person.person_id, list(person.device_ids)) for person in last.persons] == [(person_id, [device_id])]
    assert last.case_id == ids.hash_id("case", order_id, wearer_id)
    assert {p for p, case in await client.cases() if case.order_id == order_id} == {
        ids.partition_of(wearer_id, PARTITIONS)
    }
    assert list((await client.route(tag_id)).partitions) == [ids.partition_of(wearer_id, PARTITIONS)]
    route = await client.route(device_id)
    assert route.subject_id == person_id
    assert list(route.partitions) == sorted(
        {ids.partition_of(wearer_id, PARTITIONS), ids.partition_of(person_id, PARTITIONS)}
    )


async def test_one_person_with_several_orders_and_one_order_without_a_wearer(client: Client) -> None:
    number = unused_number()
    await client.put(records.person("p-many"), records.wearer("w-many", number))
    await client.put(*(records.order(f"o-many-{n}", ("p-many",), number) for n in range(3)))
    await client.put(records.order("o-nobody", ("p-many",), unused_number()))
    assert [len(await client.cases_of(f"o-many-{n}")) for n in range(3)] == [1, 1, 1]
    assert await client.cases_of("o-nobody") == []
    await client.put(records.tag("t-many", "w-many"))
    assert [len(await client.cases_of(f"o-many-{n}")) for n in range(3)] == [2, 2, 2]


async def test_a_repeated_put_changes_nothing(client: Client) -> None:
    number = unused_number()
    messages = (
        records.person("p-same"),
        records.wearer("w-same", number),
        records.tag("t-same", "w-same"),
        records.device("d-same", "p-same"),
        records.order("o-same", ("p-same",), number),
    )
    assert await client.put(*messages) == ["STORED"] * 5
    before = await client.cases()
    assert await client.put(*messages) == ["UNCHANGED"] * 5
    # The same number without its hyphen is the same content.
    assert await client.put(records.wearer("w-same", number.replace("-", ""))) == ["UNCHANGED"]
    assert await client.cases() == before


async def test_an_older_or_conflicting_version_is_not_stored(client: Client) -> None:
    number = unused_number()
    await client.put(records.person("p-grow"), records.wearer("w-grow", number))
    newer = records.order("o-grow", ("p-grow",), number, version=5)
    older = records.order("o-grow", (), number, version=4)
    assert await client.put(newer, older) == ["STORED", "SUPERSEDED"]
    other = records.order("o-grow", (), number, version=5)
    assert (await client.refusal(other)).code() is grpc.StatusCode.ABORTED
    (snapshot,) = await client.cases_of("o-grow")
    assert [person.person_id for person in snapshot.persons] == ["p-grow"]


async def test_an_amended_order_sends_a_complete_snapshot_and_new_routes(client: Client) -> None:
    # Persons in other partitions than the wearer, so that the route shows the partition that the order adds.
    wearer_id = "w-amend"
    wanted = ids.partition_of(wearer_id, PARTITIONS)
    first, second = [f"p-amend-{n}" for n in range(20) if ids.partition_of(f"p-amend-{n}", PARTITIONS) != wanted][:2]
    number = unused_number()
    await client.put(records.person(first), records.person(second), records.wearer(wearer_id, number))
    await client.put(records.device("d-amend-1", first), records.device("d-amend-2", second))
    await client.put(records.order("o-amend", (first,), number))
    assert wanted in (await client.route("d-amend-1")).partitions
    assert wanted not in (await client.route("d-amend-2")).partitions

    amended = records.order("o-amend", (second,), number, version=2)
    amended.places[0].circle.lat_deg = 35.1
    await client.put(amended)
    snapshot = (await client.cases_of("o-amend"))[-1]
    assert snapshot.places[0].circle.lat_deg == 35.1
    assert [person.person_id for person in snapshot.persons] == [second]
    assert wanted not in (await client.route("d-amend-1")).partitions
    assert wanted in (await client.route("d-amend-2")).partitions


async def test_a_moved_tag_leaves_its_old_case_and_joins_the_new_one(client: Client) -> None:
    numbers = unused_number(), unused_number()
    await client.put(records.wearer("w-from", numbers[0]), records.wearer("w-to", numbers[1]))
    await client.put(records.order("o-from", (), numbers[0]), records.order("o-to", (), numbers[1]))
    await client.put(records.tag("t-moves", "w-from"), records.tag("t-moves", "w-to", version=2))
    assert [list(case.tag_device_ids) for case in await client.cases_of("o-from")] == [[], ["t-moves"], []]
    assert [list(case.tag_device_ids) for case in await client.cases_of("o-to")] == [[], ["t-moves"]]
    assert (await client.route("t-moves")).subject_id == "w-to"


async def test_a_corrected_number_withdraws_the_match_and_finds_the_right_one(client: Client) -> None:
    wrong, right = unused_number(), unused_number()
    await client.put(records.wearer("w-wrong", wrong), records.wearer("w-right", right))
    await client.put(records.order("o-fix", (), wrong))
    await client.put(records.order("o-fix", (), right, version=2))
    cases = await client.cases_of("o-fix")
    withdrawn = [case for case in cases if case.wearer_id == "w-wrong"]
    assert len(withdrawn) == 2 and growing([case.version for case in withdrawn])
    assert withdrawn[1].valid_until_ms < withdrawn[0].valid_until_ms
    (found,) = [case for case in cases if case.wearer_id == "w-right"]
    assert found.valid_until_ms == withdrawn[0].valid_until_ms
    # The other agency corrects its record too, so the case becomes valid a second time.
    await client.put(records.wearer("w-wrong", right, version=2))
    renewed = [case for case in await client.cases_of("o-fix") if case.wearer_id == "w-wrong"][-1]
    assert renewed.version > withdrawn[-1].version and renewed.valid_until_ms == found.valid_until_ms


Watch = grpc.aio.UnaryStreamCall[registry_pb2.WatchMatchesRequest, registry_pb2.WatchMatchesResponse]


async def next_match(call: Watch) -> registry_pb2.WatchMatchesResponse:
    """The next match of an open stream."""
    match = await call.read()
    assert isinstance(match, registry_pb2.WatchMatchesResponse)
    return match


async def test_a_watcher_gets_the_matches_after_a_sequence_and_then_new_ones(client: Client) -> None:
    numbers = [unused_number() for _ in range(3)]
    for n, number in enumerate(numbers[:2]):
        await client.put(records.wearer(f"w-watch-{n}", number), records.order(f"o-watch-{n}", (), number))

    def watch(after: int, agency: str) -> Watch:
        request = registry_pb2.WatchMatchesRequest(after_sequence=after)
        return client.stub.WatchMatches(request, metadata=server.bearer(agency, SECRET))

    async with asyncio.timeout(WITHIN_S):
        everything = watch(0, MOJ)
        seen: list[registry_pb2.WatchMatchesResponse] = []
        while not seen or seen[-1].order_id != "o-watch-1":
            seen.append(await next_match(everything))
        assert [match.sequence for match in seen] == sorted({match.sequence for match in seen})
        assert seen[-1].wearer_id == "w-watch-1" and seen[-1].matched_at.seconds > 1_600_000_000
        resumed = watch(seen[-2].sequence, NPA)
        assert await next_match(resumed) == seen[-1]

        await client.put(records.order("o-watch-2", (), numbers[2]), records.wearer("w-watch-2", numbers[2]))
        for call in (everything, resumed):
            match = await next_match(call)
            assert (match.order_id, match.wearer_id) == ("o-watch-2", "w-watch-2")
            assert match.case_id == ids.hash_id("case", "o-watch-2", "w-watch-2")
            call.cancel()


# ── rejections ───────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_an_invalid_field_is_rejected_with_its_path_and_nothing_is_stored(client: Client) -> None:
    number = unused_number()
    await client.put(records.wearer("w-bad", number))
    message = records.order("o-bad", (), number)
    message.places[0].circle.radius_m = math.inf
    refusal = await client.refusal(message)
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    status = rpc_status.from_call(refusal)  # type: ignore[arg-type]
    assert status is not None
    detail = error_details_pb2.BadRequest()
    status.details[0].Unpack(detail)
    assert detail.field_violations[0].field == "order.places[0].circle.radius_m"
    assert await client.cases_of("o-bad") == []
    assert await client.put(records.order("o-bad", (), number)) == ["STORED"]


async def test_a_rejection_does_not_repeat_personal_data(client: Client) -> None:
    message = records.wearer("w-bad-number", "800101-12345678")
    refusal = await client.refusal(message)
    assert refusal.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "wearer.national_id" in str(refusal.details())
    assert "12345678" not in str(refusal.details()) + str(refusal.debug_error_string())


async def test_an_empty_request_and_an_impossible_sequence_are_rejected(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.stub.PutOrder(registry_pb2.PutOrderRequest(), metadata=server.bearer(NPA, SECRET))
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "order" in str(refusal.value.details())
    request = registry_pb2.WatchMatchesRequest(after_sequence=(1 << 64) - 1)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.stub.WatchMatches(request, metadata=server.bearer(NPA, SECRET)).read()
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_name_of_ten_megabytes_is_rejected(client: Client) -> None:
    message = records.person("p-huge")
    message.name = "x" * 10_000_000
    assert (await client.refusal(message)).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    message.name = "x" * 500_000
    assert (await client.refusal(message)).code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_unknown_ids_are_rejected_with_their_field(client: Client) -> None:
    await client.put(records.person("p-known"))
    for message, field in (
        (records.tag("t-x", "w-unknown"), "tag.wearer_id"),
        (records.device("d-x", "p-unknown"), "device.person_id"),
        (records.order("o-x", ("p-known", "p-unknown"), unused_number()), "order.protected_person_ids[1]"),
    ):
        refusal = await client.refusal(message)
        assert refusal.code() is grpc.StatusCode.NOT_FOUND
        assert field in str(refusal.details())


async def test_a_device_id_is_either_a_tag_or_a_protective_device(client: Client) -> None:
    await client.put(records.wearer("w-either", unused_number()), records.person("p-either"))
    await client.put(records.tag("t-either", "w-either"), records.device("d-either", "p-either"))
    for message, field in (
        (records.tag("d-either", "w-either"), "tag.device_id"),
        (records.device("t-either", "p-either"), "device.device_id"),
    ):
        refusal = await client.refusal(message)
        assert refusal.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert field in str(refusal.details())


@pytest.mark.parametrize(
    ("metadata", "code"),
    [
        (server.bearer("spiffe://vendor/acme", SECRET), grpc.StatusCode.PERMISSION_DENIED),
        (server.bearer(MOJ, SECRET), grpc.StatusCode.PERMISSION_DENIED),
        (server.bearer("spiffe://npa/desk/seoul", SECRET), grpc.StatusCode.PERMISSION_DENIED),
        (server.bearer(NPA, "another secret"), grpc.StatusCode.UNAUTHENTICATED),
        (server.bearer("spiffe://npa/nobody", SECRET), grpc.StatusCode.UNAUTHENTICATED),
        ((("authorization", "Bearer %%%"),), grpc.StatusCode.UNAUTHENTICATED),
        ((), grpc.StatusCode.UNAUTHENTICATED),
    ],
)
async def test_only_the_police_records_system_puts_an_order(
    client: Client, metadata: tuple[tuple[str, str], ...], code: grpc.StatusCode
) -> None:
    request = registry_pb2.PutOrderRequest(order=records.order("o-role", (), unused_number()))
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.stub.PutOrder(request, metadata=metadata)
    assert refusal.value.code() is code
    assert client.mesh.query("select * from orders where order_id = 'o-role'") == []
