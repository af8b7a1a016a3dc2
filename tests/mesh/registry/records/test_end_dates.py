"""Dates of removals and ends through the registry process: those in the future are refused, those long past are warned of."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import times
from services.common.clock import MeshClock
from tandem.registry.v1 import registry_pb2
from tandem.registry.v1.registry_pb2 import PutOutcome
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, Client, RegistryMesh

DAY_MS = 86_400_000
MINUTE_MS = 60_000
NUMBER = "800101-1977001"


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        yield connected


def from_now(ms: int) -> Timestamp:
    return times.to_timestamp(MeshClock().now_ms() + ms)


def ends(ms: int, version: int) -> dict[str, tuple[Message, str]]:
    """The end of each kind of record at `ms` from now, with the agency that sends it, by the name of its call."""
    moment = from_now(ms)
    return {
        "EndTag": (registry_pb2.EndTagRequest(device_id="t-date", source_version=version, removed_at=moment), MOJ),
        "EndWearer": (
            registry_pb2.EndWearerRequest(
                wearer_id="w-date",
                source_version=version,
                reason=registry_pb2.WEARER_END_REASON_COMPLETED,
                ended_at=moment,
            ),
            MOJ,
        ),
        "EndDevice": (
            registry_pb2.EndDeviceRequest(device_id="d-date", source_version=version, removed_at=moment),
            NPA,
        ),
        "EndProtectedPerson": (
            registry_pb2.EndProtectedPersonRequest(person_id="p-date", source_version=version, ended_at=moment),
            NPA,
        ),
    }


async def test_an_end_in_the_future_is_refused_and_one_long_past_is_warned_of(client: Client) -> None:
    await client.put(records.wearer("w-date", NUMBER), records.tag("t-date", "w-date"))
    await client.put(records.person("p-date"), records.device("d-date", "p-date"))
    for name, (request, agency) in ends(5 * MINUTE_MS, 2).items():
        code, text = await client.rejection(getattr(client.stub, name), request, agency)
        field = "ended_at" if "ended_at" in request.DESCRIPTOR.fields_by_name else "removed_at"
        assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(f"{field}: must not be in the future"), name
    for version, days, warned in ((2, -400, True), (3, -1, False)):
        for name, (request, agency) in ends(days * DAY_MS, version).items():
            answer = await client.ask(getattr(client.stub, name), request, agency)
            assert answer.outcome == PutOutcome.STORED
            assert bool(answer.warnings) is warned, name
            assert all("more than a year back" in warning.reason for warning in answer.warnings)
    # An agency's clock may be a little ahead of the mesh's.
    for name, (request, agency) in ends(MINUTE_MS, 4).items():
        assert (await client.ask(getattr(client.stub, name), request, agency)).outcome == PutOutcome.STORED


async def test_a_lapsed_measure_cant_end_in_the_future_either(client: Client) -> None:
    await client.put(records.wearer("w-lapse", "800101-1977002"))
    request = registry_pb2.EndWearerRequest(
        wearer_id="w-lapse",
        source_version=2,
        reason=registry_pb2.WEARER_END_REASON_LAPSED,
        ended_at=from_now(DAY_MS),
    )
    code, text = await client.rejection(client.stub.EndWearer, request, MOJ)
    assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith("ended_at: must not be in the future")


async def test_an_order_may_end_at_a_time_that_lies_ahead(client: Client) -> None:
    number, ahead = "800101-1977003", from_now(DAY_MS)
    await client.put(records.wearer("w-ahead", number), records.order("o-ahead", (), number))
    end = registry_pb2.EndOrderRequest(
        order_id="o-ahead", source_version=2, reason=registry_pb2.END_REASON_CANCELLED_BY_COURT, ended_at=ahead
    )
    answer = await client.ask(client.stub.EndOrder, end, NPA)
    assert answer.outcome == PutOutcome.STORED and not answer.warnings
    assert (await client.cases_of("o-ahead"))[-1].valid_until_ms == times.from_timestamp(ahead)
    end.source_version = 3
    end.ended_at.CopyFrom(from_now(-10 * 366 * DAY_MS))
    [warning] = (await client.ask(client.stub.EndOrder, end, NPA)).warnings
    assert warning.field == "ended_at" and "more than a year back" in warning.reason
