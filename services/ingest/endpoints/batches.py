"""From requests to reports: a batch is read at once, and small batches that arrive in the same moment are taken together."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any

from services.common.observability import tracing
from services.common.rpc.errors import InvalidField
from services.ingest import translate
from services.ingest.commands.service import Commands, CommandSession
from services.ingest.domain import EquipmentEvent, Position, Sender
from services.ingest.endpoints.stream import PendingAnswer, ReportStream
from services.ingest.intake import Intake, Reports
from tandem.ingest.v1 import ingest_pb2

FEW = 3
"""So many reports are read faster one by one."""
MAX_TOGETHER = 500
"""Small batches that are taken together."""

Batch = ingest_pb2.ReportRequest | ingest_pb2.ReportBatchRequest


def read(request: Batch) -> Reports:
    """A batch's reports. All sound, as nearly always, they are read at once; else one by one, to say which aren't and why."""
    count = len(request.positions) + len(request.equipment)
    if count > FEW and not request.equipment:
        positions = translate.read_positions(list(request.positions))
        if positions is not None:
            return Reports(count, positions, range(count))
    read: list[Position | EquipmentEvent | InvalidField] = []
    messages: Sequence[Any] = (*request.positions, *request.equipment)
    for i, msg in enumerate(messages):
        parse: Any = translate.parse_position if i < len(request.positions) else translate.parse_equipment
        try:
            read.append(parse(msg))
        except InvalidField as error:
            read.append(error)
    return Reports.of(read, [msg.device_id for msg in messages])


def is_small(request: ingest_pb2.ReportRequest) -> bool:
    """Whether a batch is worth being taken together with others: a few live positions."""
    return not request.equipment and not request.backfill and len(request.positions) <= FEW


@dataclass(slots=True)
class _Arrived:
    request: ingest_pb2.ReportRequest
    stream: ReportStream
    answer: PendingAnswer
    context: str


_CONTEXT = attrgetter("context")


class Coalescer:
    """Takes small batches. Those of one sender that have arrived when it looks are one batch to all that follows.

    To look at a report by itself costs several times what it costs among ten.
    """

    def __init__(self, intake: Intake, commands: Commands) -> None:
        self._intake, self._commands = intake, commands
        self._arrived: dict[str, list[_Arrived]] = {}
        """By sender; one that stands here is being worked for."""
        self._workers: set[asyncio.Task[None]] = set()

    def add(
        self, sender: Sender, request: ingest_pb2.ReportRequest, stream: ReportStream, answer: PendingAnswer
    ) -> None:
        """Has a batch taken; its answer is told of it."""
        arrived = _Arrived(request, stream, answer, tracing.carried())
        waiting = self._arrived.get(sender.key)
        if waiting is not None:
            waiting.append(arrived)
            return
        self._arrived[sender.key] = [arrived]
        worker = asyncio.create_task(self._work(sender))
        self._workers.add(worker)
        worker.add_done_callback(self._workers.discard)

    async def _work(self, sender: Sender) -> None:
        while arrived := self._arrived[sender.key]:
            self._arrived[sender.key] = arrived[MAX_TOGETHER:]
            group = arrived[:MAX_TOGETHER]
            try:
                await self._take(sender, group)
            except Exception as error:  # each stream that waits for it ends with it
                for one in group:
                    one.stream.failed(one.answer, error)
        del self._arrived[sender.key]

    async def _take(self, sender: Sender, group: list[_Arrived]) -> None:
        tracing.carry("")  # not that of the one with whom this began, or of the group before
        reports_of: dict[str, int] = {}
        for one in group:
            reports_of[one.context] = reports_of.get(one.context, 0) + one.answer.count
        if len(reports_of) > 1:
            group.sort(key=_CONTEXT)  # those of one context follow one another, so that there is little to say of them
        messages = [msg for one in group for msg in one.request.positions]
        positions = translate.read_positions(messages) if len(messages) > FEW else None
        if positions is None:
            for one in group:
                tracing.carry(one.context)
                await take(self._intake, self._commands, sender, one.request, one.stream, one.answer)
            return
        count = len(messages)
        contexts = [(reports_of[context], context) for context in sorted(reports_of)] if any(reports_of) else ()
        reports = Reports(count, positions, range(count), contexts=contexts)
        taken = await self._intake.admit(sender, reports, False, "stream")
        refused = {refusal.index for refusal in taken.refusals}
        over: dict[str, CommandSession] = {}
        first = 0
        for one in group:
            one.stream.admitted(one.answer, taken, first)
            for i in range(first, first + one.answer.count):
                if i not in refused and one.stream.open:
                    over[positions.device_ids[i]] = one.stream
            first += one.answer.count
        self._commands.heard(over)


async def take(
    intake: Intake,
    commands: Commands,
    sender: Sender,
    request: ingest_pb2.ReportRequest,
    stream: ReportStream,
    answer: PendingAnswer,
) -> None:
    """Takes a batch by itself; its answer is told of it. Raises Unavailable where a device can't be looked up."""
    taken = await intake.admit(sender, read(request), request.backfill, "stream")
    stream.admitted(answer, taken, 0)
    if stream.open:
        commands.heard(dict.fromkeys(taken.device_ids, stream))
