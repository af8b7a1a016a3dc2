"""Reads requests into batches of reports, and coalesces small batches of a sender that arrive at the same moment."""

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

SMALL_BATCH = 3
"""Number of reports up to which reading them one by one is faster than reading them at once."""
MAX_COALESCED = 500
"""Maximum number of small batches that are coalesced into one."""

Batch = ingest_pb2.ReportRequest | ingest_pb2.ReportBatchRequest


def read(request: Batch) -> Reports:
    """Reads the reports of a batch. Nearly always all are valid and read at once; else one by one, to name each error."""
    count = len(request.positions) + len(request.equipment)
    if count > SMALL_BATCH and not request.equipment:
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
    """Returns whether a batch is worth coalescing with others: a few live positions."""
    return not request.equipment and not request.backfill and len(request.positions) <= SMALL_BATCH


@dataclass(slots=True)
class _Arrived:
    request: ingest_pb2.ReportRequest
    stream: ReportStream
    answer: PendingAnswer
    context: str


_CONTEXT = attrgetter("context")


class Coalescer:
    """Accepts small batches. Those of one sender that have arrived meanwhile are processed as one batch.

    Processing a report alone costs several times as much as processing it among ten.
    """

    def __init__(self, intake: Intake, commands: Commands) -> None:
        self._intake, self._commands = intake, commands
        self._arrived: dict[str, list[_Arrived]] = {}
        """Batches that have arrived, by sender; a sender's key is present while its worker runs."""
        self._workers: set[asyncio.Task[None]] = set()

    def add(
        self, sender: Sender, request: ingest_pb2.ReportRequest, stream: ReportStream, *, answer: PendingAnswer
    ) -> None:
        """Queues a batch; its stream is notified once it is admitted."""
        arrived = _Arrived(request=request, stream=stream, answer=answer, context=tracing.carried())
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
            self._arrived[sender.key] = arrived[MAX_COALESCED:]
            group = arrived[:MAX_COALESCED]
            try:
                await self._accept(sender, group)
            except Exception as error:  # every stream with a batch in the group ends with this error
                for arrived_batch in group:
                    arrived_batch.stream.failed(arrived_batch.answer, error)
        del self._arrived[sender.key]

    async def _accept(self, sender: Sender, group: list[_Arrived]) -> None:
        tracing.carry("")  # drop the context of the task's creator, or of the group before
        reports_of: dict[str, int] = {}
        for arrived in group:
            reports_of[arrived.context] = reports_of.get(arrived.context, 0) + arrived.answer.count
        if len(reports_of) > 1:
            group.sort(key=_CONTEXT)  # reports of one context follow one another, which keeps the header short
        messages = [msg for arrived in group for msg in arrived.request.positions]
        positions = translate.read_positions(messages) if len(messages) > SMALL_BATCH else None
        if positions is None:
            for arrived in group:
                tracing.carry(arrived.context)
                await accept(
                    self._intake,
                    self._commands,
                    sender,
                    request=arrived.request,
                    stream=arrived.stream,
                    answer=arrived.answer,
                )
            return
        count = len(messages)
        contexts = [(reports_of[context], context) for context in sorted(reports_of)] if any(reports_of) else ()
        reports = Reports(count, positions, range(count), contexts=contexts)
        batch = await self._intake.admit(sender, reports, False, endpoint="stream")
        refused = {refusal.index for refusal in batch.refusals}
        sessions: dict[str, CommandSession] = {}
        first = 0
        for arrived in group:
            arrived.stream.admitted(arrived.answer, batch, first)
            for i in range(first, first + arrived.answer.count):
                if i not in refused and arrived.stream.open:
                    sessions[positions.device_ids[i]] = arrived.stream
            first += arrived.answer.count
        self._commands.heard(sessions)


async def accept(
    intake: Intake,
    commands: Commands,
    sender: Sender,
    *,
    request: ingest_pb2.ReportRequest,
    stream: ReportStream,
    answer: PendingAnswer,
) -> None:
    """Accepts a single batch and notifies its stream. Raises Unavailable where a device can't be looked up."""
    batch = await intake.admit(sender, read(request), request.backfill, endpoint="stream")
    stream.admitted(answer, batch, 0)
    if stream.open:
        commands.heard(dict.fromkeys(batch.device_ids, stream))
