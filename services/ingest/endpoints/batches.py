"""Reads requests into batches of reports, and coalesces small requests of a sender that arrive at the same moment."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple, TypeAlias

from services.common.observability import tracing
from services.common.rpc.errors import InvalidField
from services.ingest import translate
from services.ingest.batch import Batch, Contexts, Reports
from services.ingest.commands.delivery import CommandDelivery
from services.ingest.commands.states import CommandSession
from services.ingest.domain import Endpoint, Report, Sender
from services.ingest.endpoints.stream import PendingAnswer, ReportStream
from services.ingest.intake import Intake
from tandem.ingest.v1 import ingest_pb2

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


def read(requests: Sequence[Request], contexts: Contexts = ()) -> Reports:
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


def count_of(request: Request) -> int:
    """Returns the number of reports of a request."""
    return len(request.positions) + len(request.equipment) + len(request.presences)


def size_of(request: Request) -> int:
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
    return max(1, count_of(request) + len(request.receipts), size_bytes // BYTES_PER_REPORT)


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
        tracing.carry("" if contexts else self.parts[0].context)
        first = 0
        for part in self.parts:
            part.answer.first = first
            first += part.answer.count
        return read([part.request for part in self.parts], contexts)

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
        part = _JoinedRequest(stream=stream, request=request, answer=answer, context=tracing.carried())
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
