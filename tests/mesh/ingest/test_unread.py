"""Streams whose answers are not read: ingest holds a bounded number of reports for them, and ends them. The log is a stand-in."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc.aio
import pytest
from prometheus_client import CollectorRegistry, Counter

from services.common.observability.metrics import ProcessMetrics
from services.common.priority import PriorityGate
from services.common.rpc import gatekeeper
from services.common.rpc import server as rpc
from services.common.rpc.gatekeeper import Gatekeeper
from services.common.rpc.history import HistoryBudget
from services.ingest.batch import Batch, Reports
from services.ingest.domain import Endpoint, Reason, Refusal, Sender
from services.ingest.endpoints.grpc_api import IngestApi
from services.ingest.metrics import IngestMetrics
from tandem.ingest.v1 import ingest_pb2, ingest_pb2_grpc

pytestmark = pytest.mark.asyncio(loop_scope="module")
STREAMS = 8
BATCH = 1_000
BATCHES = 100
"""Batches of a stream that writes as much as it can: more than may wait for their answers."""
WITHIN_S = 60.0
MAX_HELD = 18 * BATCH
"""Maximum number of reports of a stream that wait for answers, including answers that are being sent."""
SMALL_WINDOW = (("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536))
"""Small client buffers. By default a client buffers megabytes of answers that nobody has read."""
SECRET = "a-secret"
SENDER = rpc.bearer("spiffe://vendor/deaf", SECRET)


class Log:
    """Stand-in for the intake that refuses every report at once, so that answers are long."""

    def __init__(self) -> None:
        self.admitted = 0

    async def admit(self, batch: Batch, sender: Sender, reports: Reports, *, endpoint: Endpoint) -> None:
        self.admitted += reports.count
        batch.check()
        batch.write([Refusal(n, "lat_deg", "must be from -90 to 90", Reason.INVALID) for n in range(reports.count)])

    def is_in_arrears(self, sender: Sender) -> bool:
        """Says that no refused report delays the sender."""
        return False


class NoCommands:
    """Stand-in for the commands that has none."""

    def heard(self, sessions: object) -> None:
        """Ignores that devices were heard."""


@asynccontextmanager
async def served(log: Log, ended_streams: Counter | None = None) -> AsyncIterator[ingest_pb2_grpc.IngestServiceStub]:
    """Serves the ingest service by real gRPC and yields a client. `ended_streams` counts those that are ended."""
    metrics = IngestMetrics(CollectorRegistry())
    server = grpc.aio.server(interceptors=[Gatekeeper(SECRET, HistoryBudget(PriorityGate()), ended_streams)])
    servicer = IngestApi(cast(Any, log), cast(Any, NoCommands()), cast(Any, None), metrics=metrics)
    ingest_pb2_grpc.add_IngestServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=SMALL_WINDOW) as channel:
        yield ingest_pb2_grpc.IngestServiceStub(channel)
    await server.stop(0)


def batch(number: int) -> ingest_pb2.ReportRequest:
    return ingest_pb2.ReportRequest(
        batch=number, positions=[ingest_pb2.Position(device_id="d", report_id=str(n)) for n in range(BATCH)]
    )


async def write_all(call: Any) -> None:
    for number in range(1, BATCHES + 1):
        await call.write(batch(number))


async def settle(log: Log, max_admitted: int) -> None:
    """Returns once no more reports are admitted. Fails where more than `max_admitted` are."""
    before = -1
    while log.admitted != before or not before:
        assert log.admitted <= max_admitted
        before = log.admitted
        await asyncio.sleep(1.0)


@pytest.mark.timeout(200)
async def test_unread_answers_are_held_up_to_a_bound() -> None:
    log = Log()
    async with served(log) as stub:
        calls: list[Any] = [stub.Report(metadata=SENDER) for _ in range(STREAMS)]
        writing = [asyncio.create_task(write_all(call)) for call in calls]
        async with asyncio.timeout(WITHIN_S):
            await settle(log, STREAMS * MAX_HELD)
        # A sender that reads later gets every answer and may go on.
        read = 0
        async with asyncio.timeout(WITHIN_S):
            while read < BATCHES:
                answer: Any = await calls[0].read()
                read = answer.batch
        await writing[0]
        for call, task in zip(calls, writing, strict=True):
            call.cancel()
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)


@pytest.mark.timeout(200)
async def test_a_stream_whose_answers_are_not_read_is_ended_and_its_share_released(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gatekeeper, "MAX_UNREAD_S", 1.0)
    log, ended_streams = Log(), ProcessMetrics(CollectorRegistry()).streams_unread
    async with served(log, ended_streams) as stub:
        deaf: Any = stub.Report(metadata=SENDER)
        writing = asyncio.create_task(write_all(deaf))
        async with asyncio.timeout(WITHIN_S):
            while not ended_streams.labels("Report")._value.get():  # noqa: ASYNC110 - only the metric shows it
                await asyncio.sleep(0.1)
            await asyncio.gather(writing, return_exceptions=True)
            with pytest.raises(grpc.aio.AioRpcError) as ended:
                while await deaf.read() is not grpc.aio.EOF:
                    pass
        assert ended.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        # Its share is released: another stream of the same caller is served.
        call: Any = stub.Report(metadata=SENDER)
        await call.write(batch(1))
        async with asyncio.timeout(WITHIN_S):
            answer: Any = await call.read()
        assert answer.batch == 1
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
