"""gRPC calls that survive a killed server: unary calls are retried, and streams resume where they broke.

Every method of the mesh may be retried: records carry versions, reports carry ids, and an assignment takes one acknowledgement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import TypeVar

import grpc
import grpc.aio

from services.cli.failure import CommandFailed
from services.cli.stack.mesh import Metadata
from services.common.retrying import Backoff
from services.common.rpc.server import UNARY_DEADLINE_S

PATIENCE_S = 60.0
"""Maximum time that a command waits for a part of the mesh before the command fails, seconds of wall time."""
RETRY = Backoff(0.1, 1.0)
"""Delays between attempts of a call or a stream."""

_LATER = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.CANCELLED,  # a stopping server cancels its calls
)

Request = TypeVar("Request")
Response = TypeVar("Response")


def may_succeed_later(error: grpc.aio.AioRpcError) -> bool:
    """Whether a retry of the same call may succeed."""
    # grpc.aio reports "Internal error from Core" when the connection breaks during a write.
    return error.code() in _LATER or error.details() == "Internal error from Core"


class Retries:
    """Retries of a call, until PATIENCE_S after it began or was last answered."""

    def __init__(self) -> None:
        self.answered()

    def answered(self) -> None:
        """Notes an answer: patience and delays begin afresh."""
        self._number, self._give_up_at = 0, time.monotonic() + PATIENCE_S

    async def wait(self, error: grpc.aio.AioRpcError) -> None:
        """Waits before the next attempt. Raises the error if a retry can't succeed, and CommandFailed once the time is over."""
        if not may_succeed_later(error):
            raise error
        if time.monotonic() > self._give_up_at:
            raise CommandFailed(f"no answer for {PATIENCE_S:.0f} s: {error.code().name}: {error.details()}") from error
        await asyncio.sleep(RETRY.delay_s(self._number))
        self._number += 1


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, identity: Metadata
) -> Response:
    """Make a unary call, with retries. Raises AioRpcError if it is refused, CommandFailed after 60 s without an answer."""
    retries = Retries()
    while True:
        try:
            return await method(request, timeout=UNARY_DEADLINE_S, metadata=identity)
        except grpc.aio.AioRpcError as error:
            await retries.wait(error)


async def follow(open_stream: Callable[[], grpc.aio.UnaryStreamCall[Request, Response]]) -> AsyncIterator[Response]:
    """Messages of a gRPC stream, until cancelled. A broken stream is reopened.

    `open_stream` must open the stream after the last message that the caller of `follow` has received.
    """
    while True:
        stream = open_stream()
        try:
            async for message in stream:
                yield message
        except grpc.aio.AioRpcError as error:
            if not may_succeed_later(error):
                raise
        finally:
            stream.cancel()
        await asyncio.sleep(RETRY.first_s)
