"""Refusals, good cause and authorised removals through the registry process: snapshots, ledger rows, and bad input. On both engines."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.common.clock import MeshClock
from services.registry.domain.records import CLOCKS_DIFFER_MS
from tandem.common.v1 import log_pb2
from tandem.registry.v1 import disclosure_pb2, registry_pb2
from tandem.registry.v1.tag_record_pb2 import (
    TAG_RECORD_OUTCOME_STORED,
    TAG_RECORD_OUTCOME_UNCHANGED,
    AllowRemovalRequest,
    EndRemovalRequest,
    ListTagRecordsRequest,
    RecordGoodCauseRequest,
    RecordRefusalRequest,
)
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, Client, RegistryMesh

Code = grpc.StatusCode
DESK = "spiffe://moj/desk/officer-1"
POLICE_DESK = "spiffe://npa/desk/officer-2"
HOUR_MS = 3_600_000
GROUNDS = disclosure_pb2.Grounds(legal_basis="TAG_DECREE_23_10", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT)
_numbers = itertools.count(1)


class Case(NamedTuple):
    """Ids of a wearer with a tag, who is under an order."""

    wearer: str
    tag: str
    order: str
    now_ms: int


def at(ms: int) -> Timestamp:
    return times.to_timestamp(ms)


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


async def case_of(client: Client, order_type: int = registry_pb2.ORDER_TYPE_STALKING_TAG, *, tag: bool = True) -> Case:
    """A new wearer under a new order."""
    n = next(_numbers)
    number = f"800101-1{n:06d}"
    case = Case(f"w-{n}", f"tag-{n}", f"o-{n}", MeshClock().now_ms())
    order = records.order(case.order, national_id=number)
    order.type = order_type  # type: ignore[assignment]
    order.valid_from.CopyFrom(at(case.now_ms - HOUR_MS))
    await client.put(records.person(), records.wearer(case.wearer, number), order)
    if tag:
        await client.put(records.tag(case.tag, case.wearer))
    return case


async def newest(client: Client, case: Case) -> log_pb2.CaseSnapshot:
    return (await client.cases_of(case.order))[-1]


def removal(case: Case, record_id: str, from_ms: int | None, until_ms: int, **changes: Any) -> AllowRemovalRequest:
    request = AllowRemovalRequest(
        record_id=record_id, device_id=case.tag, until=at(until_ms), reason="Operation", allowed_by="head-1", **changes
    )
    if from_ms is not None:
        getattr(request, "from").CopyFrom(at(from_ms))
    return request


def good_cause(case: Case, record_id: str, from_ms: int, until_ms: int) -> RecordGoodCauseRequest:
    request = RecordGoodCauseRequest(
        record_id=record_id, wearer_id=case.wearer, order_id=case.order, until=at(until_ms), reason="In hospital"
    )
    getattr(request, "from").CopyFrom(at(from_ms))
    return request


def refusal(case: Case, record_id: str, at_ms: int) -> RecordRefusalRequest:
    return RecordRefusalRequest(
        record_id=record_id, wearer_id=case.wearer, order_id=case.order, refused_at=at(at_ms), reason="Walked out"
    )


def notices(client: Client, reference: str) -> list[tuple[str, ...]]:
    """Ledger rows of a record: who, recipient, order, article."""
    rows = client.mesh.query(
        f"select deed, who, recipient, order_id, legal_basis from ledger where reference = '{reference}'"  # noqa: S608
    )
    return [tuple(row) for row in rows]


# ── Tag Act 31-6(4) item 1 ───────────────────────────────────────────────────────────────────────────────────────────


async def test_tag_act_31_6_4_1_the_courts_time_refusals_and_good_cause_are_in_the_snapshot(client: Client) -> None:
    case = await case_of(client, tag=False)
    first = await newest(client, case)
    assert first.tag_duty.fit_by_ms == case.now_ms - HOUR_MS + 24 * HOUR_MS  # without the court's time: a day
    for request, method in (
        (refusal(case, f"r-{case.order}", case.now_ms - 1000), client.tag_records.RecordRefusal),
        (
            good_cause(case, f"c-{case.order}", case.now_ms - 5 * HOUR_MS, case.now_ms + HOUR_MS),
            client.tag_records.RecordGoodCause,
        ),
    ):
        assert (await client.ask(method, request, DESK)).outcome == TAG_RECORD_OUTCOME_STORED
        assert (await client.ask(method, request, DESK)).outcome == TAG_RECORD_OUTCOME_UNCHANGED
    duty = (await newest(client, case)).tag_duty
    assert duty.refused_at_ms == case.now_ms - 1000
    [cause] = duty.good_causes
    assert (cause.from_ms, cause.until_ms) == (case.now_ms - 5 * HOUR_MS, case.now_ms + HOUR_MS)
    # The police are told of the refusal, not of the reason why a tag is missing.
    assert notices(client, f"r-{case.order}") == [("SHARED", DESK, "spiffe://npa/desk", case.order, "TAG_DECREE_23_10")]
    assert notices(client, f"c-{case.order}") == []
    assert b"In hospital" not in client.mesh.held()


async def test_the_courts_time_is_that_of_the_order(client: Client) -> None:
    case = await case_of(client, tag=False)
    order = records.order(case.order, national_id=f"800101-1{int(case.order[2:]):06d}", version=2)
    order.type = registry_pb2.ORDER_TYPE_STALKING_TAG
    order.fit_by.CopyFrom(at(case.now_ms + 2 * HOUR_MS))
    await client.put(order)
    assert (await newest(client, case)).tag_duty.fit_by_ms == case.now_ms + 2 * HOUR_MS


@pytest.mark.parametrize(
    ("from_h", "until_h", "code", "text"),
    [
        (-2, -1, Code.INVALID_ARGUMENT, "until: must be in the future"),
        (2, 1, Code.INVALID_ARGUMENT, "until: must be later than from"),
        (0, 31 * 24, Code.INVALID_ARGUMENT, "until: must be at most 30 days from now"),
    ],
)
async def test_good_cause_may_be_dated_back_but_must_end_ahead(
    client: Client, from_h: int, until_h: int, code: grpc.StatusCode, text: str
) -> None:
    case = await case_of(client, tag=False)
    request = good_cause(case, f"c-{case.order}", case.now_ms + from_h * HOUR_MS, case.now_ms + until_h * HOUR_MS)
    found = await client.rejection(client.tag_records.RecordGoodCause, request, DESK)
    assert found[0] is code and found[1].startswith(text)
    assert len(await client.cases_of(case.order)) == 1


async def test_refusals_and_good_cause_need_an_order_of_item_3_2_that_is_enforced(client: Client) -> None:
    bare = await case_of(client, registry_pb2.ORDER_TYPE_POLICE_EMERGENCY)
    other = await case_of(client)
    method = client.tag_records.RecordRefusal
    code, text = await client.rejection(method, refusal(bare, "r-bare", bare.now_ms), DESK)
    assert code is Code.INVALID_ARGUMENT and "must be the id of an order of item 3-2" in text
    crossed = refusal(other._replace(wearer=bare.wearer), "r-crossed", other.now_ms)
    code, text = await client.rejection(method, crossed, DESK)
    assert code is Code.FAILED_PRECONDITION and "isn't enforced against this wearer" in text
    code, text = await client.rejection(method, refusal(other, "r-future", other.now_ms + HOUR_MS), DESK)
    assert code is Code.INVALID_ARGUMENT and text.startswith("refused_at: must not be in the future")
    code, text = await client.rejection(method, refusal(other._replace(order="o-none"), "r-none", 0), DESK)
    assert code is Code.NOT_FOUND
    code, _ = await client.rejection(method, refusal(other, "r-other", other.now_ms), NPA)
    assert code is Code.PERMISSION_DENIED


# ── Decree 10 ────────────────────────────────────────────────────────────────────────────────────────────────────────


async def test_decree_10_a_removal_is_in_the_snapshot_and_the_police_are_notified_for_item_3_2_alone(
    client: Client,
) -> None:
    for order_type, rows in ((registry_pb2.ORDER_TYPE_STALKING_TAG, 1), (registry_pb2.ORDER_TYPE_POLICE_EMERGENCY, 0)):
        case = await case_of(client, order_type)
        request = removal(case, f"m-{case.order}", None, case.now_ms + HOUR_MS)
        assert (await client.ask(client.tag_records.AllowRemoval, request, DESK)).outcome == TAG_RECORD_OUTCOME_STORED
        [allowed] = (await newest(client, case)).removals
        assert (allowed.removal_id, allowed.device_id, allowed.until_ms) == (
            f"m-{case.order}",
            case.tag,
            case.now_ms + HOUR_MS,
        )
        assert allowed.from_ms >= case.now_ms
        assert len(notices(client, f"m-{case.order}")) == rows
        assert (await newest(client, case)).HasField("tag_duty") is bool(rows)


@pytest.mark.parametrize(
    ("from_h", "until_h", "afterwards", "text"),
    [
        (2, 1, False, "until: must be later than from"),
        (-1, 1, False, "from: is in the past, and a removal can't be dated back"),
        (-25, 1, True, "from: must be at most 24 hours in the past"),
        (-2, -1, True, "until: must be in the future"),
        (0, 93 * 24, False, "until: must be at most 92 days after from"),
    ],
)
async def test_decree_10_a_removal_that_ends_before_it_begins_or_is_dated_back_is_rejected(
    client: Client, from_h: int, until_h: int, afterwards: bool, text: str
) -> None:
    case = await case_of(client)
    request = removal(
        case,
        f"m-{case.order}",
        case.now_ms + from_h * HOUR_MS,
        case.now_ms + until_h * HOUR_MS,
        afterwards=afterwards,
    )
    code, found = await client.rejection(client.tag_records.AllowRemoval, request, DESK)
    assert code is Code.INVALID_ARGUMENT and found.startswith(text)
    assert not (await newest(client, case)).removals and not notices(client, f"m-{case.order}")


async def test_decree_10_1_proviso_a_removal_without_time_for_an_approval_is_reported_afterwards(
    client: Client,
) -> None:
    case = await case_of(client)
    begun_ms = case.now_ms - HOUR_MS // 2
    request = removal(case, f"m-{case.order}", begun_ms, case.now_ms + HOUR_MS, afterwards=True)
    await client.ask(client.tag_records.AllowRemoval, request, DESK)
    assert (await newest(client, case)).removals[0].from_ms == begun_ms


async def test_decree_10_removals_of_a_tag_dont_overlap(client: Client) -> None:
    case = await case_of(client)
    method, now_ms = client.tag_records.AllowRemoval, case.now_ms
    first = removal(case, f"a-{case.order}", now_ms + HOUR_MS, now_ms + 2 * HOUR_MS)
    await client.ask(method, first, DESK)
    overlapping = removal(case, f"b-{case.order}", now_ms + HOUR_MS + 1000, now_ms + 3 * HOUR_MS)
    code, text = await client.rejection(method, overlapping, DESK)
    assert code is Code.INVALID_ARGUMENT and text.startswith(f"from: overlaps the removal a-{case.order}")
    adjoining = removal(case, f"c-{case.order}", now_ms + 2 * HOUR_MS, now_ms + 3 * HOUR_MS)
    await client.ask(method, adjoining, DESK)
    assert [each.removal_id for each in (await newest(client, case)).removals] == [
        f"a-{case.order}",
        f"c-{case.order}",
    ]
    changed = removal(case, f"a-{case.order}", now_ms + HOUR_MS, now_ms + 4 * HOUR_MS)
    assert (await client.rejection(method, changed, DESK))[0] is Code.ABORTED


async def test_a_removal_ends_early_and_is_cancelled_before_it_begins(client: Client) -> None:
    case = await case_of(client)
    now_ms = case.now_ms
    await client.ask(client.tag_records.AllowRemoval, removal(case, f"a-{case.order}", None, now_ms + HOUR_MS), DESK)
    ahead = removal(case, f"b-{case.order}", now_ms + 2 * HOUR_MS, now_ms + 3 * HOUR_MS)
    await client.ask(client.tag_records.AllowRemoval, ahead, DESK)
    ended_ms = MeshClock().now_ms()
    end, cancel = (EndRemovalRequest(record_id=f"{n}-{case.order}", ended_at=at(ended_ms)) for n in "ab")
    for request in (end, cancel):
        assert (await client.ask(client.tag_records.EndRemoval, request, DESK)).outcome == TAG_RECORD_OUTCOME_STORED
        repeated = await client.ask(client.tag_records.EndRemoval, request, DESK)
        assert repeated.outcome == TAG_RECORD_OUTCOME_UNCHANGED
    [left] = (await newest(client, case)).removals
    assert left.until_ms == ended_ms
    later = EndRemovalRequest(record_id=f"a-{case.order}", ended_at=at(ended_ms + 1000))
    assert (await client.rejection(client.tag_records.EndRemoval, later, DESK))[0] is Code.FAILED_PRECONDITION
    unknown = EndRemovalRequest(record_id="none", ended_at=at(ended_ms))
    assert (await client.rejection(client.tag_records.EndRemoval, unknown, DESK))[0] is Code.NOT_FOUND


async def test_the_end_of_a_removal_cant_be_dated_back(client: Client) -> None:
    case = await case_of(client)
    method, begun_ms = client.tag_records.EndRemoval, case.now_ms - HOUR_MS // 2
    request = removal(case, f"m-{case.order}", begun_ms, case.now_ms + HOUR_MS, afterwards=True)
    await client.ask(client.tag_records.AllowRemoval, request, DESK)
    for ended_ms in (begun_ms - HOUR_MS, begun_ms, begun_ms + 1000, case.now_ms - CLOCKS_DIFFER_MS - 1000):
        end = EndRemovalRequest(record_id=request.record_id, ended_at=at(ended_ms))
        code, text = await client.rejection(method, end, DESK)
        assert code is Code.INVALID_ARGUMENT and text.startswith("ended_at: is in the past")
    brief = removal(case, f"b-{case.order}", None, case.now_ms + 2 * HOUR_MS)
    getattr(brief, "from").CopyFrom(at(case.now_ms + HOUR_MS))
    await client.ask(client.tag_records.AllowRemoval, brief, DESK)
    [left, ahead] = (await newest(client, case)).removals
    assert (left.from_ms, left.until_ms, ahead.from_ms) == (begun_ms, case.now_ms + HOUR_MS, case.now_ms + HOUR_MS)


async def test_a_removal_that_has_just_begun_isnt_cancelled_by_its_end(client: Client) -> None:
    case = await case_of(client)
    request = removal(case, f"m-{case.order}", None, case.now_ms + HOUR_MS)
    await client.ask(client.tag_records.AllowRemoval, request, DESK)
    end = EndRemovalRequest(record_id=request.record_id, ended_at=at(case.now_ms - 1000))
    code, text = await client.rejection(client.tag_records.EndRemoval, end, DESK)
    assert code is Code.INVALID_ARGUMENT and text.startswith("ended_at: must be later than from")


async def test_a_removal_needs_a_tag_that_is_worn(client: Client) -> None:
    case = await case_of(client)
    method = client.tag_records.AllowRemoval
    unknown = removal(case._replace(tag="tag-none"), "m-none", None, case.now_ms + HOUR_MS)
    assert (await client.rejection(method, unknown, DESK))[0] is Code.NOT_FOUND
    end = registry_pb2.EndTagRequest(device_id=case.tag, source_version=2, removed_at=at(case.now_ms))
    await client.ask(client.stub.EndTag, end, MOJ)
    code, text = await client.rejection(method, removal(case, "m-ended", None, case.now_ms + HOUR_MS), DESK)
    assert code is Code.FAILED_PRECONDITION and "has ended" in text
    nameless = removal(case, "m-nameless", None, case.now_ms + HOUR_MS)
    nameless.allowed_by = ""
    assert await client.rejection(method, nameless, DESK) == (Code.INVALID_ARGUMENT, "allowed_by: is missing")


async def test_the_list_says_who_recorded_what_and_when_and_the_police_see_no_reasons(client: Client) -> None:
    case = await case_of(client)
    await client.ask(
        client.tag_records.AllowRemoval, removal(case, f"m-{case.order}", None, case.now_ms + HOUR_MS), DESK
    )
    request = ListTagRecordsRequest(wearer_id=case.wearer, grounds=GROUNDS)
    for who, reason in ((DESK, "Operation"), (POLICE_DESK, "")):
        answer = await client.ask(client.tag_records.ListTagRecords, request, who)
        [listed] = answer.records
        assert (listed.recorded_by, listed.allowed_by, listed.reason) == (DESK, "head-1", reason)
        assert times.from_timestamp(listed.recorded_at) >= case.now_ms
        rows = client.mesh.query(f"select who from ledger where disclosure_id = '{answer.disclosure_id}'")  # noqa: S608
        assert [row[0] for row in rows] == [who]
    groundless = ListTagRecordsRequest(wearer_id=case.wearer)
    code, text = await client.rejection(client.tag_records.ListTagRecords, groundless, DESK)
    assert code is Code.INVALID_ARGUMENT and text.startswith("grounds.legal_basis")
