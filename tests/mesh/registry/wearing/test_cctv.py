"""The log of requests for CCTV through the registry process (Tag Act 16-3, Enforcement Rule 11-7). On both engines."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import grpc
import pytest

from services.common import times
from services.common.clock import MeshClock
from services.registry.cctv.domain import ANSWER_WITHIN_MS, NOTIFY_WITHIN_MS
from tandem.registry.v1 import cctv_pb2, disclosure_pb2, registry_pb2
from tests.support.registry import records
from tests.support.registry.registry import NPA, Client, RegistryMesh

Code = grpc.StatusCode
DESK = "spiffe://moj/desk/centre"
GROUNDS = disclosure_pb2.Grounds(legal_basis="TAG_16_3_2", purpose=disclosure_pb2.PURPOSE_ENFORCEMENT)
_numbers = itertools.count(1)


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


async def wearer_under(client: Client, *order_types: int) -> str:
    """A new wearer who is restrained by orders of these types."""
    n = next(_numbers)
    number, wearer_id = f"810101-1{n:06d}", f"w-{n}"
    await client.put(records.person(), records.wearer(wearer_id, number))
    for i, order_type in enumerate(order_types):
        order = records.order(f"o-{n}-{i}", national_id=number)
        order.type = order_type  # type: ignore[assignment]
        await client.put(order)
    return wearer_id


def request(
    wearer_id: str, request_id: str = "", details: str = "Station square, 14:00 to 14:30"
) -> cctv_pb2.RequestCctvRequest:
    return cctv_pb2.RequestCctvRequest(
        request_id=request_id or f"q-{wearer_id}",
        wearer_id=wearer_id,
        ground=cctv_pb2.CCTV_GROUND_DUTY_14_1,
        government="Suwon City",
        details=details,
    )


def step(request_id: str, name: str, at_ms: int) -> cctv_pb2.RecordCctvStepRequest:
    return cctv_pb2.RecordCctvStepRequest(
        request_id=request_id, step=cctv_pb2.CctvStep.Value(f"CCTV_STEP_{name}"), at=times.to_timestamp(at_ms)
    )


def texts(message: cctv_pb2.CctvRequest) -> list[str]:
    return [entry.text for entry in message.entries]


def due_ms(message: cctv_pb2.CctvRequest) -> int:
    return times.from_timestamp(message.due_at)


async def test_tag_act_16_3_2_and_3_a_request_is_answered_viewed_and_the_wearer_notified(client: Client) -> None:
    wearer_id = await wearer_under(client, registry_pb2.ORDER_TYPE_TAG_CONDITION)
    made = await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
    requested_ms = times.from_timestamp(made.request.entries[0].at)
    assert due_ms(made.request) == requested_ms + ANSWER_WITHIN_MS and not made.request.overdue
    assert (await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)).request == made.request
    [row] = client.mesh.query(
        f"select who, recipient, legal_basis, record_id from ledger where disclosure_id = '{made.disclosure_id}'"  # noqa: S608
    )
    assert tuple(row) == (DESK, "Suwon City", "TAG_16_3_2", wearer_id)
    await client.ask(client.cctv.RecordCctvStep, step(f"q-{wearer_id}", "PROVIDED", requested_ms), DESK)
    at_ms = MeshClock().now_ms()
    answer = await client.ask(client.cctv.RecordCctvStep, step(f"q-{wearer_id}", "VIEWING_ENDED", at_ms), DESK)
    assert due_ms(answer.request) == at_ms + NOTIFY_WITHIN_MS  # Enforcement Rule 11-7(1): 30 days
    answer = await client.ask(client.cctv.RecordCctvStep, step(f"q-{wearer_id}", "WEARER_NOTIFIED", at_ms), DESK)
    assert not answer.request.HasField("due_at") and not answer.request.overdue
    listed = await client.ask(
        client.cctv.ListCctvRequests, cctv_pb2.ListCctvRequestsRequest(wearer_id=wearer_id, grounds=GROUNDS), DESK
    )
    [notified] = listed.requests
    assert [cctv_pb2.CctvStep.Name(entry.step) for entry in notified.entries] == [
        "CCTV_STEP_REQUESTED",
        "CCTV_STEP_PROVIDED",
        "CCTV_STEP_VIEWING_ENDED",
        "CCTV_STEP_WEARER_NOTIFIED",
    ]
    assert notified.entries[0].text.startswith("Station square") and notified.entries[0].recorded_by == DESK
    assert b"Station square" not in client.mesh.held()
    assert listed.disclosure_id


async def test_tag_act_16_3_2_gives_no_request_for_item_3_2_alone(client: Client) -> None:
    stalker = await wearer_under(client, registry_pb2.ORDER_TYPE_STALKING_TAG)
    code, text = await client.rejection(client.cctv.RequestCctv, request(stalker), DESK)
    assert code is Code.FAILED_PRECONDITION and "item 3-2 alone" in text
    both = await wearer_under(client, registry_pb2.ORDER_TYPE_STALKING_TAG, registry_pb2.ORDER_TYPE_TAG_CONDITION)
    assert (await client.ask(client.cctv.RequestCctv, request(both), DESK)).request.wearer_id == both
    assert not client.mesh.query(f"select 1 from ledger where record_id = '{stalker}' and deed = 'SHARED'")  # noqa: S608


@pytest.mark.parametrize(
    ("basis", "order_types", "allowed"),
    [
        (registry_pb2.TAG_BASIS_STALKING_ORDER, (), False),
        (registry_pb2.TAG_BASIS_STALKING_ORDER, (registry_pb2.ORDER_TYPE_TAG_CONDITION,), True),
        (registry_pb2.TAG_BASIS_JUDGMENT, (registry_pb2.ORDER_TYPE_STALKING_TAG,), True),
        (registry_pb2.TAG_BASIS_UNSPECIFIED, (registry_pb2.ORDER_TYPE_STALKING_TAG,), False),
    ],
)
async def test_tag_act_16_3_2_counts_the_basis_of_the_tag(
    client: Client, basis: registry_pb2.TagBasis.ValueType, order_types: tuple[int, ...], allowed: bool
) -> None:
    wearer_id = await wearer_under(client, *order_types)
    worn = records.tag(f"tag-{wearer_id}", wearer_id)
    worn.basis = basis
    await client.put(worn)
    if allowed:
        made = await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
        assert made.request.wearer_id == wearer_id
        return
    code, text = await client.rejection(client.cctv.RequestCctv, request(wearer_id), DESK)
    assert code is Code.FAILED_PRECONDITION and "item 3-2 alone" in text


async def test_entries_are_never_changed_and_steps_follow_each_other(client: Client) -> None:
    wearer_id = await wearer_under(client)
    request_id, now_ms = f"q-{wearer_id}", MeshClock().now_ms()
    await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
    changed = request(wearer_id, details="Another square")
    assert (await client.rejection(client.cctv.RequestCctv, changed, DESK))[0] is Code.ABORTED
    method = client.cctv.RecordCctvStep
    for name in ("VIEWING_ENDED", "WEARER_NOTIFIED"):
        code, text = await client.rejection(method, step(request_id, name, now_ms), DESK)
        assert code is Code.FAILED_PRECONDITION and "PROVIDED or DECLINED follows REQUESTED" in text
    code, text = await client.rejection(method, step(request_id, "PROVIDED", now_ms + 3_600_000), DESK)
    assert (code, text) == (Code.INVALID_ARGUMENT, "at: must not be in the future")
    code, text = await client.rejection(method, step(request_id, "PROVIDED", now_ms - 3_600_000), DESK)
    assert (code, text) == (Code.INVALID_ARGUMENT, "at: must not be earlier than the step before it")
    declined = step(request_id, "DECLINED", MeshClock().now_ms())
    first = await client.ask(method, declined, DESK)
    assert (await client.ask(method, declined, DESK)).request == first.request
    assert not first.request.HasField("due_at")
    assert (await client.rejection(method, step(request_id, "PROVIDED", now_ms), DESK))[0] is Code.FAILED_PRECONDITION
    assert (await client.rejection(method, step("q-none", "PROVIDED", now_ms), DESK))[0] is Code.NOT_FOUND


async def test_only_the_location_tracking_centre_requests_and_a_list_of_all_has_no_texts(client: Client) -> None:
    wearer_id = await wearer_under(client)
    assert (await client.rejection(client.cctv.RequestCctv, request(wearer_id), NPA))[0] is Code.PERMISSION_DENIED
    assert (await client.rejection(client.cctv.RequestCctv, request("w-none"), DESK))[0] is Code.NOT_FOUND
    await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
    rows = client.mesh.query("select count(*) from ledger")
    listed = await client.ask(client.cctv.ListCctvRequests, cctv_pb2.ListCctvRequestsRequest(), DESK)
    mine = [each for each in listed.requests if each.wearer_id == wearer_id]
    assert [entry.text for each in mine for entry in each.entries] == [""]
    assert client.mesh.query("select count(*) from ledger") == rows
    after = cctv_pb2.ListCctvRequestsRequest(after_request_id=f"q-{wearer_id}")
    assert wearer_id not in [
        each.wearer_id for each in (await client.ask(client.cctv.ListCctvRequests, after, DESK)).requests
    ]


async def test_no_answer_has_texts_of_others_without_a_row_of_the_ledger(client: Client) -> None:
    wearer_id = await wearer_under(client)
    made = await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
    provided = step(f"q-{wearer_id}", "PROVIDED", times.from_timestamp(made.request.entries[0].at))
    provided.note = "by courier"
    rows = client.mesh.query("select count(*) from ledger")
    answer = await client.ask(client.cctv.RecordCctvStep, provided, DESK)
    assert texts(answer.request) == ["", "by courier"]
    # Its time is in the list of all requests, so anybody at the desk can send this step again.
    repeated = step(f"q-{wearer_id}", "PROVIDED", times.from_timestamp(provided.at))
    answer = await client.ask(client.cctv.RecordCctvStep, repeated, "spiffe://moj/desk/other")
    assert texts(answer.request) == ["", ""]
    answer = await client.ask(client.cctv.RequestCctv, request(wearer_id), DESK)
    assert texts(answer.request) == ["Station square, 14:00 to 14:30", ""]
    assert client.mesh.query("select count(*) from ledger") == rows
    about = cctv_pb2.ListCctvRequestsRequest(wearer_id=wearer_id, grounds=GROUNDS)
    [listed] = (await client.ask(client.cctv.ListCctvRequests, about, DESK)).requests
    assert texts(listed) == ["Station square, 14:00 to 14:30", "by courier"]
