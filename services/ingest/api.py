"""The gRPC edge of ingest: batches in, an answer to each in its order once what was accepted is durable."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

import grpc.aio

from services.common.clock import MeshClock, wall_us
from services.common.errors import InvalidField
from services.ingest import domain, translate
from services.ingest.again import LastReports
from services.ingest.domain import BATCH_MOST, Equipment, Position
from services.ingest.routes import Routes
from services.ingest.writer import LogWriter
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

WINDOW = 32
"""Batches of one stream that may wait for the log; beyond it the stream isn't read, which pushes back on the sender."""

_ACCEPTED, _REFUSED = ingest_pb2.Outcome.ACCEPTED, ingest_pb2.Outcome.REFUSED


class IngestApi(ingest_pb2_grpc.IngestServiceServicer):
    """Takes reports into the log."""

    def __init__(
        self, routes: Routes, writers: Mapping[int, LogWriter], last_reports: LastReports, clock: MeshClock
    ) -> None:
        self._routes, self._writers, self._last_reports, self._clock = routes, writers, last_reports, clock

    async def Report(
        self,
        request_iterator: AsyncIterator[ingest_pb2.ReportRequest],
        context: grpc.aio.ServicerContext[Any, Any],
    ) -> AsyncIterator[ingest_pb2.ReportResponse]:
        answers: asyncio.Queue[asyncio.Task[ingest_pb2.ReportResponse] | None] = asyncio.Queue(WINDOW)

        async def take() -> None:
            try:
                async for request in request_iterator:
                    await answers.put(asyncio.create_task(self._take(request)))
            except Exception:
                await answers.put(None)  # what came before the bad frame is answered first
                raise
            await answers.put(None)

        taking = asyncio.create_task(take())
        try:
            while (answer := await answers.get()) is not None:
                yield await answer
            await taking
        finally:
            taking.cancel()
            with suppress(asyncio.CancelledError):
                await taking
            while not answers.empty():
                left = answers.get_nowait()
                if left is not None:
                    left.cancel()

    async def _take(self, request: ingest_pb2.ReportRequest) -> ingest_pb2.ReportResponse:
        received_us, now_ms = wall_us(), self._clock.now_ms()
        count = len(request.positions) + len(request.equipment)
        if not 1 <= count <= BATCH_MOST:
            raise InvalidField("positions", f"a batch holds 1 to {BATCH_MOST} reports, this one {count}")
        response = ingest_pb2.ReportResponse(batch=request.batch)
        outcomes = [_ACCEPTED] * count
        taken: dict[tuple[int, ...], list[Position]] = {}
        events: list[tuple[Equipment, tuple[int, ...]]] = []

        def refuse(index: int, path: str, error: InvalidField) -> None:
            outcomes[index] = _REFUSED
            refusal = error.under(path)
            response.refusals.add(index=index, field=refusal.field, reason=refusal.reason)

        for i, position_msg in enumerate(request.positions):
            try:
                position = translate.parse_position(position_msg)
                domain.check_not_ahead("fix_time", position.fix_time_ms, now_ms)
                route = self._routes.get(position.device_id) or await self._look_up(position.device_id)
                taken.setdefault(route, []).append(position)
            except InvalidField as error:
                refuse(i, f"positions[{i}]", error)
        for i, event_msg in enumerate(request.equipment):
            try:
                event = translate.parse_equipment(event_msg)
                domain.check_not_ahead("event_time", event.event_time_ms, now_ms)
                route = self._routes.get(event.device_id) or await self._look_up(event.device_id)
                events.append((event, route))
            except InvalidField as error:
                refuse(len(request.positions) + i, f"equipment[{i}]", error)
        # Nothing is written before all is looked up, so that a look-up that fails leaves nothing half done.
        waiting: list[asyncio.Future[None]] = []
        for route, positions in taken.items():
            waiting += [self._writers[p].positions(positions, received_us) for p in route]
        for event, route in events:
            waiting += [asyncio.ensure_future(self._writers[p].equipment(event)) for p in route]
        # All are awaited even when one fails, so that no failure is left unseen.
        for result in await asyncio.gather(*waiting, return_exceptions=True):
            if isinstance(result, BaseException):
                raise result
        for route, positions in taken.items():
            for position in positions:
                self._last_reports.stored(position, route)
        response.outcomes.extend(outcomes)
        return response

    async def _look_up(self, device_id: str) -> tuple[int, ...]:
        route = await self._routes.look_up(device_id)
        if not route:
            raise InvalidField("device_id", "is no registered device")
        return route
