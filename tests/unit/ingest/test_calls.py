"""Calls that wait for the share of their caller: their number and their bytes are bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.common.errors import InvalidField, StoreFull
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, Sender
from services.ingest.endpoints import grpc_api
from services.ingest.endpoints.grpc_api import (
    BYTES_PER_REPORT,
    MAX_BATCH_CALLS,
    MAX_REQUEST_BYTES,
    MAX_UNANSWERED_REPORTS,
    WINDOW,
    IngestApi,
)
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2

PANIC = ingest_pb2.ReportBatchRequest(equipment=[ingest_pb2.EquipmentEvent(device_id="tag", report_id="panic")])


class FullIntake:
    """Stands in for an intake in which the caller's share is full until `has_room` is set."""

    def __init__(self) -> None:
        self.has_room = asyncio.Event()

    async def accept(self, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> Batch:
        await self.has_room.wait()
        return Batch()

    def is_in_arrears(self, sender: Sender) -> bool:
        return False

    async def admit(self, batch: Batch, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> None:
        await self.has_room.wait()


class NoCommands:
    """Stands in for the commands, and has none."""

    def due_commands(self, device_ids: object) -> list[ingest_pb2.DeviceCommand]:
        return []

    def sent(self, commands: object) -> None:
        pass


async def test_a_caller_has_a_bounded_number_of_calls_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    senders = iter([*["flood"] * (MAX_BATCH_CALLS + 1), "other", "flood"])

    def sender() -> Sender:
        name = next(senders)
        return Sender(f"spiffe://vendor/{name}", name, "")

    monkeypatch.setattr(grpc_api, "_sender", sender)
    intake, metrics = FullIntake(), IngestMetrics(CollectorRegistry())
    api = IngestApi(cast(Any, intake), cast(Any, NoCommands()), cast(Any, None), metrics=metrics)

    async def call() -> ingest_pb2.ReportBatchResponse:
        return await api.ReportBatch(PANIC, cast(Any, None))

    waiting = [asyncio.create_task(call()) for _ in range(MAX_BATCH_CALLS)]
    await asyncio.sleep(0)
    with pytest.raises(StoreFull, match="use fewer"):
        await call()
    waiting.append(asyncio.create_task(call()))  # another caller has a bound of its own
    await asyncio.sleep(0)
    intake.has_room.set()
    for answer in await asyncio.gather(*waiting):
        assert list(answer.outcomes) == [ingest_pb2.ACCEPTED]
    await call()


async def test_a_request_of_too_many_bytes_is_refused_with_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_api, "_sender", lambda: Sender("spiffe://vendor/a", "a", ""))
    intake, metrics = FullIntake(), IngestMetrics(CollectorRegistry())
    api = IngestApi(cast(Any, intake), cast(Any, NoCommands()), cast(Any, None), metrics=metrics)
    long = ingest_pb2.Position(device_id="tag", report_id="r" * MAX_REQUEST_BYTES)
    with pytest.raises(InvalidField, match=f"at most {MAX_REQUEST_BYTES} bytes, this one 52"):
        await api.ReportBatch(ingest_pb2.ReportBatchRequest(positions=[long]), cast(Any, None))


async def test_the_bytes_that_wait_on_a_stream_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_api, "_sender", lambda: Sender("spiffe://vendor/a", "a", ""))
    intake, metrics = FullIntake(), IngestMetrics(CollectorRegistry())
    api = IngestApi(cast(Any, intake), cast(Any, NoCommands()), cast(Any, None), metrics=metrics)
    request = ingest_pb2.ReportRequest(positions=[ingest_pb2.Position(device_id="tag", report_id="r" * 400_000)])
    read = 0

    async def requests() -> AsyncIterator[ingest_pb2.ReportRequest]:
        nonlocal read
        for _ in range(WINDOW):
            read += request.ByteSize()
            yield request
            await asyncio.sleep(0)

    answers = asyncio.ensure_future(anext(api.Report(requests(), cast(Any, None))))
    for _ in range(100 * WINDOW):  # rounds of the event loop; each request needs a few
        await asyncio.sleep(0)
    assert read - request.ByteSize() <= MAX_UNANSWERED_REPORTS * BYTES_PER_REPORT, "the last one waits"
    answers.cancel()
    await asyncio.gather(answers, return_exceptions=True)
