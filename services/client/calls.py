"""gRPC calls that survive a killed server: unary calls are retried, streams resume where they broke, and records are put in bulk.

Every method of the mesh may be retried: records carry versions, reports carry ids, and an assignment takes one acknowledgement.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeAlias, TypeVar, assert_never

import grpc
import grpc.aio

from services.common.failure import CommandFailed
from services.common.retrying import Backoff
from services.common.rpc.server import MAX_MESSAGE_BYTES, UNARY_DEADLINE_S, Metadata
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc

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


async def call_once(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, identity: Metadata
) -> Response:
    """Make a unary call within UNARY_DEADLINE_S, without retries: for a caller whose person waits. Raises AioRpcError."""
    return await method(request, timeout=UNARY_DEADLINE_S, metadata=identity)


async def call(
    method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request, identity: Metadata
) -> Response:
    """Make a unary call, with retries. Raises AioRpcError if it is refused, CommandFailed after 60 s without an answer."""
    retries = Retries()
    while True:
        try:
            return await call_once(method, request, identity)
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


BATCH = 200
"""Maximum number of records in a batch. The registry accepts more, but single puts wait for a batch."""
BATCH_BYTES = MAX_MESSAGE_BYTES // 2
"""Size of a batch after which the next record begins a new batch, bytes."""
_OVERHEAD_BYTES = 64
"""Bytes of a batch besides its records, at the most, if it holds one record."""

AnyRecord: TypeAlias = (
    registry_pb2.Wearer | registry_pb2.Tag | registry_pb2.ProtectedPerson | registry_pb2.Device | registry_pb2.Order
)


async def put_records(
    registry: registry_pb2_grpc.RegistryServiceStub,
    records: Sequence[AnyRecord],
    identity: Metadata,
    *,
    on_answered: Callable[[int], None] = lambda _: None,
) -> list[registry_pb2.RecordResult]:
    """Put records in their order; returns the result for each. `on_answered` gets the number of records after each answer.

    A record that is too large for a message is refused here, and not sent. Raises AioRpcError if the registry refuses the stream,
    CommandFailed after 60 s without an answer.
    """
    results = [_refused(record) for record in records]
    batches = list(_batches([n for n, result in enumerate(results) if result is None], records))
    answered, retries = 0, Retries()
    while answered < len(batches):
        stream = registry.PutRecords(_requests(batches[answered:], records), metadata=identity)
        try:
            async for response in stream:
                for n, result in zip(batches[answered], response.results, strict=True):
                    results[n] = result
                on_answered(len(response.results))
                answered += 1
                retries.answered()
        except grpc.aio.AioRpcError as error:
            await retries.wait(error)
        finally:
            stream.cancel()
    return [result for result in results if result is not None]


def _refused(record: AnyRecord) -> registry_pb2.RecordResult | None:
    greatest = MAX_MESSAGE_BYTES - _OVERHEAD_BYTES
    if record.ByteSize() <= greatest:
        return None
    text = f"the record has {record.ByteSize()} bytes, and at most {greatest} fit: shorten its places or encounters"
    refusal = registry_pb2.Refusal(code=grpc.StatusCode.RESOURCE_EXHAUSTED.value[0], message=text)
    return registry_pb2.RecordResult(refusal=refusal)


def _batches(numbers: Sequence[int], records: Sequence[AnyRecord]) -> Iterator[list[int]]:
    """Indices of the records of each batch."""
    batch: list[int] = []
    size = 0
    for n in numbers:
        if batch and (len(batch) == BATCH or size + records[n].ByteSize() > BATCH_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(n)
        size += records[n].ByteSize()
    if batch:
        yield batch


async def _requests(
    batches: Sequence[Sequence[int]], records: Sequence[AnyRecord]
) -> AsyncIterator[registry_pb2.PutRecordsRequest]:
    for batch in batches:
        yield registry_pb2.PutRecordsRequest(records=[_wrapped(records[n]) for n in batch])


def _wrapped(record: AnyRecord) -> registry_pb2.Record:
    match record:
        case registry_pb2.Wearer():
            return registry_pb2.Record(wearer=record)
        case registry_pb2.Tag():
            return registry_pb2.Record(tag=record)
        case registry_pb2.ProtectedPerson():
            return registry_pb2.Record(protected_person=record)
        case registry_pb2.Device():
            return registry_pb2.Record(device=record)
        case registry_pb2.Order():
            return registry_pb2.Record(order=record)
        case _:
            assert_never(record)
