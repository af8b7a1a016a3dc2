"""Spans of incidents, received over real OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.common import tracing


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes spans and keeps them by service."""

    def __init__(self) -> None:
        self.spans: dict[str, list[Span]] = {}

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {one.key: one.value.string_value for one in resource.resource.attributes}
            for scope in resource.scope_spans:
                self.spans.setdefault(names["service.name"], []).extend(scope.spans)
        return trace_service_pb2.ExportTraceServiceResponse()


@contextmanager
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    """A collector to which every process exports that is started meanwhile."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    taken = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taken, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{port}")
    yield taken
    server.stop(0)
