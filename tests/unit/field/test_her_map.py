"""Her map as field reads it: from as many evaluators as the partitions need, and what the app gets of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import grpc
import grpc.aio
import pytest

from services.common import times
from services.field import her_map
from services.field.mesh import AfterwardsStubs, FieldMesh, IngestEndpoint
from services.field.settings import FieldSettings
from tandem.dispatch.v1.afterwards_pb2_grpc import AfterwardsServiceStub
from tandem.dispatch.v1.phone_notice_pb2_grpc import PhoneNoticeServiceStub
from tandem.dispatch.v1.phone_state_pb2_grpc import PhoneStateServiceStub
from tandem.geofence.v1 import region_map_pb2, region_map_pb2_grpc
from tandem.registry.v1.enrolment_pb2_grpc import EnrolmentServiceStub

T0_MS = 1_790_000_000_000
BEHIND = grpc.StatusCode.UNAVAILABLE
WITHHELD = region_map_pb2.RegionView(outcome=region_map_pb2.REGION_WITHHELD)
Answer = region_map_pb2.ReadRegionMapResponse | grpc.StatusCode


class Evaluators(region_map_pb2_grpc.RegionMapServiceServicer):
    """Evaluators that take turns, as a client meets them, each with its answer."""

    def __init__(self, *answers: Answer) -> None:
        self._answers = answers
        self.requests: list[region_map_pb2.ReadRegionMapRequest] = []

    async def ReadRegionMap(
        self, request: region_map_pb2.ReadRegionMapRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> region_map_pb2.ReadRegionMapResponse:
        answer = self._answers[len(self.requests) % len(self._answers)]
        self.requests.append(request)
        if isinstance(answer, grpc.StatusCode):
            await context.abort(answer, "not now")
        return answer


@asynccontextmanager
async def mesh_of(evaluators: Evaluators) -> AsyncIterator[FieldMesh]:
    server = grpc.aio.server()
    region_map_pb2_grpc.add_RegionMapServiceServicer_to_server(evaluators, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, aiohttp.ClientSession() as session:
            yield FieldMesh(
                EnrolmentServiceStub(channel),
                PhoneNoticeServiceStub(channel),
                IngestEndpoint(session, FieldSettings(), panic_session=session),
                region_maps=region_map_pb2_grpc.RegionMapServiceStub(channel),
                phone_states=PhoneStateServiceStub(channel),
                afterwards=AfterwardsStubs(AfterwardsServiceStub(channel), AfterwardsServiceStub(channel)),
                to_registry=(),
                to_warning=(),
                to_geofence=(),
                to_police=(),
            )
    finally:
        await server.stop(None)


def answered(*views: region_map_pb2.RegionView, partitions: tuple[int, ...] = (0,), count: int = 1) -> Answer:
    return region_map_pb2.ReadRegionMapResponse(views=views, partitions=partitions, partition_count=count)


async def test_an_evaluator_that_is_behind_leaves_the_answer_to_the_next() -> None:
    evaluators = Evaluators(BEHIND, answered(WITHHELD))
    async with mesh_of(evaluators) as mesh:
        made = await her_map.read_map(mesh, "phone")
    assert her_map.map_content(made) == {"views": [{"outcome": "withheld"}], "is_whole": True}
    assert [request.device_id for request in evaluators.requests] == ["phone", "phone"]


async def test_each_partition_is_asked_once_and_a_missing_one_is_said() -> None:
    halves = (answered(WITHHELD, partitions=(0, 1), count=4), answered(partitions=(2, 3), count=4))
    whole, half = Evaluators(*halves), Evaluators(halves[0], BEHIND)
    async with mesh_of(whole) as mesh:
        assert (await her_map.read_map(mesh, "phone")).is_whole
    assert [list(request.covered_partitions) for request in whole.requests] == [[], [0, 1]]
    async with mesh_of(half) as mesh:
        made = await her_map.read_map(mesh, "phone")
    assert not made.is_whole and len(half.requests) == her_map.MAX_CALLS


@pytest.mark.parametrize(("code", "calls"), [(BEHIND, her_map.MAX_CALLS), (grpc.StatusCode.RESOURCE_EXHAUSTED, 1)])
async def test_a_refusal_of_all_is_an_error(code: grpc.StatusCode, calls: int) -> None:
    evaluators = Evaluators(code)
    async with mesh_of(evaluators) as mesh:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await her_map.read_map(mesh, "phone")
    assert refused.value.code() is code and len(evaluators.requests) == calls


async def test_the_app_gets_ages_rather_than_times_and_no_id() -> None:
    view = region_map_pb2.RegionView(
        outcome=region_map_pb2.REGION_SHOWN,
        circles=[region_map_pb2.RegionCircle(lat_deg=37.5, lon_deg=127.0, radius_m=150)],
        grows_mps=1.5,
        fix_time=times.to_timestamp(T0_MS),
        as_of=times.to_timestamp(T0_MS + 20_000),
        unknown_from=times.to_timestamp(T0_MS + 180_000),
        from_her=region_map_pb2.RegionFromHer(
            least_m=200, greatest_m=600, direction=region_map_pb2.NORTH_EAST, way_out=region_map_pb2.SOUTH
        ),
    )
    here = region_map_pb2.RegionView()
    here.CopyFrom(view)
    here.from_her.direction, here.from_her.least_m = region_map_pb2.DIRECTION_UNSPECIFIED, 0
    future = region_map_pb2.RegionView(outcome=region_map_pb2.RegionOutcome.ValueType(77))
    async with mesh_of(Evaluators(answered(view, here, future))) as mesh:
        drawn = her_map.map_content(await her_map.read_map(mesh, "phone"))["views"]
    assert drawn[0] == {
        "outcome": "shown",
        "circles": [{"lat": 37.5, "lon": 127.0, "radius_m": 150}],
        "grows_mps": 1.5,
        "age_s": 20.0,
        "unknown_in_s": 160.0,
        "from_her": {"least_m": 200, "greatest_m": 600, "direction": "north_east", "way_out": "south"},
    }
    assert drawn[1]["from_her"]["direction"] == "" and drawn[2] == {"outcome": "unknown"}
