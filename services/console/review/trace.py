"""Reads what an incident's page shows of its trace: spans, expected times, and the median times of like incidents."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

from services.common.clock import wall_us
from services.common.observability.expected_times import expected_times
from services.common.observability.lateness import ExpectedTime
from services.common.observability.spans import last_step_us
from services.common.observability.telemetry import logger
from services.common.rpc.server import UNARY_DEADLINE_S
from services.console import translate
from services.console.domain import waterfall
from services.console.domain.board import IncidentCard
from services.console.domain.waterfall import TraceSpan, TypicalTime
from services.console.guard import Ask
from services.console.mesh import MeshClient
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, trace_pb2

NO_TRACE = (
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,  # the budget of the history is spent
    grpc.StatusCode.UNIMPLEMENTED,  # the registry is of an older version, as during an upgrade
)
"""Codes of the registry with which a page is shown without a trace."""


@dataclass(frozen=True, slots=True)
class ShownTrace:
    """An incident's trace as far as the user may see it; without spans if there is none."""

    trace_id: str
    spans: Sequence[TraceSpan]
    is_cut: bool
    expected: Sequence[ExpectedTime]
    """When each step was expected, in the order of the due times."""
    rows: Sequence[waterfall.Row]
    like: expected_time_pb2.CompareTraceResponse
    """Median times of like incidents. Names none while the registry can't compare."""
    start_us: int
    """Start of the incident, wall clock, microseconds since 1970 UTC; 0 without a trace."""
    length_us: int
    """Time from the start of the incident to its last step, microseconds; 0 without a trace."""


async def read(mesh: MeshClient, ask: Ask, incident: dispatch_pb2.Incident) -> ShownTrace:
    """Reads the trace of an incident. It is empty if there is none, or while the registry is unavailable."""
    request = trace_pb2.GetTraceRequest(incident_id=incident.incident_id)
    trace = await _read(mesh, ask, mesh.traces.GetTrace, request) or trace_pb2.GetTraceResponse()
    compare = expected_time_pb2.CompareTraceRequest(incident_id=incident.incident_id)
    like = await _read(mesh, ask, mesh.traces.CompareTrace, compare) if trace.spans else None
    like = like or expected_time_pb2.CompareTraceResponse()
    expected = expected_times(trace, incident.assignments, mesh.clock, now_us=wall_us())
    spans = translate.spans(trace)
    typical = {time.name: TypicalTime(time.median_us, time.incidents) for time in like.times}
    rows = waterfall.rows(spans, trace.trace_id, expected, typical=typical)
    start_us = rows[0].span.start_us if rows else 0
    return ShownTrace(
        trace_id=trace.trace_id,
        spans=spans,
        is_cut=trace.is_cut,
        expected=expected,
        rows=rows,
        like=like,
        start_us=start_us,
        length_us=last_step_us(row.span for row in rows) - start_us if rows else 0,
    )


async def _read(mesh: MeshClient, ask: Ask, method: Any, request: Any) -> Any | None:
    """Calls the registry; None with a code of NO_TRACE. Raises AioRpcError with any other."""
    try:
        return await method(request, metadata=mesh.identity(ask.user), timeout=UNARY_DEADLINE_S)
    except grpc.aio.AioRpcError as error:
        if error.code() not in NO_TRACE:
            raise
        logger().info("no_trace", incident_id=request.incident_id, code=error.code().name)
        return None


def replay_steps(mesh: MeshClient, card: IncidentCard, trace: ShownTrace) -> list[dict[str, Any]]:
    """Returns the states of each destination with their times, and its unit. The states are from the trace, else from the list."""
    moves = waterfall.moves(trace.spans)
    steps = []
    for to in card.assignments:
        listed = ((to.offered_ms, "OFFERED"), (to.acknowledged_ms, "ACKNOWLEDGED"))
        traced = [[mesh.clock.to_mesh_ms(us // 1000), state] for us, state in moves.get(to.assignment_id, ())]
        states = traced or [[at_ms, state] for at_ms, state in listed if at_ms is not None]
        steps.append({"leg": to.leg, "subject": to.subject_id, "unit": to.unit_id, "states": states})
    return steps


def replay_late(
    mesh: MeshClient, subjects: Mapping[str, str], expected_times: Iterable[ExpectedTime]
) -> list[dict[str, Any]]:
    """Returns the steps that came too late or not at all, with when they were due and came, for the replay."""
    return [
        {
            "name": f"expected_{expected.name}",
            "leg": expected.leg,
            "subject": subjects.get(expected.assignment_id, ""),
            "due": mesh.clock.to_mesh_ms(expected.due_us // 1000),
            "met": None if expected.met_us is None else mesh.clock.to_mesh_ms(expected.met_us // 1000),
        }
        for expected in expected_times
        if expected.is_late
    ]
