"""Subscriptions that nobody reads, over real gRPC: they end, and they cost their desk none of its other calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import grpc.aio
import pytest

from services.common.messaging.bus import Bus
from services.common.rpc import gatekeeper, server
from services.dispatch.leg import feed
from services.dispatch.settings import DispatchSettings
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc
from tandem.dispatch.v1.dispatch_pb2 import OFFERED
from tests.support.dispatch.dispatch import DESKS, PATIENCE_S, SECRET, RunningLeg, alert, publish, running

NAMES = [f"incident-{n}" for n in range(300)]
"""Incidents whose steps don't fit into the window of a stream that isn't read."""
SUBSCRIPTIONS, CHANNELS = 1_000, 4
SMALL_WINDOW = (
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", 65_536),
    ("grpc.use_local_subchannel_pool", 1),
)
"""Small client buffers, and a connection for each channel. By default a client buffers megabytes that nobody has read."""
ENDED = ("tandem_grpc_streams_unread_total", {"method": "Subscribe"})
"""Metric of the ended streams, with its labels."""
POLICE = server.bearer(DESKS["police"], SECRET)


@asynccontextmanager
async def stub_of(settings: DispatchSettings) -> AsyncIterator[dispatch_pb2_grpc.DispatchServiceStub]:
    """A client of a leg over a connection of its own."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{settings.port}", options=SMALL_WINDOW) as channel:
        yield dispatch_pb2_grpc.DispatchServiceStub(channel)


async def offer_all(bus: Bus, leg: RunningLeg) -> None:
    """Opens the incidents and returns once the leg has offered each."""
    async with leg.caller("spiffe://npa/desk/busan").subscription() as steps:
        await publish(bus, *(alert(n, incident=name) for n, name in enumerate(NAMES, 1)))
        offered: set[str] = set()
        while len(offered) < len(NAMES):
            offered.add((await steps.next(OFFERED)).step.assignment.incident_id)


async def last_status(call: Any) -> grpc.StatusCode:
    """Reads a stream to its end."""
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        async for _ in call:
            pass
    return ended.value.code()


async def test_a_subscription_that_is_not_read_is_ended(
    bus: Bus, police: DispatchSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gatekeeper, "MAX_UNREAD_S", 1.0)
    async with running(police) as leg, stub_of(police) as stub:
        await offer_all(bus, leg)
        call: Any = stub.Subscribe(dispatch_pb2.SubscribeRequest(), metadata=POLICE)
        async with asyncio.timeout(PATIENCE_S):
            while not leg.registry.get_sample_value(*ENDED):  # noqa: ASYNC110 - only the metric shows it
                await asyncio.sleep(0.05)
            assert await last_status(call) is grpc.StatusCode.RESOURCE_EXHAUSTED
        # A stream that is read lasts, however long nothing comes.
        async with leg.desk.subscription() as steps:
            for _ in NAMES:
                await steps.next(OFFERED)


async def test_a_thousand_unread_subscriptions_of_a_desk_cost_it_none_of_its_calls(
    bus: Bus, police: DispatchSettings
) -> None:
    async with running(police) as leg, AsyncExitStack() as stack:
        await offer_all(bus, leg)
        stubs = [await stack.enter_async_context(stub_of(police)) for _ in range(CHANNELS)]
        calls: list[Any] = [
            stubs[n % CHANNELS].Subscribe(dispatch_pb2.SubscribeRequest(), metadata=POLICE)
            for n in range(SUBSCRIPTIONS)
        ]
        for _ in range(20):
            assert len((await leg.desk.list(page_size=10)).incidents) == 10
            await leg.desk.acknowledge((await leg.desk.list()).incidents[0].assignments[0].assignment_id)
        ends = [asyncio.create_task(last_status(call)) for call in calls]
        async with asyncio.timeout(PATIENCE_S):
            while sum(end.done() for end in ends) < SUBSCRIPTIONS - feed.MAX_OF_DESK:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert {end.result() for end in ends if end.done()} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        async with leg.desk.subscription() as steps:
            await steps.next(OFFERED)
        for call in calls:
            call.cancel()
        await asyncio.gather(*ends, return_exceptions=True)
