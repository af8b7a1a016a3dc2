"""Reading a review by gRPC: both records side by side for the roles that decide, under the order's article, with rows in the ledger."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest

from services.common.rpc import server
from tandem.common.v1 import geometry_pb2
from tandem.registry.v1 import match_review_pb2, registry_pb2, review_pb2
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, SECRET, WITHIN_S, Client, RegistryMesh

MOJ_DESK, NPA_DESK = "spiffe://moj/desk/seoul", "spiffe://npa/desk/seoul"
STRANGERS = (
    "spiffe://tandem/reviewer/one",
    "spiffe://tandem/operator/one",
    "spiffe://vendor/test",
    "spiffe://tandem/service/geofence",
)
ARTICLE = "STALKING_4"
NUMBER = "780717-1234567"
PHONE = "010-9876-5432"
ADDRESS = "서울특별시 비밀구 숨은로 17"
OTHER_PHONE = "010-1111-2222"
OTHER_ADDRESS = "부산광역시 다른구 딴길 3"


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    """Client of a registry with a wearer and an order against a respondent of the same name, born a year later."""
    async with mesh.connected() as connected:
        wearer = records.wearer("w-review", NUMBER)
        wearer.name = "남궁비밀"
        wearer.birth_date = "1978-07-17"
        wearer.sex = registry_pb2.SEX_MALE
        wearer.phone, wearer.address = PHONE, ADDRESS
        order = records.order("o-review", ("p-review",), national_id="")
        order.type = registry_pb2.ORDER_TYPE_POLICE_EMERGENCY
        order.respondent.name, order.respondent.birth_date = "남궁비밀", "1979-07-17"
        order.respondent.phone, order.respondent.address = OTHER_PHONE, OTHER_ADDRESS
        await connected.put(wearer, records.tag("tag-review", "w-review"), records.person("p-review"), order)
        yield connected


async def listed(client: Client) -> review_pb2.Review:
    request = review_pb2.ListReviewsRequest(states=list(review_pb2.ReviewState.values())[1:])
    answer = await client.stub.ListReviews(request, metadata=server.bearer(NPA_DESK, SECRET), timeout=WITHIN_S)
    (found,) = [review for review in answer.reviews if review.order_id == "o-review"]
    return found


async def read(
    client: Client, case_id: str, who: str, legal_basis: str = ARTICLE
) -> match_review_pb2.ReadReviewResponse:
    request = match_review_pb2.ReadReviewRequest(case_id=case_id, legal_basis=legal_basis)
    answer: match_review_pb2.ReadReviewResponse = await client.match_reviews.ReadReview(
        request, metadata=server.bearer(who, SECRET), timeout=WITHIN_S
    )
    return answer


async def decide(
    client: Client, review: review_pb2.Review, decision: review_pb2.Decision.ValueType, who: str
) -> review_pb2.Review:
    request = review_pb2.DecideReviewRequest(
        case_id=review.case_id,
        decision=decision,
        reason="compared the files",
        evidence=review.evidence,
        seen_since=review.since,
    )
    answer = await client.stub.DecideReview(request, metadata=server.bearer(who, SECRET), timeout=WITHIN_S)
    return answer.review


def rows(mesh: RegistryMesh) -> list[tuple[str, ...]]:
    """The ledger's rows of reads: reader, article, purpose, reference, kind and id of the record."""
    statement = "select who, legal_basis, purpose, reference, record_kind, record_id from ledger order by sequence"
    return [tuple(row) for row in mesh.query(statement)]


def shown(answer: match_review_pb2.ReadReviewResponse) -> dict[str, tuple[str, str, str]]:
    """The respondent's value, the wearer's value and the level of each field; `withheld` stands for a hidden value."""
    return {
        review_pb2.ComparedField.Name(field.agreement.field).removeprefix("COMPARED_FIELD_"): (
            "withheld" if field.respondent.withheld else field.respondent.value,
            "withheld" if field.wearer.withheld else field.wearer.value,
            review_pb2.AgreementLevel.Name(field.agreement.level).removeprefix("AGREEMENT_LEVEL_"),
        )
        for field in answer.fields
    }


async def test_each_agency_sees_its_own_record_and_recognises_the_others(client: Client) -> None:
    case_id = (await listed(client)).case_id
    common = {
        "NAME": ("남궁비밀", "남궁비밀", "EQUAL"),
        "BIRTH_DATE": ("1979-07-17", "1978-07-17", "YEAR_APART"),
        "SEX": ("", "MALE", "MISSING"),
        "PHONE": (OTHER_PHONE, PHONE, "DIFFERENT"),
    }
    police = shown(await read(client, case_id, NPA_DESK))
    assert police == common | {
        "NATIONAL_ID": ("", "withheld", "MISSING"),
        "ADDRESS": (OTHER_ADDRESS, "withheld", "DIFFERENT"),
    }
    probation = shown(await read(client, case_id, MOJ_DESK))
    assert probation == common | {
        "NATIONAL_ID": ("", "withheld", "MISSING"),
        "ADDRESS": ("withheld", ADDRESS, "DIFFERENT"),
    }
    assert shown(await read(client, case_id, MOJ))["NATIONAL_ID"] == ("", NUMBER.replace("-", ""), "MISSING")
    assert shown(await read(client, case_id, NPA))["NATIONAL_ID"] == ("", "withheld", "MISSING")


async def test_nobody_else_reads_a_review(client: Client) -> None:
    case_id, before = (await listed(client)).case_id, rows(client.mesh)
    for who in STRANGERS:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await read(client, case_id, who)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, who
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await client.match_reviews.GetReviewQueue(
                match_review_pb2.GetReviewQueueRequest(), metadata=server.bearer(who, SECRET), timeout=WITHIN_S
            )
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED, who
    assert rows(client.mesh) == before


@pytest.mark.parametrize(
    ("legal_basis", "words"),
    [
        ("", "legal_basis: is missing"),
        ("MY_OWN_WISH", "legal_basis: isn't in the list"),
        ("TAG_16_2", "legal_basis: doesn't allow reading a record of the kind ORDER"),
        ("STALKING_9_1_2", "legal_basis: must be STALKING_4, the article of the order"),
        ("STALKING_17_6", "legal_basis: isn't in force yet"),
    ],
)
async def test_without_the_orders_article_nothing_is_disclosed(client: Client, legal_basis: str, words: str) -> None:
    case_id, before = (await listed(client)).case_id, rows(client.mesh)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(client, case_id, NPA_DESK, legal_basis)
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert words in (refused.value.details() or "")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await read(client, "case-none", NPA_DESK)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    assert rows(client.mesh) == before


async def test_a_read_is_a_row_for_each_record(client: Client) -> None:
    review, before = await listed(client), rows(client.mesh)
    assert review.legal_basis == ARTICLE
    answer = await read(client, review.case_id, NPA_DESK)
    grounds = (NPA_DESK, ARTICLE, "MATCH_REVIEW", review.case_id)
    assert rows(client.mesh)[len(before) :] == [(*grounds, "ORDER", "o-review"), (*grounds, "WEARER", "w-review")]
    assert len(set(answer.disclosure_ids)) == 2
    held = json.dumps(rows(client.mesh), ensure_ascii=False)
    assert "비밀" not in held and PHONE not in held


async def test_what_each_answer_causes_and_what_happened_before(client: Client) -> None:
    first = await listed(client)
    causes = (await read(client, first.case_id, NPA_DESK)).consequences
    assert [(ring.radius_m, ring.action) for ring in causes.rings] == [
        (2000, geometry_pb2.WARN),
        (1000, geometry_pb2.NOTIFY),
        (100, geometry_pb2.RESPOND),
    ]
    assert (causes.enforced, causes.tags, causes.protected_persons, causes.persons_without_device) == (False, 1, 1, 1)
    assert (causes.places, causes.order_type) == (1, registry_pb2.ORDER_TYPE_POLICE_EMERGENCY)

    confirmed = await decide(client, first, review_pb2.DECISION_CONFIRM, NPA_DESK)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await decide(client, first, review_pb2.DECISION_REJECT, MOJ_DESK)
    assert refused.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    moved = records.wearer("w-review", NUMBER, version=2)
    moved.name = "남궁비밀"
    moved.birth_date = "1978-07-17"
    moved.phone = OTHER_PHONE
    moved.address = ADDRESS
    await client.put(moved)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await decide(client, confirmed, review_pb2.DECISION_REJECT, MOJ_DESK)
    assert "records have changed" in (refused.value.details() or "")

    answer = await read(client, first.case_id, MOJ_DESK)
    assert answer.consequences.enforced and answer.review.state == review_pb2.REVIEW_STATE_OPEN
    history = [
        (
            entry.wearer_version,
            [review_pb2.AgreementLevel.Name(field.level) for field in entry.changed],
            registry_pb2.MatchEvent.Name(entry.event),
            entry.decided_by,
            entry.reason,
        )
        for entry in answer.history
    ]
    nothing = "MATCH_EVENT_UNSPECIFIED"
    assert history == [
        (1, [], nothing, "", ""),
        (0, [], "MATCH_EVENT_REVIEW_OPENED", "", ""),
        (0, [], nothing, NPA_DESK, "compared the files"),
        (0, [], "MATCH_EVENT_MATCHED", "", ""),
        (2, ["AGREEMENT_LEVEL_EQUAL"], nothing, "", ""),
        (0, [], "MATCH_EVENT_REVIEW_OPENED", "", ""),
    ]
    queue = await client.match_reviews.GetReviewQueue(
        match_review_pb2.GetReviewQueueRequest(), metadata=server.bearer(MOJ_DESK, SECRET), timeout=WITHIN_S
    )
    assert (queue.open, queue.oldest_since, queue.alarmed) == (1, answer.review.since, 0)
    undecided = await decide(client, answer.review, review_pb2.DECISION_REJECT, MOJ_DESK)
    assert undecided.state == review_pb2.REVIEW_STATE_REJECTED and not undecided.enforced
