"""gRPC endpoint of ingest: answers each batch, in order, once its accepted reports are durable.

Small requests of a sender that arrive at the same moment are coalesced. The number of pending batches of a stream is bounded.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

import grpc.aio

from services.common import fields
from services.common.errors import InvalidField, StoreFull
from services.common.observability import telemetry
from services.common.rpc import server
from services.ingest import translate
from services.ingest.admission.checks import Quarantine
from services.ingest.batch import Batch, Contexts, Reports
from services.ingest.commands.service import CommandDelivery
from services.ingest.commands.states import CommandSession
from services.ingest.domain import MAX_BATCH, Endpoint, Refusal, Report, Sender
from services.ingest.intake import InFlightLimiter, Intake
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

MAX_STREAMS = 256
"""Maximum number of open streams of one caller."""
MAX_BATCH_CALLS = 128
"""Maximum number of calls of ReportBatch of one caller. Those with equipment events wait while the caller's share is full, so without
this bound they could fill the memory."""
MAX_REASON_CHARS = 200


class IngestApi(ingest_pb2_grpc.IngestServiceServicer):
    """Accepts reports on streams and in single batches, and lists the refused ones."""

    def __init__(
        self, intake: Intake, commands: CommandDelivery, quarantine: Quarantine, *, metrics: IngestMetrics
    ) -> None:
        self._intake = intake
        self._commands = commands
        self._quarantine = quarantine
        self._metrics = metrics
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
            try:
                while (response := await stream.next()) is not None:
                    yield response
                await reading
            finally:
                stream.close()
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
        request_size_of(request)
        receipts = self._accept_receipts(sender, request)
        count = report_count_of(request)
        if not count:
            await asyncio.gather(*receipts)
            return ingest_pb2.ReportBatchResponse()
        batch = await self._intake.accept(sender, read_requests([request]), endpoint=Endpoint.UNARY)
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
                count, held = report_count_of(request), request_size_of(request)
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
        count, receipts = report_count_of(request), request.receipts
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


SMALL_REQUEST = 3
"""Maximum number of reports in a small request, which is coalesced with others."""
BYTES_PER_REPORT = 256
"""Size of a report in the bounds of unanswered reports, bytes: a little more than a position with the longest ids takes."""
MAX_REQUEST_BYTES = 512 * 1024
"""Maximum size of a request, bytes. It holds twice the largest batch of positions. A request that waits for its turn counts in no other
bound yet, and a caller may have as many of them as streams."""
MAX_COALESCED = 500
"""Maximum number of small requests that are coalesced into one batch."""

Request: TypeAlias = ingest_pb2.ReportRequest | ingest_pb2.ReportBatchRequest
_CONTEXT = attrgetter("context")


def read_requests(requests: Sequence[Request], contexts: Contexts = ()) -> Reports:
    """Reads the reports of requests into one batch. `contexts` are the trace contexts of the reports, if these differ.

    Nearly always all reports are valid positions, so they are read at once. Otherwise they are read one by one, to name each error.
    """
    is_backfill = any(request.backfill for request in requests)
    if not any(request.equipment or request.presences for request in requests):
        messages = [msg for request in requests for msg in request.positions]
        positions = translate.read_positions(messages) if messages else None
        if positions is not None:
            count = len(messages)
            charges = translate.charges(messages)
            return Reports(count, positions, range(count), charges=charges, contexts=contexts, is_backfill=is_backfill)
    reports: list[Report | InvalidField] = []
    claimed: list[str] = []
    for request in requests:
        _read_each(request.positions, translate.parse_position, reports, claimed=claimed)
        _read_each(request.equipment, translate.parse_equipment, reports, claimed=claimed)
        _read_each(request.presences, translate.parse_presence, reports, claimed=claimed)
    batch = Reports.of(reports, claimed)
    context_of = [context for count, context in contexts for _ in range(count)]
    batch.contexts = [(1, context_of[i]) for i in batch.position_indexes] if context_of else ()
    batch.is_backfill = is_backfill
    batch.charges = [charge for request in requests for charge in translate.charges(request.positions)]
    return batch


def _read_each(
    messages: Sequence[Any],
    parse: Callable[[Any], Report],
    reports: list[Report | InvalidField],
    *,
    claimed: list[str],
) -> None:
    for msg in messages:
        claimed.append(msg.device_id)
        try:
            reports.append(parse(msg))
        except InvalidField as error:
            reports.append(error)


def report_count_of(request: Request) -> int:
    """Returns the number of reports of a request."""
    return len(request.positions) + len(request.equipment) + len(request.presences)


def request_size_of(request: Request) -> int:
    """Returns the size of a request in the bounds of unanswered reports: its reports and receipts, at least 1, or its bytes by
    BYTES_PER_REPORT if that is more. Ids of any length and unknown fields are in memory until the request is answered, too.

    Raises InvalidField if the request is larger than MAX_REQUEST_BYTES.
    """
    size_bytes = request.ByteSize()
    if size_bytes > MAX_REQUEST_BYTES:
        raise InvalidField(
            "positions",
            f"a request holds at most {MAX_REQUEST_BYTES} bytes, this one {size_bytes}: send fewer reports at a time, and ids of at "
            "most 64 characters",
        )
    return max(1, report_count_of(request) + len(request.receipts), size_bytes // BYTES_PER_REPORT)


def is_small(request: ingest_pb2.ReportRequest) -> bool:
    """Returns whether a request is worth coalescing with others: a few live positions."""
    is_other = request.equipment or request.presences or request.backfill
    return not is_other and len(request.positions) <= SMALL_REQUEST


class _JoinedRequest(NamedTuple):
    """A request of a batch."""

    stream: ReportStream
    request: ingest_pb2.ReportRequest
    answer: PendingAnswer
    context: str
    """W3C trace context of the request."""


@dataclass(slots=True)
class _Gathered:
    """A batch and the requests that joined it."""

    batch: Batch = field(default_factory=Batch)
    parts: list[_JoinedRequest] = field(default_factory=list)

    def add(self, part: _JoinedRequest) -> None:
        self.batch.join(part.stream.changed)
        part.answer.batch = self.batch
        self.parts.append(part)

    def read(self) -> Reports:
        """Reads the requests, sets the trace context of this task, and notes where each request begins in the batch."""
        contexts: Contexts = ()
        if any(part.context != self.parts[0].context for part in self.parts):
            self.parts.sort(key=_CONTEXT)  # reports of one context follow one another, which keeps the header short
            contexts = [(part.answer.count, part.context) for part in self.parts]
        # Otherwise the task would keep the context of its creator, or of the batch before.
        telemetry.carry("" if contexts else self.parts[0].context)
        first = 0
        for part in self.parts:
            part.answer.first = first
            first += part.answer.count
        return read_requests([part.request for part in self.parts], contexts)

    def sessions(self, reports: Reports) -> Mapping[str, CommandSession]:
        """Returns the open stream on which each device of an accepted report was heard."""
        if len(self.parts) == 1:
            stream = self.parts[0].stream
            return dict.fromkeys(self.batch.device_ids, stream) if stream.open else {}
        refused = {refusal.index for refusal in self.batch.refusals}
        stream_of = [part.stream for part in self.parts for _ in range(part.answer.count)]
        return {
            device_id: stream_of[i]
            for i, device_id in zip(reports.position_indexes, reports.positions.device_ids, strict=True)
            if i not in refused and stream_of[i].open
        }


class Batches:
    """Brings the requests of streams into the intake as batches: a sender's small requests together, any other request by itself.

    Processing a report alone costs several times as much as processing it among ten. So small requests wait in a queue of their sender,
    where they are coalesced. Larger requests would gain less there: CPU time per report (two loaded cores, five interleaved turns) was
    37 instead of 51 us with 5 reports a request, and 7 us both ways with 100. In the queue, a large request that needs the look-up of
    an unknown device or gets a penalty delay of up to 1 s would also hold up all streams of the sender, even a panic. So larger
    requests and equipment events skip the queue. After the queue, all requests take the same path.

    A sender whose refused reports are too many has a second queue, for the requests of its streams that bring them. Otherwise each of
    its streams would wait for its own penalty alone, and 256 of them could bring 256 times as many. Equipment events skip this queue,
    too.
    """

    def __init__(self, intake: Intake, commands: CommandDelivery) -> None:
        self._intake, self._commands = intake, commands
        self._waiting: dict[str, deque[_Gathered]] = {}
        """Waiting batches, by the key of their queue: a sender's small requests, or those of its streams that bring refused reports. A
        key is present while the worker of its queue runs."""
        self._workers: set[asyncio.Task[None]] = set()

    async def admit(self, stream: ReportStream, request: ingest_pb2.ReportRequest, answer: PendingAnswer) -> None:
        """Brings a request into the intake: before `admit` returns, unless it waits in one of the queues. An error fails the batch."""
        part = _JoinedRequest(stream=stream, request=request, answer=answer, context=telemetry.carried())
        if is_small(request):
            self._coalesce(part)
            return
        alone = _Gathered()
        alone.add(part)
        if stream.brings_refused and not request.equipment:
            self._queue(f"{stream.sender.key}/refused", stream.sender).append(alone)
        else:
            await self._admit(stream.sender, alone)

    def _coalesce(self, part: _JoinedRequest) -> None:
        sender = part.stream.sender
        waiting = self._queue(sender.key, sender)
        if not waiting or len(waiting[-1].parts) == MAX_COALESCED:
            waiting.append(_Gathered())
        waiting[-1].add(part)

    def _queue(self, key: str, sender: Sender) -> deque[_Gathered]:
        """The queue with a key, whose worker begins if it isn't running."""
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = deque()
            worker = asyncio.create_task(self._work(key, sender, waiting))
            self._workers.add(worker)
            worker.add_done_callback(self._workers.discard)
        return waiting

    async def _work(self, key: str, sender: Sender, waiting: deque[_Gathered]) -> None:
        while waiting:
            await self._admit(sender, waiting.popleft())
        del self._waiting[key]

    async def _admit(self, sender: Sender, gathered: _Gathered) -> None:
        try:
            reports = gathered.read()
            await self._intake.admit(gathered.batch, sender, reports, endpoint=Endpoint.STREAM)
            self._commands.heard(gathered.sessions(reports))
        except Exception as error:  # every stream with a request in the batch ends with this error
            gathered.batch.fail(error)
        if len(gathered.parts) == 1:
            stream = gathered.parts[0].stream
            stream.brings_refused = bool(gathered.batch.refusals) and self._intake.is_in_arrears(sender)


WINDOW = 64
"""Maximum number of pending batches of a stream. Beyond it the stream isn't read, which pushes back on the sender."""
MAX_COMMANDS = 1_000
"""Maximum number of commands that wait to be read by a sender. Further ones wait for the device's next contact."""
MAX_UNANSWERED_REPORTS = 16_000
"""Maximum number of unanswered reports of a stream. Batches of the largest size reach this maximum before WINDOW. As a request of many
bytes counts as more reports (`batches.size_of`), this is also a bound of 4 MiB, that of a caller 49 MiB, and that of all 195 MiB."""
MAX_CALLER_UNANSWERED_REPORTS = 200_000
"""Maximum number of unanswered reports of all streams of a caller."""
MAX_ALL_UNANSWERED_REPORTS = 800_000
"""Maximum number of unanswered reports of all callers."""
MAX_ANSWER_REPORTS = 1_000
"""Maximum number of reports in an answer to several batches."""

_ACCEPTED, _REFUSED = ingest_pb2.Outcome.ACCEPTED, ingest_pb2.Outcome.REFUSED


@dataclass(slots=True)
class PendingAnswer:
    """A request of a stream that waits for its answer."""

    number: int
    """Number that the sender gave the request."""
    count: int
    """Number of reports in the request."""
    positions: int
    """Number of positions in the request. They are the first reports."""
    equipment: int
    """Number of equipment events in the request. They follow the positions, and the presences follow them."""
    together: bool
    """Whether the answer may be merged with those of other requests."""
    receipts: Sequence[asyncio.Future[None]]
    """Receipts of the request; each future is done once its receipt is stored."""
    held: int
    """Size of the request among the unanswered reports, as `request_size_of` counts it."""
    batch: Batch | None = None
    """Batch of the request's reports, perhaps with those of other small requests. None until the request has joined a batch."""
    first: int = 0
    """Index of the request's first report in `batch`."""

    @property
    def is_due(self) -> bool:
        """Whether the request's batch may be answered. A request with receipts only has no batch."""
        return not self.count or (self.batch is not None and self.batch.may_be_answered)

    @property
    def error(self) -> Exception | None:
        """Error that made the request's batch fail, or None."""
        return self.batch.error if self.batch else None

    @property
    def refusals(self) -> Sequence[Refusal]:
        """Refusals of the request's reports, with indexes in this request."""
        if self.batch is None or not self.batch.refusals:
            return ()
        end = self.first + self.count
        return [
            replace(refusal, index=refusal.index - self.first)
            for refusal in self.batch.refusals
            if self.first <= refusal.index < end
        ]


class ReportStream:
    """The responses of an open report stream: answers to requests, and commands for the sender's devices."""

    def __init__(self, sender: Sender, unanswered: InFlightLimiter) -> None:
        self.sender = sender
        self._unanswered = unanswered
        self.brings_refused = False
        """Whether the sender's refused reports have become too many, and this stream brought some of them in its last batch."""
        self.open = True
        """Whether commands may be sent over the stream."""
        self.changed = asyncio.Event()
        """Set when a response may be due: a batch or a command is ready, or the stream ended."""
        self._answers: deque[PendingAnswer] = deque()
        self._commands: deque[ingest_pb2.DeviceCommand] = deque()
        self._under_way = self._held = 0
        self._ended = False
        self._window_changed = asyncio.Event()

    # ── from the reader of requests ──────────────────────────────────────────────────────────────────────────────────

    async def window(self, held: int) -> None:
        """Waits until another batch may be pending, then counts the batch. `held` is its size, as `request_size_of` counts it.

        So ingest stops reading the requests of a peer that doesn't read its answers, and the memory for the peer is bounded.
        """
        while self._under_way >= WINDOW or (self._held and self._held + held > MAX_UNANSWERED_REPORTS):
            self._window_changed.clear()
            await self._window_changed.wait()
        await self._unanswered.enter(self.sender.spiffe_id, held, patient=True)
        self._under_way += 1
        self._held += held

    def answer(self, answer: PendingAnswer) -> None:
        """Appends the next request to be answered."""
        self._answers.append(answer)
        if answer.is_due:  # otherwise the batch wakes the stream later
            self.changed.set()

    def end(self) -> None:
        """Notes that no more batches come."""
        self._ended = True
        self.changed.set()

    # ── from the commands ────────────────────────────────────────────────────────────────────────────────────────────

    def enqueue(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Queues a command for sending. Returns False if the stream is closed or its sender doesn't read."""
        if not self.open or len(self._commands) >= MAX_COMMANDS:
            return False
        self._commands.append(command)
        self.changed.set()
        return True

    def close(self) -> None:
        """Refuses further commands, and drops the pending answers and commands."""
        self.open = False
        self._answers.clear()
        self._commands.clear()
        self._release(self._held)

    # ── to the writer of responses ───────────────────────────────────────────────────────────────────────────────────

    async def next(self) -> ingest_pb2.ReportResponse | None:
        """Returns the next response, or None at the end. Raises StoreFull or Unavailable if a batch wasn't stored."""
        while not (self._commands or (self._answers and self._answers[0].is_due)):
            if self._ended and not self._answers:
                return None
            self.changed.clear()
            await self.changed.wait()
        if self._commands:
            commands = list(self._commands)
            self._commands.clear()
            return ingest_pb2.ReportResponse(commands=commands)
        answers = [self._answers.popleft()]
        if answers[0].error is not None:
            raise answers[0].error
        for receipt in answers[0].receipts:
            await receipt
        total = answers[0].count
        while self._may_merge(answers[0], total):
            answers.append(self._answers.popleft())
            total += answers[-1].count
        self._under_way -= len(answers)
        self._release(sum(answer.held for answer in answers))
        self._window_changed.set()
        return _response(answers)

    def _release(self, held: int) -> None:
        held = min(held, self._held)  # a closed stream has released everything already
        if held:
            self._held -= held
            self._unanswered.leave(self.sender.spiffe_id, held)

    def _may_merge(self, first: PendingAnswer, total: int) -> bool:
        if not self._answers:
            return False
        following = self._answers[0]
        return (
            first.together
            and following.together
            and total + following.count <= MAX_ANSWER_REPORTS
            and following.is_due
            and following.error is None
            and all(receipt.done() for receipt in following.receipts)
        )


def _response(answers: Sequence[PendingAnswer]) -> ingest_pb2.ReportResponse:
    response = ingest_pb2.ReportResponse(batch=answers[-1].number, batches=len(answers))
    before = 0
    for answer in answers:
        refusals = answer.refusals
        response.outcomes.extend(outcomes(answer.count, refusals))
        if refusals:
            response.refusals.extend(refusals_to_proto(answer.positions, answer.equipment, refusals, before=before))
        before += answer.count
    return response


def outcomes(count: int, refusals: Sequence[Refusal]) -> list[ingest_pb2.Outcome.ValueType]:
    """Returns the outcome of each report of a batch."""
    result = [_ACCEPTED] * count
    for refusal in refusals:
        result[refusal.index] = _REFUSED
    return result


def refusals_to_proto(
    positions: int, equipment: int, refusals: Sequence[Refusal], *, before: int = 0
) -> list[ingest_pb2.Refusal]:
    """Translates the refusals of a batch with so many positions, then so many equipment events, then presences.

    `before` is the number of reports of other batches before it in the same answer.
    """
    return [
        ingest_pb2.Refusal(
            index=before + refusal.index,
            field=f"{_path(refusal.index, positions, equipment)}.{refusal.field}",
            reason=refusal.reason,
            code=ingest_pb2.RefusalCode.ValueType(refusal.code),
        )
        for refusal in refusals
    ]


def _path(index: int, positions: int, equipment: int) -> str:
    if index < positions:
        return f"positions[{index}]"
    if index < positions + equipment:
        return f"equipment[{index - positions}]"
    return f"presences[{index - positions - equipment}]"
