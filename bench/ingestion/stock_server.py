"""Peer of bench.ingest: a server as the tutorials of grpc.aio and nats-py suggest. bench.ingest starts it.

It uses the same protos, the same nats-server and the same disk. Each report is a unary call with one awaited `js.publish`. Unlike
ingest, it authenticates no caller, looks up no device and checks no field.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc.aio
import nats
import uvloop
from nats.js import JetStreamContext

from bench.ingestion.reports import Reports
from bench.ingestion.saturated import Tally
from tandem.ingest.v1 import ingest_pb2
from tests.support.common.ports import free_port
from tests.support.common.processes import Service, spawn

CALL_CONCURRENCY = 32
"""Concurrent calls."""
STREAM = "STOCK"
SUBJECT = "stock.report"
_SERVICE = ingest_pb2.DESCRIPTOR.services_by_name["IngestService"].full_name
_DEADLINE_S = 10.0


async def serve(port: int, nats_url: str) -> None:
    """Serves until killed."""
    client = await nats.connect(nats_url)
    js: JetStreamContext = client.jetstream()

    async def report_batch(
        request: ingest_pb2.ReportBatchRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> ingest_pb2.ReportBatchResponse:
        for position in request.positions:
            await js.publish(SUBJECT, position.SerializeToString())
        return ingest_pb2.ReportBatchResponse(outcomes=[ingest_pb2.ACCEPTED] * len(request.positions))

    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(
        report_batch,
        ingest_pb2.ReportBatchRequest.FromString,
        ingest_pb2.ReportBatchResponse.SerializeToString,
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, {"ReportBatch": handler}),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


@contextmanager
def running(nats_url: str, log: Path) -> Iterator[tuple[Service, str]]:
    """Starts the server as a process; yields it and its address without waiting. The stream STOCK must exist."""
    port = free_port()
    with spawn("bench.ingestion.stock_server", {"STOCK_PORT": str(port), "STOCK_NATS_URL": nats_url}, log) as service:
        yield service, f"127.0.0.1:{port}"


async def call(channel: grpc.aio.Channel, reports: Reports, tally: Tally) -> None:
    """Calls the server in a loop until the tally is over."""
    method: Any = channel.unary_unary(f"/{_SERVICE}/ReportBatch", None, ingest_pb2.ReportBatchResponse.FromString)
    while not tally.over:
        answer = await method(reports.next(), timeout=_DEADLINE_S, wait_for_ready=True)
        tally.reports += len(answer.outcomes)


if __name__ == "__main__":
    uvloop.run(serve(int(os.environ["STOCK_PORT"]), os.environ["STOCK_NATS_URL"]))
