"""An open report stream: answers in the order of their batches, commands between them, and a bound on pending batches."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.batch import Batch
from services.ingest.domain import Refusal, Sender
from tandem.ingest.v1 import ingest_pb2

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
    """Size of the request among the unanswered reports, as `batches.size_of` counts it."""
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
        self.handed_over_s: float | None = None
        """Loop time at which the response that the peer reads now was handed over, seconds. None while ingest owes the next one."""
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
        """Waits until another batch may be pending, then counts the batch. `held` is its size, as `batches.size_of` counts it.

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
        self.handed_over_s = None
        response = await self._next()
        self.handed_over_s = asyncio.get_running_loop().time()
        return response

    async def _next(self) -> ingest_pb2.ReportResponse | None:
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
