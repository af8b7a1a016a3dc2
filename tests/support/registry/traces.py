"""Steps and traces of an incident for tests of the registry."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc.aio

from services.common import times
from services.common.clock import wall_us
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.spans import trace_id_of
from services.common.rpc import server as rpc
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import trace_pb2, trace_pb2_grpc
from tests.support.registry.registry import SECRET, WITHIN_S, RegistryMesh

INCIDENT = "incident-1"


async def step(
    bus: Bus,
    number: int,
    state: dispatch_pb2.AssignmentState.ValueType,
    *,
    incident_id: str = INCIDENT,
    **more: Any,
) -> None:
    """A step of the police leg, as its outbox publishes it."""
    assignment = dispatch_pb2.Assignment(
        assignment_id=f"assign-{incident_id}", incident_id=incident_id, leg=alert_pb2.POLICE, state=state, **more
    )
    message = dispatch_pb2.Step(
        step_id=f"step-{incident_id}-{number}",
        at=times.to_timestamp(wall_us() // 1000 + 1),
        number=number,
        assignment=assignment,
    )
    subject = flow.incident_subject("police", incident_id)
    await bus.publish_until_stored(subject, message.SerializeToString(), msg_id=message.step_id)


async def trace_of(registry: RegistryMesh, spans: int) -> list[trace_pb2.Span]:
    """The spans of the incident's trace, once it has at least `spans`."""
    return list((await whole_trace(registry, INCIDENT, spans)).spans)


async def whole_trace(registry: RegistryMesh, incident_id: str, spans: int) -> trace_pb2.GetTraceResponse:
    """The trace of an incident, once it has at least `spans` spans."""
    await registry.service.ready(registry.address)
    async with rpc.channel(registry.address) as channel, asyncio.timeout(WITHIN_S):
        stub = trace_pb2_grpc.TraceServiceStub(channel)
        while True:
            try:
                answer = await stub.GetTrace(
                    trace_pb2.GetTraceRequest(incident_id=incident_id),
                    metadata=rpc.bearer("spiffe://tandem/reviewer/kim", SECRET),
                    timeout=rpc.UNARY_DEADLINE_S,
                )
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise
            else:
                assert answer.trace_id == trace_id_of(incident_id)
                if len(answer.spans) >= spans:
                    return answer
            await asyncio.sleep(0.05)
