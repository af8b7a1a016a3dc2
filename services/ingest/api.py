"""The gRPC edge of ingest: batches in, an answer to each in its order once what was accepted is durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc.aio

from services.common import fields, rpc
from services.common.errors import InvalidField, StoreFull
from services.ingest import batches, metrics
from services.ingest.batches import Batch, Gathering
from services.ingest.commands import Commands
from services.ingest.domain import BATCH_MOST, Sender
from services.ingest.intake import Intake
from services.ingest.quarantine import Quarantine
from services.ingest.stream import Answer, Stream, outcomes, refusals_to_proto
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

STREAMS_MOST = 256
"""Open streams of one caller."""
REASON_MOST_CHARS = 200


class IngestApi(ingest_pb2_grpc.IngestServiceServicer):
    """Takes reports into the log."""

    def __init__(self, intake: Intake, commands: Commands, quarantine: Quarantine) -> None:
        self._intake, self._commands, self._quarantine = intake, commands, quarantine
        self._gathering = Gathering(intake, commands)
        self._streams: Counter[str] = Counter()

    async def Report(
        self,
        request_iterator: AsyncIterator[ingest_pb2.ReportRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[ingest_pb2.ReportResponse]:
        sender = _sender()
        with self._one_more_stream(sender):
            stream = Stream()
            taking = asyncio.create_task(self._take_all(sender, request_iterator, stream))
            try:
                while (response := await stream.next()) is not None:
                    yield response
                await taking
            finally:
                stream.close()
                self._commands.closed(stream)
                taking.cancel()
                with suppress(asyncio.CancelledError):
                    await taking

    async def ReportBatch(
        self, request: ingest_pb2.ReportBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ReportBatchResponse:
        sender = _sender()
        count = self._read_receipts(sender, request)
        if not count:
            return ingest_pb2.ReportBatchResponse()
        taken = await self._intake.take(sender, batches.read(request), request.backfill, "unary")
        commands = self._commands.for_contact(taken.device_ids)
        self._commands.sent(commands)
        return ingest_pb2.ReportBatchResponse(
            outcomes=outcomes(count, taken.refusals),
            refusals=refusals_to_proto(len(request.positions), taken.refusals),
            commands=commands,
        )

    async def ListQuarantine(
        self, request: ingest_pb2.ListQuarantineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListQuarantineResponse:
        return await self._quarantine.listed(request.device_id)

    @contextmanager
    def _one_more_stream(self, sender: Sender) -> Iterator[None]:
        if self._streams[sender.spiffe_id] >= STREAMS_MOST:
            metrics.STREAMS_REFUSED.inc()
            raise StoreFull(f"{STREAMS_MOST} streams of this caller are open", retry_after_s=5.0)
        self._streams[sender.spiffe_id] += 1
        metrics.STREAMS.inc()
        try:
            yield
        finally:
            metrics.STREAMS.dec()
            self._streams[sender.spiffe_id] -= 1
            if not self._streams[sender.spiffe_id]:
                del self._streams[sender.spiffe_id]

    async def _take_all(
        self, sender: Sender, requests: AsyncIterator[ingest_pb2.ReportRequest], stream: Stream
    ) -> None:
        try:
            async for request in requests:
                await stream.window()
                count = self._read_receipts(sender, request)
                answer = Answer(request.batch, count, len(request.positions), request.together)
                stream.answer(answer)
                if not count:
                    stream.admitted(answer, None, 0)
                elif batches.is_small(request):
                    self._gathering.add(sender, request, stream, answer)
                else:
                    await batches.take(self._intake, self._commands, sender, request, stream, answer)
        finally:
            stream.end()  # what came before a bad frame is answered first

    def _read_receipts(self, sender: Sender, request: Batch) -> int:
        """Takes a request's receipts and returns how many reports it has. Raises InvalidField."""
        count = len(request.positions) + len(request.equipment)
        receipts = request.receipts
        if count > BATCH_MOST or not (count or receipts):
            raise InvalidField("positions", f"a batch holds 1 to {BATCH_MOST} reports, this one {count}")
        if not receipts:
            return count
        if len(receipts) > BATCH_MOST:
            raise InvalidField("receipts", f"at most {BATCH_MOST}, not {len(receipts)}")
        for i, one in enumerate(receipts):
            fields.required_id(f"receipts[{i}].command_id", one.command_id)
            fields.required_id(f"receipts[{i}].device_id", one.device_id)
            if len(one.refused_because) > REASON_MOST_CHARS:
                raise InvalidField(f"receipts[{i}].refused_because", f"at most {REASON_MOST_CHARS} characters")
        self._commands.receipts(sender, receipts)
        return count


def _sender() -> Sender:
    spiffe_id = rpc.caller().spiffe_id
    return Sender(spiffe_id, spiffe_id.removeprefix("spiffe://vendor/"), "")
