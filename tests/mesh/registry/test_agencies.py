"""The gRPC interface for the agencies: ends, warnings, reconciliation and reviews. On both engines."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.rpc import server
from tandem.registry.v1 import reconciliation_pb2, registry_pb2, review_pb2
from tests.support.registry import listing, records
from tests.support.registry.registry import MOJ, NPA, SECRET, WITHIN_S, Client, RegistryMesh

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/test", "spiffe://npa/desk/test"
Listed = reconciliation_pb2.ListedRecord
PutOutcome = registry_pb2.PutOutcome


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


_numbers = itertools.count(1)


def unused_number() -> str:
    """A national number that no other test uses and that isn't similar to any other."""
    return f"800101-{2_000_000 + next(_numbers) * 7919:07d}"


# ── life cycle of an order ───────────────────────────────────────────────────────────────────────────────────────────


async def put_order(client: Client, order: registry_pb2.Order) -> registry_pb2.PutOrderResponse:
    return await client.stub.PutOrder(registry_pb2.PutOrderRequest(order=order), metadata=server.bearer(NPA, SECRET))


async def end_order(client: Client, request: registry_pb2.EndOrderRequest) -> registry_pb2.EndOrderResponse:
    return await client.stub.EndOrder(request, metadata=server.bearer(NPA, SECRET))


async def test_the_case_follows_an_order_from_issue_to_lapse(client: Client) -> None:
    number = "800101-1234567"  # its check digit fails
    await client.put(records.wearer("w-life", number))
    measure = records.order("o-life", (), number)
    measure.type = registry_pb2.ORDER_TYPE_POLICE_EMERGENCY
    answer = await put_order(client, measure)
    assert (answer.outcome, answer.stage) == (PutOutcome.STORED, registry_pb2.ORDER_STAGE_ISSUED)
    # A validity of 76 years exceeds the month of an emergency measure, which gives a warning and no error.
    assert {warning.field for warning in answer.warnings} == {"order.respondent.national_id", "order.valid_until"}
    measure.source_version, measure.duration_reason = 2, "as the court has ordered"
    measure.places[0].circle.lat_deg = 36.9
    measure.encounters.append(records.encounter())
    measure.encounters[0].places.append(records.circle("court"))
    answer = await put_order(client, measure)
    assert answer.stage == registry_pb2.ORDER_STAGE_AMENDED
    assert {warning.field for warning in answer.warnings} == {"order.respondent.national_id"}
    measure.source_version, measure.valid_until.seconds = 3, 4_000_000_001
    assert (await put_order(client, measure)).stage == registry_pb2.ORDER_STAGE_EXTENDED

    end = registry_pb2.EndOrderRequest(
        order_id="o-life",
        source_version=4,
        reason=registry_pb2.END_REASON_COVERED_BY_COURT_ORDER,
        ended_at=Timestamp(seconds=1_700_000_000),
        covering_order_id="o-court",
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await end_order(client, end)
    assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT and "covering" in str(refusal.value.details())
    await client.put(records.order("o-court", (), number))
    ended = await end_order(client, end)
    assert (ended.outcome, ended.stage) == (PutOutcome.STORED, registry_pb2.ORDER_STAGE_LAPSED)
    assert (await end_order(client, end)).outcome == PutOutcome.UNCHANGED
    # A late record with an older version doesn't undo the end.
    assert (await put_order(client, measure)).outcome == PutOutcome.SUPERSEDED
    cases = await client.cases_of("o-life")
    assert [list(case.encounters) for case in cases] == [[], *[list(measure.encounters)] * 3]
    ends = [case.valid_until_ms for case in cases]
    assert ends == [4_000_000_000_000, 4_000_000_000_000, 4_000_000_001_000, 1_700_000_000_000]
    stages = client.mesh.query("select stage from order_stages where order_id = 'o-life' order by source_version")
    assert [row[0] for row in stages] == ["ISSUED", "AMENDED", "EXTENDED", "LAPSED"]
    # A record with a greater version does.
    measure.source_version = 5
    await put_order(client, measure)
    assert (await client.cases_of("o-life"))[-1].valid_until_ms == 4_000_000_001_000


async def test_the_end_of_an_unknown_order_or_tag_is_rejected(client: Client) -> None:
    when = Timestamp(seconds=1_700_000_000)
    end = registry_pb2.EndOrderRequest(
        order_id="o-none", source_version=2, reason=registry_pb2.END_REASON_ACQUITTAL, ended_at=when
    )
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await end_order(client, end)
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND and "order_id" in str(refusal.value.details())
    tag = registry_pb2.EndTagRequest(device_id="t-none", source_version=2, removed_at=when)
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await client.stub.EndTag(tag, metadata=server.bearer(MOJ, SECRET))
    assert refusal.value.code() is grpc.StatusCode.NOT_FOUND and "device_id" in str(refusal.value.details())


async def test_a_removed_tag_leaves_its_cases(client: Client) -> None:
    number = unused_number()
    await client.put(records.wearer("w-off", number), records.tag("t-off", "w-off"), records.order("o-off", (), number))
    off = registry_pb2.EndTagRequest(device_id="t-off", source_version=2, removed_at=Timestamp(seconds=1_700_000_000))
    answer = await client.stub.EndTag(off, metadata=server.bearer(MOJ, SECRET))
    assert answer.outcome == PutOutcome.STORED
    assert (await client.stub.EndTag(off, metadata=server.bearer(MOJ, SECRET))).outcome == PutOutcome.UNCHANGED
    assert await client.put(records.tag("t-off", "w-off")) == ["SUPERSEDED"]
    assert [list(case.tag_device_ids) for case in await client.cases_of("o-off")] == [["t-off"], []]
    await client.put(records.tag("t-off", "w-off", version=3))
    assert list((await client.cases_of("o-off"))[-1].tag_device_ids) == ["t-off"]


async def test_a_removed_device_leaves_its_cases(client: Client) -> None:
    number = unused_number()
    await client.put(records.person("p-back"), records.device("d-back", "p-back"), records.wearer("w-back", number))
    await client.put(records.order("o-back", ("p-back",), number))
    removal = registry_pb2.EndDeviceRequest(device_id="d-back", source_version=2, removed_at=Timestamp(seconds=5))
    answer = await client.stub.EndDevice(removal, metadata=server.bearer(NPA, SECRET))
    assert answer.outcome == PutOutcome.STORED
    held = [[list(person.device_ids) for person in case.persons] for case in await client.cases_of("o-back")]
    assert held == [[["d-back"]], [[]]]
    # The agency's list entry with this end equals the stored record.
    differences, _ = await reconcile(client, NPA, [listing.listed(records.device("d-back", "p-back"), removal)])
    assert "d-back" not in {difference.record_id for difference in differences}
    await client.put(records.device("d-back", "p-back", version=3))
    assert list((await client.cases_of("o-back"))[-1].persons[0].device_ids) == ["d-back"]


# ── reconciliation ───────────────────────────────────────────────────────────────────────────────────────────────────


async def reconcile(
    client: Client, agency: str, listed: Sequence[Listed], part: int = 100
) -> tuple[list[reconciliation_pb2.Difference], reconciliation_pb2.ReconcileSummary]:
    async def parts() -> AsyncIterator[reconciliation_pb2.ReconcileRequest]:
        for start in range(0, len(listed), part):
            yield reconciliation_pb2.ReconcileRequest(records=listed[start : start + part])

    differences: list[reconciliation_pb2.Difference] = []
    summary = None
    async with asyncio.timeout(WITHIN_S):
        async for answer in client.stub.Reconcile(parts(), metadata=server.bearer(agency, SECRET)):
            assert summary is None
            differences.extend(answer.differences)
            summary = answer.summary if answer.HasField("summary") else None
    assert summary is not None
    return differences, summary


async def reconciliation_of(client: Client, agency: str) -> reconciliation_pb2.AgencyReconciliation:
    request = reconciliation_pb2.GetReconciliationRequest()
    answer = await client.stub.GetReconciliation(request, metadata=server.bearer(MOJ_DESK, SECRET))
    (found,) = [status for status in answer.agencies if status.agency == agency]
    return found


async def test_reconciliation_names_exactly_the_differing_records(client: Client) -> None:
    everything, _ = await reconcile(client, MOJ, [])
    wearers = [records.wearer(f"w-rec-{n}", unused_number()) for n in range(200)]
    for n, wearer in enumerate(wearers):
        wearer.name, wearer.birth_date = f"사람{chr(0xAC00 + 28 * n)}", f"{1940 + n % 60}-0{1 + n % 9}-1{n % 10}"
    await asyncio.gather(*(client.put(wearer) for wearer in wearers))
    await client.put(records.tag("t-rec", "w-rec-7"))
    # Records from other tests aren't in this list. Their ids are known from the first answer.
    assert {difference.finding for difference in everything} <= {reconciliation_pb2.FINDING_EXTRA}
    foreign = {difference.record_id for difference in everything}

    listed = [listing.listed(wearer) for wearer in wearers] + [listing.listed(records.tag("t-rec", "w-rec-7"))]
    chance = random.Random(20260310)
    dropped, older, altered = chance.sample(range(200), 3)
    theirs = list(listed)
    theirs[older] = Listed()
    theirs[older].CopyFrom(listed[older])
    theirs[older].source_version = 0
    changed = records.wearer(f"w-rec-{altered}", unused_number())
    theirs[altered] = listing.listed(changed)
    added = listing.listed(records.wearer("w-rec-new", unused_number()))
    theirs = [record for n, record in enumerate(theirs) if n != dropped] + [added]
    chance.shuffle(theirs)
    differences, summary = await reconcile(client, MOJ, theirs, part=37)
    found = {
        (difference.finding, difference.record_id, difference.listed_version, difference.stored_version)
        for difference in differences
    }
    assert {difference for difference in found if difference[1] not in foreign} == {
        (reconciliation_pb2.FINDING_EXTRA, f"w-rec-{dropped}", 0, 1),
        (reconciliation_pb2.FINDING_DIFFERENT, f"w-rec-{older}", 0, 1),
        (reconciliation_pb2.FINDING_DIFFERENT, f"w-rec-{altered}", 1, 1),
        (reconciliation_pb2.FINDING_MISSING, "w-rec-new", 1, 0),
    }
    assert summary.listed_root == listing.root(theirs) != summary.stored_root
    assert (summary.listed, summary.differences) == (len(theirs), len(differences))
    assert not (await reconciliation_of(client, "moj")).HasField("proven_equal_at")


async def test_equal_lists_have_the_same_root_and_the_time_of_the_proof_is_stored(client: Client) -> None:
    stored, _ = await reconcile(client, NPA, [])
    rows = client.mesh.query("select count(*) from record_digests where kind in (3, 4, 5)")
    assert len(stored) == rows[0][0]
    # The list holds only the new records, because answers about records of other tests don't contain their digests.
    person, number = records.person("p-equal"), unused_number()
    order = records.order("o-equal", ("p-equal",), number)
    await client.put(person, records.device("d-equal", "p-equal"), order)
    mine = [listing.listed(record) for record in (person, records.device("d-equal", "p-equal"), order)]
    differences, _ = await reconcile(client, NPA, mine)
    assert {difference.record_id for difference in differences} == {extra.record_id for extra in stored}
    # The digest covers the end of an order.
    end = registry_pb2.EndOrderRequest(
        order_id="o-equal",
        source_version=2,
        reason=registry_pb2.END_REASON_CANCELLED_BY_COURT,
        ended_at=Timestamp(seconds=1_700_000_000, nanos=1_000_000),
    )
    await end_order(client, end)
    mine[2] = listing.listed(order, end)
    differences, summary = await reconcile(client, NPA, mine)
    assert {difference.record_id for difference in differences} == {extra.record_id for extra in stored}
    assert (await reconciliation_of(client, "npa")).differences == len(stored)
    if not stored:
        assert summary.listed_root == summary.stored_root == (await reconciliation_of(client, "npa")).root


async def test_a_list_with_foreign_or_repeated_records_is_rejected(client: Client) -> None:
    wearer = listing.listed(records.wearer("w-twice"))
    short = Listed()
    short.CopyFrom(wearer)
    short.digest = b"short"
    for agency, listed, field in (
        (NPA, [wearer], "records[0].kind"),
        (MOJ, [wearer, wearer], "records[1].record_id"),
        (MOJ, [short], "records[0].digest"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await reconcile(client, agency, listed)
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert field in str(refusal.value.details())


async def test_a_third_list_of_a_caller_is_refused_until_one_has_ended(client: Client) -> None:
    def begin() -> Any:
        return client.stub.Reconcile(metadata=server.bearer(MOJ, SECRET))

    open_lists = [begin() for _ in range(2)]
    for call in open_lists:
        await call.write(reconciliation_pb2.ReconcileRequest())
    async with asyncio.timeout(WITHIN_S):
        while True:  # until the registry has begun to read both
            third = begin()
            await third.done_writing()
            if await third.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                break
        assert "at most 2 lists" in await third.details()
        await reconcile(client, NPA, [])
        await open_lists[0].done_writing()
        answers = [answer async for answer in open_lists[0]]
        assert answers[-1].HasField("summary")
        await reconcile(client, MOJ, [])
        open_lists[1].cancel()


# ── reviews ──────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_both_agencies_see_a_review_and_its_decision(client: Client) -> None:
    wearer = records.wearer("w-ask", unused_number())
    wearer.name, wearer.birth_date = "제갈수현", "1971-03-05"
    order = records.order("o-ask", (), "")
    order.respondent.name, order.respondent.birth_date = "제갈수현", "1972-03-05"
    watch = client.stub.WatchMatches(
        registry_pb2.WatchMatchesRequest(with_reviews=True), metadata=server.bearer(MOJ, SECRET)
    )
    await client.put(wearer, order)
    listed = await client.stub.ListReviews(review_pb2.ListReviewsRequest(), metadata=server.bearer(MOJ_DESK, SECRET))
    (found,) = [review for review in listed.reviews if review.order_id == "o-ask"]
    assert (found.wearer_id, found.state, found.enforced) == ("w-ask", review_pb2.REVIEW_STATE_OPEN, False)
    assert found.reasons and found.weight_bits > 0
    decide = review_pb2.DecideReviewRequest(
        case_id=found.case_id, decision=review_pb2.DECISION_CONFIRM, reason="박 경위가 확인", evidence=found.evidence
    )
    wrong: list[tuple[str, str | bytes | int]] = [("evidence", b""), ("decision", 0), ("case_id", "")]
    wrong += [("reason", reason) for reason in ("", "of two\nlines", "\u202eturned", "\u200b")]
    for field, value in wrong:
        spoiled = review_pb2.DecideReviewRequest()
        spoiled.CopyFrom(decide)
        setattr(spoiled, field, value)
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.stub.DecideReview(spoiled, metadata=server.bearer(NPA_DESK, SECRET))
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT and field in str(refusal.value.details())
    answer = await client.stub.DecideReview(decide, metadata=server.bearer(NPA_DESK, SECRET))
    assert (answer.review.state, answer.review.decided_by) == (review_pb2.REVIEW_STATE_CONFIRMED, NPA_DESK)
    events = []
    async with asyncio.timeout(WITHIN_S):
        while registry_pb2.MATCH_EVENT_MATCHED not in events:
            event = await watch.read()
            assert isinstance(event, registry_pb2.WatchMatchesResponse)
            events += [event.event] if event.case_id == found.case_id else []
    watch.cancel()
    assert events == [
        registry_pb2.MATCH_EVENT_REVIEW_OPENED,
        registry_pb2.MATCH_EVENT_CONFIRMED,
        registry_pb2.MATCH_EVENT_MATCHED,
    ]
    assert "박 경위" not in str(client.mesh.query("select * from review_decisions"))


async def test_a_role_without_permission_cannot_decide(client: Client) -> None:
    for who in ("spiffe://vendor/acme", "spiffe://tandem/warning-gateway", "spiffe://tandem/reviewer/x"):
        with pytest.raises(grpc.aio.AioRpcError) as refusal:
            await client.stub.DecideReview(review_pb2.DecideReviewRequest(), metadata=server.bearer(who, SECRET))
        assert refusal.value.code() is grpc.StatusCode.PERMISSION_DENIED
