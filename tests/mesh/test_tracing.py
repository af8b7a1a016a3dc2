"""Traces of incidents, received over real OTLP."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from services.common import tracing
from services.common.tracing import IncidentTracer


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
    server = grpc.server(futures.ThreadPoolExecutor(2))
    taken = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(taken, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv(tracing.ENDPOINT, f"http://127.0.0.1:{port}")
    yield taken
    server.stop(0)


def test_spans_of_different_processes_make_one_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector(monkeypatch) as taken:
        geofence, police = IncidentTracer("geofence"), IncidentTracer("dispatch-police")
        police.step("police offered", "incident-1", 2_000_000, 2_005_000, {"leg": "police"})
        geofence.root("incident-1", 2_000_000, 2_003_000, {"kind": "RING_ENTERED"})
        geofence.step("decided", "incident-2", 1, 2, {})
        geofence.close()
        police.close()
    [root, other] = taken.spans["geofence"]
    [offered] = taken.spans["dispatch-police"]
    assert offered.trace_id == root.trace_id != other.trace_id
    assert offered.parent_span_id == root.span_id and not root.parent_span_id
    assert (offered.start_time_unix_nano, offered.end_time_unix_nano) == (2_000_000_000, 2_005_000_000)


def test_without_an_endpoint_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    tracer = IncidentTracer("geofence")
    tracer.root("incident-1", 1, 2, {})
    assert tracer._provider is None
    tracer.close()
