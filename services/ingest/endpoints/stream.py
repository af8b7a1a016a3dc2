"""One open report stream: answers in the order of their batches, commands between them, and a bound on what is under way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace

from services.ingest.admission.limiter import InFlightLimiter
from services.ingest.domain import Refusal, Sender
from services.ingest.intake import PendingBatch
from tandem.ingest.v1 import ingest_pb2

WINDOW = 64
"""Batches of one stream that may wait for the log; beyond it the stream isn't read, which pushes back on the sender."""
MAX_COMMANDS = 1_000
"""Commands that wait to be read by one sender; beyond it they wait for a further contact."""
MAX_UNANSWERED_REPORTS = 16_000
"""Reports of one stream whose answers ingest holds: batches of the largest size fill it before they fill the window."""
MAX_CALLER_UNANSWERED_REPORTS = 200_000
"""The same of all streams of one caller."""
MAX_ALL_UNANSWERED_REPORTS = 800_000
"""The same of all callers."""
MAX_TOGETHER = 1_000
"""Reports in an answer to several batches."""

_ACCEPTED, _REFUSED = ingest_pb2.Outcome.ACCEPTED, ingest_pb2.Outcome.REFUSED


@dataclass(slots=True)
class PendingAnswer:
    """A batch that waits for its answer."""

    batch: int
    count: int
    positions: int
    together: bool
    """Its answer may come together with others."""
    receipts: Sequence[asyncio.Future[None]]
    """Receipts that came with it; each is done once it is stored."""
    admitted: bool = False
    """It is known what is taken of it."""
    taken: PendingBatch | None = None
    """With what it was taken, on the way into the log; None where the request had nothing but receipts."""
    first: int = 0
    """Where its reports begin in that."""
    error: Exception | None = None
    """Why it isn't taken at all."""

    @property
    def held(self) -> int:
        """What it counts among the unanswered: its reports and receipts."""
        return max(1, self.count + len(self.receipts))

    @property
    def refusals(self) -> Sequence[Refusal]:
        """Which of its reports were refused; the index counts in this batch."""
        if self.taken is None or not self.taken.refusals:
            return ()
        end = self.first + self.count
        return [
            replace(refusal, index=refusal.index - self.first)
            for refusal in self.taken.refusals
            if self.first <= refusal.index < end
        ]


class ReportStream:
    """What goes down a stream."""

    def __init__(self, sender: Sender, unanswered: InFlightLimiter) -> None:
        self.sender = sender
        self.handed_s: float | None = None
        """When the response that the peer has to take now was handed over, by the loop's clock; None while ingest owes the next one."""
        self._unanswered = unanswered
        self.open = True
        """Commands may be given down it."""
        self._answers: deque[PendingAnswer] = deque()
        self._commands: deque[ingest_pb2.DeviceCommand] = deque()
        self._under_way = self._held = 0
        self._ended = False
        self._changed = asyncio.Event()
        self._limiter = asyncio.Event()

    # ── from the reader of requests ──────────────────────────────────────────────────────────────────────────────────

    async def window(self, held: int) -> None:
        """Returns once one more batch may be under way, and counts it with its reports and receipts, `held`.

        A peer that doesn't take its answers isn't read either, and so costs no more than these bounds.
        """
        while self._under_way >= WINDOW or (self._held and self._held + held > MAX_UNANSWERED_REPORTS):
            self._limiter.clear()
            await self._limiter.wait()
        await self._unanswered.enter(self.sender.spiffe_id, held, patient=True)
        self._under_way += 1
        self._held += held

    def answer(self, answer: PendingAnswer) -> None:
        """This is the next batch to be answered."""
        self._answers.append(answer)
        self._changed.set()

    def admitted(self, answer: PendingAnswer, taken: PendingBatch | None, first: int) -> None:
        """What is to be stored of a batch is on its way."""
        answer.taken, answer.first, answer.admitted = taken, first, True
        self._changed.set()

    def failed(self, answer: PendingAnswer, error: Exception) -> None:
        """A batch isn't taken at all; the stream ends with the error."""
        answer.error, answer.admitted = error, True
        self._changed.set()

    def end(self) -> None:
        """No more batches come."""
        self._ended = True
        self._changed.set()

    # ── from whoever commands ────────────────────────────────────────────────────────────────────────────────────────

    def give(self, command: ingest_pb2.DeviceCommand) -> bool:
        """Has a command sent down the stream; false where it is closed or its sender doesn't read."""
        if not self.open or len(self._commands) >= MAX_COMMANDS:
            return False
        self._commands.append(command)
        self._changed.set()
        return True

    def close(self) -> None:
        """Takes no more commands, and lets go of what nobody waits for."""
        self.open = False
        self._answers.clear()
        self._commands.clear()
        self._release(self._held)

    # ── to the writer of responses ───────────────────────────────────────────────────────────────────────────────────

    async def next(self) -> ingest_pb2.ReportResponse | None:
        """The next response, or None at the end. Raises StoreFull or Unavailable where a batch wasn't stored."""
        self.handed_s = None
        response = await self._next()
        self.handed_s = asyncio.get_running_loop().time()
        return response

    async def _next(self) -> ingest_pb2.ReportResponse | None:
        while not (self._commands or (self._answers and self._answers[0].admitted)):
            if self._ended and not self._answers:
                return None
            self._changed.clear()
            await self._changed.wait()
        if self._commands:
            commands = list(self._commands)
            self._commands.clear()
            return ingest_pb2.ReportResponse(commands=commands)
        answers = [self._answers.popleft()]
        if answers[0].error is not None:
            raise answers[0].error
        if answers[0].taken is not None:
            await answers[0].taken.stored()
        for receipt in answers[0].receipts:
            await asyncio.shield(receipt)
        total = answers[0].count
        while self._may_come_along(answers[0], total):
            answers.append(self._answers.popleft())
            total += answers[-1].count
        self._under_way -= len(answers)
        self._release(sum(answer.held for answer in answers))
        self._limiter.set()
        return _response(answers)

    def _release(self, held: int) -> None:
        held = min(held, self._held)  # a closed stream has given back all of it
        if held:
            self._held -= held
            self._unanswered.leave(self.sender.spiffe_id, held)

    def _may_come_along(self, first: PendingAnswer, total: int) -> bool:
        if not self._answers:
            return False
        following = self._answers[0]
        return (
            first.together
            and following.together
            and total + following.count <= MAX_TOGETHER
            and following.admitted
            and following.error is None
            and all(receipt.done() for receipt in following.receipts)
            and (following.taken is None or following.taken.is_stored)
        )


def _response(answers: Sequence[PendingAnswer]) -> ingest_pb2.ReportResponse:
    response = ingest_pb2.ReportResponse(batch=answers[-1].batch, batches=len(answers))
    before = 0
    for answer in answers:
        refusals = answer.refusals
        response.outcomes.extend(outcomes(answer.count, refusals))
        if refusals:
            response.refusals.extend(refusals_to_proto(answer.positions, refusals, before))
        before += answer.count
    return response


def outcomes(count: int, refusals: Sequence[Refusal]) -> list[ingest_pb2.Outcome.ValueType]:
    """Outcome of each report of a batch."""
    found = [_ACCEPTED] * count
    for refusal in refusals:
        found[refusal.index] = _REFUSED
    return found


def refusals_to_proto(positions: int, refusals: Sequence[Refusal], before: int = 0) -> list[ingest_pb2.Refusal]:
    """Refusals of a batch whose first `positions` reports are positions, in an answer with `before` reports of others before it."""
    return [
        ingest_pb2.Refusal(
            index=before + refusal.index,
            field=f"positions[{refusal.index}].{refusal.field}"
            if refusal.index < positions
            else f"equipment[{refusal.index - positions}].{refusal.field}",
            reason=refusal.reason,
            code=ingest_pb2.RefusalCode.ValueType(refusal.code),
        )
        for refusal in refusals
    ]
