"""The gRPC edge of ingest: batches in, an answer to each in its order once what was accepted is durable."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import grpc.aio

from services.common import fields
from services.common.observability.telemetry import logger
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, StoreFull
from services.ingest import metrics
from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.admission.quarantine import Quarantine
from services.ingest.commands.service import Commands
from services.ingest.domain import MAX_BATCH, Sender
from services.ingest.endpoints import batches
from services.ingest.endpoints.batches import Batch, Coalescer
from services.ingest.endpoints.stream import (
    MAX_ALL_UNANSWERED_REPORTS,
    MAX_CALLER_UNANSWERED_REPORTS,
    PendingAnswer,
    ReportStream,
    outcomes,
    refusals_to_proto,
)
from services.ingest.intake import Intake
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

MAX_STREAMS = 256
"""Open streams of one caller."""
REASON_MOST_CHARS = 200
UNREAD_MOST_S = 30.0
"""A stream whose peer takes no answer for so long is ended: until then it keeps room from the caller's other streams."""
STATUS_WITHIN_S = 5.0
"""How long the status of such a stream has to get away, before the stream is cut off."""


class IngestApi(ingest_pb2_grpc.IngestServiceServicer):
    """Takes reports into the log."""

    def __init__(self, intake: Intake, commands: Commands, quarantine: Quarantine) -> None:
        self._intake, self._commands, self._quarantine = intake, commands, quarantine
        self._gathering = Coalescer(intake, commands)
        self._streams: Counter[str] = Counter()
        self._unanswered = InFlightLimiter(MAX_CALLER_UNANSWERED_REPORTS, MAX_ALL_UNANSWERED_REPORTS)
        metrics.UNANSWERED.set_function(lambda: self._unanswered.total)

    async def Report(
        self,
        request_iterator: AsyncIterator[ingest_pb2.ReportRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[ingest_pb2.ReportResponse]:
        sender = _sender()
        with self._one_more_stream(sender):
            stream = ReportStream(sender, self._unanswered)
            taking = asyncio.create_task(self._take_all(sender, request_iterator, stream))
            ending = asyncio.create_task(_end_unread(stream, taking, context, asyncio.current_task()))
            try:
                while (response := await stream.next()) is not None:
                    yield response
                await taking
            finally:
                stream.close()
                ending.cancel()
                taking.cancel()
                # What it ended with was raised above, unless an answer's own error came first: that is the one to tell.
                await asyncio.gather(taking, return_exceptions=True)

    async def ReportBatch(
        self, request: ingest_pb2.ReportBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ReportBatchResponse:
        sender = _sender()
        receipts = self._take_receipts(sender, request)
        count = len(request.positions) + len(request.equipment)
        if not count:
            await asyncio.gather(*receipts)
            return ingest_pb2.ReportBatchResponse()
        taken = await self._intake.take(sender, batches.read(request), request.backfill, "unary")
        await asyncio.gather(*receipts)
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
        if self._streams[sender.spiffe_id] >= MAX_STREAMS:
            metrics.STREAMS_REFUSED.inc()
            raise StoreFull(f"{MAX_STREAMS} streams of this caller are open", retry_after_s=5.0)
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
        self, sender: Sender, requests: AsyncIterator[ingest_pb2.ReportRequest], stream: ReportStream
    ) -> None:
        try:
            async for request in requests:
                count = len(request.positions) + len(request.equipment)
                await stream.window(max(1, count + len(request.receipts)))
                receipts = self._take_receipts(sender, request)
                answer = PendingAnswer(request.batch, count, len(request.positions), request.together, receipts)
                stream.answer(answer)
                if not count:
                    stream.admitted(answer, None, 0)
                elif batches.is_small(request):
                    self._gathering.add(sender, request, stream, answer)
                else:
                    try:
                        await batches.take(self._intake, self._commands, sender, request, stream, answer)
                    except Exception as error:  # the stream ends with it, once what came before is answered
                        stream.failed(answer, error)
                        return
        finally:
            stream.end()  # what came before a bad frame is answered first

    def _take_receipts(self, sender: Sender, request: Batch) -> Sequence[asyncio.Future[None]]:
        """Takes a request's receipts; each is done once it is stored. Raises InvalidField where a request has nothing, or too much."""
        count, receipts = len(request.positions) + len(request.equipment), request.receipts
        if count > MAX_BATCH or not (count or receipts):
            raise InvalidField("positions", f"a batch holds 1 to {MAX_BATCH} reports, this one {count}")
        if not receipts:
            return ()
        if len(receipts) > MAX_BATCH:
            raise InvalidField("receipts", f"at most {MAX_BATCH}, not {len(receipts)}")
        for i, receipt in enumerate(receipts):
            fields.required_id(f"receipts[{i}].command_id", receipt.command_id)
            fields.required_id(f"receipts[{i}].device_id", receipt.device_id)
            if len(receipt.refused_because) > REASON_MOST_CHARS:
                raise InvalidField(f"receipts[{i}].refused_because", f"at most {REASON_MOST_CHARS} characters")
        return self._commands.receipts(sender, receipts)


async def _end_unread(
    stream: ReportStream,
    taking: asyncio.Task[None],
    context: grpc.aio.ServicerContext[Any, Any],
    serving: asyncio.Task[Any] | None,
) -> None:
    """Ends a stream once its peer hasn't taken an answer for 30 s. The method itself stands still until the answer is taken."""
    loop = asyncio.get_running_loop()
    while True:
        waits_s = 0.0 if stream.handed_s is None else loop.time() - stream.handed_s
        if waits_s >= UNREAD_MOST_S:
            break
        await asyncio.sleep(UNREAD_MOST_S - waits_s)
    metrics.UNREAD.inc()
    logger().warning("stream_unread", sender=stream.sender.spiffe_id, seconds=round(waits_s))
    stream.close()
    taking.cancel()
    # Behind answers that nobody takes the status may not get away either.
    with suppress(Exception):
        async with asyncio.timeout(STATUS_WITHIN_S):
            await server.abort(context, StoreFull(f"no answer was read for {UNREAD_MOST_S:g} s", retry_after_s=5.0))
    if serving is not None:
        serving.cancel()


def _sender() -> Sender:
    spiffe_id = server.caller().spiffe_id
    return Sender(spiffe_id, spiffe_id.removeprefix("spiffe://vendor/"), "")
