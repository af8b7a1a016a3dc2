"""gRPC servicer of the TraceService: the trace of an incident."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio

from services.common import fields
from services.common.observability import trace_ids
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.registry.traces import translate
from services.registry.traces.domain.spans import OPERATOR, REVIEWER, shown_to
from services.registry.traces.service import Traces
from tandem.registry.v1 import expected_time_pb2, trace_pb2, trace_pb2_grpc

_VIEWERS: Mapping[int, str] = {
    Role.ROLE_MOJ_DESK: "probation",
    Role.ROLE_NPA_DESK: "police",
    Role.ROLE_REVIEWER: REVIEWER,
    Role.ROLE_OPERATOR: OPERATOR,
}


class TraceServicer(trace_pb2_grpc.TraceServiceServicer):
    """Returns the spans of a trace that the caller's role may see."""

    def __init__(self, traces: Traces) -> None:
        self._traces = traces

    async def GetTrace(
        self, request: trace_pb2.GetTraceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> trace_pb2.GetTraceResponse:
        incident_id = fields.required_id("incident_id", request.incident_id)
        incident = await self._traces.read(incident_id)
        viewer = _VIEWERS[server.caller().role]
        expected = [time for time in incident.expected_times() if viewer in time.shows]
        return trace_pb2.GetTraceResponse(
            trace_id=trace_ids.trace_id_of(incident_id),
            spans=translate.spans_to_proto(shown_to(viewer, incident.spans())),
            is_cut=incident.is_cut,
            expected_times=translate.expected_to_proto(expected),
        )

    async def CompareTrace(
        self, request: expected_time_pb2.CompareTraceRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> expected_time_pb2.CompareTraceResponse:
        incident_id = fields.required_id("incident_id", request.incident_id)
        return translate.like_to_proto(await self._traces.compare(incident_id, _VIEWERS[server.caller().role]))
