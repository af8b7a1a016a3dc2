"""Calls of ReportBatch: a caller has a bounded number of them in progress, as those with equipment events wait for their share."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from prometheus_client import CollectorRegistry

from services.common.rpc.errors import StoreFull
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, Sender
from services.ingest.endpoints import grpc_api
from services.ingest.endpoints.grpc_api import MAX_BATCH_CALLS, IngestApi
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
