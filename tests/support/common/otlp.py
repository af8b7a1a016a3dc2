"""A real OTLP receiver for tests, which keeps the received spans with their service names."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """An OTLP trace service that keeps the spans it receives."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._spans: list[tuple[str, Span]] = []
        self._resources: list[dict[str, str]] = []
        self._scopes: set[str] = set()

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            names = {attribute.key: attribute.value.string_value for attribute in resource.resource.attributes}
            with self._lock:
                self._resources.append(names)
                self._scopes |= {scope.scope.name for scope in resource.scope_spans}
                for scope in resource.scope_spans:
                    self._spans += [(names["service.name"], span) for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()

    def resources(self) -> list[dict[str, str]]:
        """Attributes of each resource that spans came with."""
        with self._lock:
            return [dict(attributes) for attributes in self._resources]

    def scopes(self) -> set[str]:
        """Names of the instrumentation scopes that spans came with."""
        with self._lock:
            return set(self._scopes)

    def spans(self) -> list[tuple[str, Span]]:
        """Spans received so far, each with the name of its service."""
        with self._lock:
            return list(self._spans)


@contextmanager
def collecting(credentials: grpc.ServerCredentials | None = None) -> Iterator[tuple[Collector, str]]:
    """A running receiver and its endpoint. With credentials it uses TLS."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    collector = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    port = (
        server.add_secure_port("localhost:0", credentials) if credentials else server.add_insecure_port("127.0.0.1:0")
    )
    server.start()
    try:
        yield collector, f"https://localhost:{port}" if credentials else f"http://127.0.0.1:{port}"
    finally:
        server.stop(0)
