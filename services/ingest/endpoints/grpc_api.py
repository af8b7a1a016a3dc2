"""gRPC endpoint of ingest: answers each batch, in order, once its accepted reports are durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import grpc.aio

from services.common import fields
from services.common.observability.telemetry import logger
from services.common.rpc import server, statuses
from services.common.rpc.errors import InvalidField, StoreFull
from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.admission.quarantine import Quarantine
from services.ingest.commands.delivery import CommandDelivery
from services.ingest.domain import MAX_BATCH, Endpoint, Sender
from services.ingest.endpoints import batches
from services.ingest.endpoints.batches import Batches, Request
from services.ingest.endpoints.stream import (
    MAX_ALL_UNANSWERED_REPORTS,
    MAX_CALLER_UNANSWERED_REPORTS,
    PendingAnswer,
    ReportStream,
    outcomes,
    refusals_to_proto,
)
from services.ingest.intake import Intake
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

MAX_STREAMS = 256
"""Maximum number of open streams of one caller."""
MAX_BATCH_CALLS = 128
"""Maximum number of calls of ReportBatch of one caller. Those with equipment events wait while the caller's share is full, so without
this bound they could fill the memory."""
MAX_REASON_CHARS = 200
MAX_UNREAD_S = 30.0
"""Time after which a stream is ended if its sender reads no answer, seconds. Until then its reports use up the caller's share."""
STATUS_WITHIN_S = 5.0
"""Maximum time to send the final status of an unread stream, seconds. After it the stream is cut off."""


class IngestApi(ingest_pb2_grpc.IngestServiceServicer):
    """Accepts reports on streams and in single batches, and lists the refused ones."""

    def __init__(
        self, intake: Intake, commands: CommandDelivery, quarantine: Quarantine, *, metrics: IngestMetrics
    ) -> None:
        self._intake, self._commands, self._quarantine, self._metrics = intake, commands, quarantine, metrics
        self._batches = Batches(intake, commands)
        self._streams: Counter[str] = Counter()
        self._batch_calls: Counter[str] = Counter()
        self._unanswered = InFlightLimiter(MAX_CALLER_UNANSWERED_REPORTS, MAX_ALL_UNANSWERED_REPORTS)

    @property
    def unanswered(self) -> int:
        """Number of reports of streams whose answers the sender has not read yet."""
        return self._unanswered.total

    async def Report(
        self,
        request_iterator: AsyncIterator[ingest_pb2.ReportRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[ingest_pb2.ReportResponse]:
        sender = _sender()
        with self._counted_stream(sender):
            stream = ReportStream(sender, self._unanswered)
            stream.brings_refused = self._intake.is_in_arrears(sender)  # a new stream is no way round the others' turns
            reading = asyncio.create_task(self._accept_all(request_iterator, stream))
            ending = asyncio.create_task(self._end_unread(stream, reading, context, serving=asyncio.current_task()))
            try:
                while (response := await stream.next()) is not None:
                    yield response
                await reading
            finally:
                stream.close()
                ending.cancel()
                reading.cancel()
                # The reader's error was raised above, unless an answer failed first: then the stream ends with the answer's error.
                await asyncio.gather(reading, return_exceptions=True)

    async def ReportBatch(
        self, request: ingest_pb2.ReportBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ReportBatchResponse:
        sender = _sender()
        with _counted(self._batch_calls, sender, most=MAX_BATCH_CALLS, what="calls"):
            return await self._report_batch(sender, request)

    async def _report_batch(
        self, sender: Sender, request: ingest_pb2.ReportBatchRequest
    ) -> ingest_pb2.ReportBatchResponse:
        batches.size_of(request)
        receipts = self._accept_receipts(sender, request)
        count = batches.count_of(request)
        if not count:
            await asyncio.gather(*receipts)
            return ingest_pb2.ReportBatchResponse()
        batch = await self._intake.accept(sender, batches.read([request]), endpoint=Endpoint.UNARY)
        await asyncio.gather(*receipts)
        commands = self._commands.due_commands(batch.device_ids)
        self._commands.sent(commands)
        return ingest_pb2.ReportBatchResponse(
            outcomes=outcomes(count, batch.refusals),
            refusals=refusals_to_proto(len(request.positions), len(request.equipment), batch.refusals),
            commands=commands,
        )

    async def ListQuarantine(
        self, request: ingest_pb2.ListQuarantineRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ListQuarantineResponse:
        return await self._quarantine.listed(request.device_id)

    @contextmanager
    def _counted_stream(self, sender: Sender) -> Iterator[None]:
        if self._streams[sender.spiffe_id] >= MAX_STREAMS:
            self._metrics.streams_refused.inc()
        with _counted(self._streams, sender, most=MAX_STREAMS, what="streams"):
            self._metrics.streams.inc()
            try:
                yield
            finally:
                self._metrics.streams.dec()

    async def _accept_all(self, requests: AsyncIterator[ingest_pb2.ReportRequest], stream: ReportStream) -> None:
        try:
            async for request in requests:
                count, held = batches.count_of(request), batches.size_of(request)
                await stream.window(held)
                receipts = self._accept_receipts(stream.sender, request)
                answer = PendingAnswer(
                    number=request.batch,
                    count=count,
                    positions=len(request.positions),
                    equipment=len(request.equipment),
                    together=request.together,
                    receipts=receipts,
                    held=held,
                )
                stream.answer(answer)
                if count:
                    await self._batches.admit(stream, request, answer)
                    if answer.error is not None:
                        return  # the stream ends with the error, once the requests before are answered
        finally:
            stream.end()  # the requests before a bad frame are still answered

    def _accept_receipts(self, sender: Sender, request: Request) -> Sequence[asyncio.Future[None]]:
        """Accepts a request's receipts. Each future is done once its receipt is stored. Raises InvalidField."""
        count, receipts = batches.count_of(request), request.receipts
        if count > MAX_BATCH or not (count or receipts):
            raise InvalidField("positions", f"a batch holds 1 to {MAX_BATCH} reports, this one {count}")
        if not receipts:
            return ()
        if len(receipts) > MAX_BATCH:
            raise InvalidField("receipts", f"a batch holds at most {MAX_BATCH} receipts, this one {len(receipts)}")
        for i, receipt in enumerate(receipts):
            fields.required_id(f"receipts[{i}].command_id", receipt.command_id)
            fields.required_id(f"receipts[{i}].device_id", receipt.device_id)
            if len(receipt.refused_because) > MAX_REASON_CHARS:
                raise InvalidField(f"receipts[{i}].refused_because", f"must have at most {MAX_REASON_CHARS} characters")
        return self._commands.accept_receipts(sender, receipts)

    async def _end_unread(
        self,
        stream: ReportStream,
        reading: asyncio.Task[None],
        context: grpc.aio.ServicerContext[Any, Any],
        *,
        serving: asyncio.Task[Any] | None,
    ) -> None:
        """Ends a stream if its sender reads no answer for MAX_UNREAD_S. The RPC method can't: it blocks until the answer is read."""
        loop = asyncio.get_running_loop()
        while True:
            waits_s = 0.0 if stream.handed_over_s is None else loop.time() - stream.handed_over_s
            if waits_s >= MAX_UNREAD_S:
                break
            await asyncio.sleep(MAX_UNREAD_S - waits_s)
        self._metrics.unread.inc()
        logger().warning("stream_unread", sender=stream.sender.spiffe_id, seconds=round(waits_s))
        stream.close()
        reading.cancel()
        # The status waits behind the unread answers, so it may not get out either.
        with suppress(Exception):
            async with asyncio.timeout(STATUS_WITHIN_S):
                await statuses.abort(
                    context,
                    StoreFull(
                        f"the stream was closed, as its sender read no answer for {MAX_UNREAD_S:g} s: open a new one and read "
                        "its answers",
                        retry_after_s=5.0,
                    ),
                )
        if serving is not None:
            serving.cancel()


@contextmanager
def _counted(open_calls: Counter[str], sender: Sender, *, most: int, what: str) -> Iterator[None]:
    """Counts a caller's call during a block. Raises StoreFull if the caller has `most` such calls already."""
    caller_id = sender.spiffe_id
    if open_calls[caller_id] >= most:
        raise StoreFull(
            f"{most} {what} of this caller are open, which is the maximum: close one, or use fewer", retry_after_s=5.0
        )
    open_calls[caller_id] += 1
    try:
        yield
    finally:
        open_calls[caller_id] -= 1
        if not open_calls[caller_id]:
            del open_calls[caller_id]


def _sender() -> Sender:
    spiffe_id = server.caller().spiffe_id
    return Sender(spiffe_id, spiffe_id.removeprefix("spiffe://vendor/"), "")
