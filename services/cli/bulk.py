"""Records put in bulk: batches on one stream, resent where the stream broke."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import TypeAlias, assert_never

import grpc
import grpc.aio

from services.cli.calls import Retries
from services.cli.stack.mesh import Metadata
from services.common.rpc.server import MAX_MESSAGE_BYTES
from tandem.registry.v1 import registry_pb2, registry_pb2_grpc

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
