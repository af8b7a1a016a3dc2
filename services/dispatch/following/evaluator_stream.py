"""One stream to one evaluator, over which all shares of a leg at that evaluator are opened, followed and ended."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable
from itertools import islice
from typing import Any, Protocol

import grpc.aio

from services.common.observability.outages import Outages
from services.common.observability.telemetry import logger
from services.common.retrying import Backoff
from services.common.rpc import client, server
from services.dispatch.following.endpoints import EvaluatorEndpoint
from services.dispatch.following.metrics import FollowingMetrics
from services.dispatch.settings import DispatchSettings
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

RECONNECT = Backoff(0.2, 5.0)
"""Delays before a stream is reopened, seconds of wall time."""
AT_ONCE_S = 0.2
"""Maximum delay before a stream that worked is reopened the first time, seconds. It is shorter than the evaluator waits before it ends
the shares of a broken stream."""
CONNECT_TIMEOUT_S = 2.0
"""Time within which an evaluator must answer a new stream, seconds."""
WORKS_AFTER_S = 1.0
"""Time after which a stream counts as working although nothing arrived, seconds."""
REQUEST_DELAY_S = 0.05
"""Time for which changes of shares are collected after the first one, seconds. An offer and the alerts that follow it change the shares
several times, and the offers of all legs go first."""
_OUTAGES = Outages("target_stream_broke", "target_stream_works")
CHANGES_PER_REQUEST = 500
"""Maximum number of shares that a request adds, and of shares that it removes."""
NEWEST_FIRST = (("grpc.http2.lookahead_bytes", 256), ("grpc.http2.bdp_probe", 0), ("grpc.use_local_subchannel_pool", 1))
"""Options of a gRPC channel. Buffers are small, so that a slow reader gets the newest positions. Channels share no connection."""


class Listener(Protocol):
    """Receiver of what happens on the streams."""

    def on_connected(self, stream: EvaluatorStream) -> None:
        """The stream is open and has no shares yet."""

    def on_event(self, event: positions_pb2.ShareEvent) -> None:
        """The evaluator sent an event of a share."""

    def on_broken(self, stream: EvaluatorStream) -> None:
        """The stream broke. It is reopened soon."""

    def on_away(self, stream: EvaluatorStream) -> None:
        """The evaluator can't be reached."""


class EvaluatorStream:
    """Stream to one evaluator, reopened when it breaks."""

    def __init__(
        self,
        endpoint: EvaluatorEndpoint,
        settings: DispatchSettings,
        caller: str,
        *,
        metrics: FollowingMetrics,
        listener: Listener,
    ) -> None:
        self.endpoint = endpoint
        self.is_connected = False
        self._settings, self._caller = settings, caller
        self._metrics, self._listener = metrics, listener
        self._adds: dict[int, positions_pb2.ShareRequest] = {}
        """Shares that the evaluator wasn't asked for yet, by number."""
        self._removes: dict[int, None] = {}
        self._unsent = asyncio.Event()

    def add(self, request: positions_pb2.ShareRequest) -> None:
        """Opens a share. Call it only while the stream is connected."""
        self._adds[request.number] = request
        self._unsent.set()

    def remove(self, number: int) -> None:
        """Ends a share."""
        if self._adds.pop(number, None) is None and self.is_connected:
            self._removes[number] = None
            self._unsent.set()

    async def run(self, changed: Callable[[], None]) -> None:
        """Keeps the stream open until cancelled. Calls `changed` when the evaluators' addresses may have changed."""
        connection = client.connection(
            self._settings,
            self.endpoint.address,
            self._caller,
            *NEWEST_FIRST,
            server_name=self.endpoint.server_name,
        )
        async with connection as (channel, metadata):
            stub, failures = positions_pb2_grpc.PositionServiceStub(channel), 0
            while True:
                code, worked = await self._follow(stub, metadata)
                self._metrics.streams_broken.labels(code).inc()
                if worked:
                    logger().info("target_stream_broke", code=code, evaluator=self.endpoint.address)
                else:
                    _OUTAGES.failed({"evaluator": self.endpoint.address}, code, logging.WARNING)
                changed()
                failures = 0 if worked else failures + 1
                if not worked:
                    self._listener.on_away(self)
                # Add jitter: when an evaluator stops, the streams of all legs break together.
                longest_s = AT_ONCE_S if worked else RECONNECT.delay_s(failures - 1)
                await asyncio.sleep(longest_s * random.uniform(0.5, 1.0))  # noqa: S311  # no secret

    async def _follow(
        self, stub: positions_pb2_grpc.PositionServiceStub, metadata: server.Metadata
    ) -> tuple[str, bool]:
        """Follows until the stream breaks. Returns the code, and whether the stream worked."""
        call: Any = stub.FollowPositions(metadata=metadata)
        writing: asyncio.Task[None] | None = None
        loop, worked, code = asyncio.get_running_loop(), False, "ended"
        opened_s = math.inf
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await call.initial_metadata()
            if call.done():
                return (await call.code()).name, False
            opened_s, self.is_connected = loop.time(), True
            self._listener.on_connected(self)
            writing = asyncio.create_task(self._write(call))
            with _OUTAGES.working({"evaluator": self.endpoint.address}):
                async for response in call:
                    worked = True
                    for event in response.events:
                        self._listener.on_event(event)
        except grpc.aio.AioRpcError as error:
            code = error.code().name
        except TimeoutError:
            code = grpc.StatusCode.DEADLINE_EXCEEDED.name
        finally:
            call.cancel()
            if writing:
                writing.cancel()
            if self.is_connected:
                self.is_connected = False
                self._adds.clear()
                self._removes.clear()
                self._listener.on_broken(self)
        return code, worked or loop.time() - opened_s >= WORKS_AFTER_S

    async def _write(self, call: Any) -> None:
        while True:
            await self._unsent.wait()
            await asyncio.sleep(REQUEST_DELAY_S)
            self._unsent.clear()
            while self._adds or self._removes:
                removes = list(islice(self._removes, CHANGES_PER_REQUEST))
                adds = list(islice(self._adds, CHANGES_PER_REQUEST))
                for number in removes:
                    del self._removes[number]
                requests = [self._adds.pop(number) for number in adds]
                try:
                    await call.write(positions_pb2.FollowPositionsRequest(removes=removes, adds=requests))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    return  # the stream broke, and its reader says why
