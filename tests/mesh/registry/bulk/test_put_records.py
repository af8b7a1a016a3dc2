"""PutRecords over gRPC: a result for each record, refusals that harm no other record, limits, and streams that break."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc
import grpc.aio
import pytest

from services.client import calls
from services.client.calls import AnyRecord, put_records
from services.common.rpc import server
from services.registry.agencies.bulk import MAX_BATCH
from tandem.registry.v1 import reconciliation_pb2, registry_pb2
from tests.support.registry import listing, records
from tests.support.registry.registry import MOJ, NPA, SECRET, Client, RegistryMesh

Code = grpc.StatusCode
OUTCOMES = registry_pb2.PutOutcome


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


def code(result: registry_pb2.RecordResult) -> int:
    """Number of the status that refuses a record."""
    assert result.HasField("refusal") and result.outcome == OUTCOMES.PUT_OUTCOME_UNSPECIFIED
    return result.refusal.code


async def put(client: Client, agency: str, put_now: Sequence[AnyRecord]) -> list[registry_pb2.RecordResult]:
    return await put_records(client.stub, put_now, server.bearer(agency, SECRET))


async def batch(
    client: Client, agency: str, request: registry_pb2.PutRecordsRequest
) -> list[registry_pb2.RecordResult]:
    """Results of one batch on a stream of its own."""
    stream = client.stub.PutRecords(iter([request]), metadata=server.bearer(agency, SECRET))
    return [result async for response in stream for result in response.results]


async def test_bad_records_harm_no_other_and_each_is_refused_with_its_field(client: Client) -> None:
    count, bad = 600, {3, 250, 333, 599}
    wearers = [records.wearer(f"many-{n}", f"850101-{n:07d}") for n in range(count)]
    for n in bad:
        wearers[n].birth_date = "1985-13-01"
    results = await put(client, MOJ, wearers)
    assert [n for n, result in enumerate(results) if result.HasField("refusal")] == sorted(bad)
    refusal = results[250].refusal
    assert code(results[250]) == Code.INVALID_ARGUMENT.value[0]
    (violation,) = refusal.field_violations
    assert violation.field == "wearer.birth_date" and "example: 1990-01-31" in violation.description
    assert client.mesh.query("select count(*) from wearers where wearer_id like 'many-%'")[0][0] == count - len(bad)
    repeated = await put(client, MOJ, wearers)
    assert {result.outcome for n, result in enumerate(repeated) if n not in bad} == {OUTCOMES.UNCHANGED}


async def test_a_record_sees_the_records_before_it_and_ids_may_repeat(client: Client) -> None:
    number = "870101-0000001"
    assert not [
        r
        for r in await put(client, MOJ, [records.wearer("w-in", number), records.tag("t-in", "w-in")])
        if r.refusal.code
    ]
    first, second = records.order("o-in", ("p-in",), number), records.order("o-in", ("p-in",), number, version=2)
    other = records.order("o-in", ("p-in",), number, version=2)
    other.rings.add(radius_m=7, action=4)
    results = await put(client, NPA, [first, records.person("p-in"), first, first, second, other, first])
    assert code(results[0]) == Code.NOT_FOUND.value[0] and "order.protected_person_ids[0]" in results[0].refusal.message
    assert [result.outcome for result in results[1:5]] == [
        OUTCOMES.STORED,
        OUTCOMES.STORED,
        OUTCOMES.UNCHANGED,
        OUTCOMES.STORED,
    ]
    assert [results[2].stage, results[4].stage] == [registry_pb2.ORDER_STAGE_ISSUED, registry_pb2.ORDER_STAGE_AMENDED]
    assert code(results[5]) == Code.ABORTED.value[0] and results[6].outcome == OUTCOMES.SUPERSEDED
    first_case, second_case = await client.cases_of("o-in")
    assert first_case.version < second_case.version and list(second_case.tag_device_ids) == ["t-in"]


async def test_an_unknown_kind_and_the_other_agencys_kind_are_refused_alone(client: Client) -> None:
    # A newer client's kind of record is an unknown field here.
    unknown = registry_pb2.Record.FromString(b"\xfa\x01\x00")
    known = registry_pb2.Record(wearer=records.wearer("w-known", "880101-0000001"))
    foreign = registry_pb2.Record(protected_person=records.person("p-foreign"))
    results = await batch(client, MOJ, registry_pb2.PutRecordsRequest(records=[unknown, foreign, known]))
    assert [code(result) for result in results[:2]] == [Code.INVALID_ARGUMENT.value[0], Code.PERMISSION_DENIED.value[0]]
    assert results[0].refusal.field_violations[0].field == "record"
    assert results[2].outcome == OUTCOMES.STORED
    assert client.mesh.query("select 1 from protected_persons where person_id = 'p-foreign'") == []


async def test_a_batch_with_too_many_records_ends_the_stream_and_stores_nothing_of_it(client: Client) -> None:
    many = [registry_pb2.Record(tag=records.tag(f"t-{n}", "w-none")) for n in range(MAX_BATCH + 1)]
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await batch(client, MOJ, registry_pb2.PutRecordsRequest(records=many))
    assert refusal.value.code() is Code.INVALID_ARGUMENT and "at most 500" in (refusal.value.details() or "")
    assert await batch(client, MOJ, registry_pb2.PutRecordsRequest()) == []


async def test_a_record_too_large_for_a_message_is_refused_and_the_others_are_stored(client: Client) -> None:
    large = records.person("p-large")
    large.name = "x" * (1 << 20)
    results = await put(client, NPA, [records.person("p-before"), large, records.person("p-after")])
    assert [result.outcome for result in (results[0], results[2])] == [OUTCOMES.STORED] * 2
    assert code(results[1]) == Code.RESOURCE_EXHAUSTED.value[0] and "at most" in results[1].refusal.message
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await batch(client, NPA, registry_pb2.PutRecordsRequest(records=[registry_pb2.Record(protected_person=large)]))
    assert refusal.value.code() is Code.RESOURCE_EXHAUSTED


async def test_answered_batches_survive_a_broken_stream_and_the_client_resends_the_others(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "BATCH", 10)
    wearers = [records.wearer(f"broken-{n}", f"890101-{n:07d}") for n in range(60)]
    killed = False

    def on_answered(_: int) -> None:
        nonlocal killed
        if not killed:
            killed = True
            client.mesh.service.kill()
            assert client.mesh.query("select count(*) from wearers where wearer_id like 'broken-%'")[0][0] >= 10
            client.mesh.service.start()

    results = await put_records(client.stub, wearers, server.bearer(MOJ, SECRET), on_answered=on_answered)
    assert len(results) == len(wearers) and not any(result.HasField("refusal") for result in results)
    assert client.mesh.query("select count(*) from wearers where wearer_id like 'broken-%'")[0][0] == len(wearers)


async def test_a_client_that_leaves_in_the_middle_leaves_whole_batches(client: Client) -> None:
    requests = [
        registry_pb2.PutRecordsRequest(
            records=[
                registry_pb2.Record(wearer=records.wearer(f"left-{b}-{n}", f"860101-{b * 20 + n:07d}"))
                for n in range(20)
            ]
        )
        for b in range(5)
    ]
    stream = client.stub.PutRecords(iter(requests), metadata=server.bearer(MOJ, SECRET))
    assert len((await anext(aiter(stream))).results) == 20
    stream.cancel()
    await client.put(records.wearer("left-last", "860102-0000001"))
    counts = client.mesh.query(
        "select substr(wearer_id, 1, 6), count(*) from wearers where wearer_id like 'left-_-%' group by 1"
    )
    assert counts and {count for _, count in counts} == {20}


async def test_the_records_that_reconcile_names_are_repaired_in_bulk(client: Client) -> None:
    theirs = [records.person(f"repaired-{n}", version=2) for n in range(30)]
    await put(client, NPA, [*(records.person(f"repaired-{n}") for n in range(10)), *theirs[10:20]])
    by_id = {person.person_id: person for person in theirs}
    named = await differing(client, theirs)
    assert len(named) == 20
    await put(client, NPA, [by_id[person_id] for person_id in named])
    assert await differing(client, theirs) == []


async def differing(client: Client, theirs: Sequence[registry_pb2.ProtectedPerson]) -> list[str]:
    """Ids of these persons that the registry lacks or stores otherwise."""
    request = reconciliation_pb2.ReconcileRequest(records=map(listing.listed, theirs))
    answers = client.stub.Reconcile(iter([request]), metadata=server.bearer(NPA, SECRET))
    found = [difference.record_id async for answer in answers for difference in answer.differences]
    return [record_id for record_id in found if record_id.startswith("repaired-")]
