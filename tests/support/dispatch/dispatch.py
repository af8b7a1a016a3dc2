"""Test helpers for dispatch: running legs, their desks, and alerts for them."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from services.common import ids
from services.common.clock import wall_us
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.metrics import process_registry
from services.common.rpc import server
from services.dispatch.__main__ import run
from services.dispatch.metrics import DispatchMetrics
from services.dispatch.settings import DispatchSettings
from tandem.common.v1 import alert_pb2, exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2, dispatch_pb2_grpc, roster_pb2, roster_pb2_grpc
from tests.support.common.nats import TestServer
from tests.support.common.ports import free_port

SECRET = "a-secret"
DESKS = {
    "probation": "spiffe://moj/desk/seoul",
    "police": "spiffe://npa/desk/seoul",
    "warning": "spiffe://tandem/warning-gateway",
}
METRICS = DispatchMetrics(CollectorRegistry())
"""Metrics of all legs that run in the process of the tests."""
PATIENCE_S = 120.0
"""Timeout for an expected message, seconds."""


class Desk:
    """A caller of a leg, with its SPIFFE id."""

    def __init__(
        self, stub: dispatch_pb2_grpc.DispatchServiceStub, roster: roster_pb2_grpc.RosterServiceStub, spiffe_id: str
    ) -> None:
        self._stub = stub
        self._roster = roster
        self._metadata = server.bearer(spiffe_id, SECRET)

    @asynccontextmanager
    async def subscription(
        self,
        after_sequence: int = 0,
        others: bool = False,
        timeout_s: float | None = PATIENCE_S,
        new_only: bool = False,
    ) -> AsyncIterator[Subscription]:
        """Opens a stream of steps."""
        request = dispatch_pb2.SubscribeRequest(after_sequence=after_sequence, others=others, new_only=new_only)
        call = self._stub.Subscribe(request, metadata=self._metadata, timeout=timeout_s)
        try:
            yield Subscription(call)
        finally:
            call.cancel()

    async def acknowledge(self, assignment_id: str, unit_id: str = "") -> dispatch_pb2.Assignment:
        """Acknowledges an assignment for the desk, or passes on the acceptance of a unit."""
        answer = await self._stub.Acknowledge(
            dispatch_pb2.AcknowledgeRequest(assignment_id=assignment_id, unit_id=unit_id),
            metadata=self._metadata,
            timeout=server.UNARY_DEADLINE_S,
        )
        return answer.assignment

    async def call(self, method: str, **request: Any) -> Any:
        """Calls a method of DispatchService or RosterService by its name, and returns the response."""
        of_roster = hasattr(roster_pb2, f"{method}Request")
        make = getattr(roster_pb2 if of_roster else dispatch_pb2, f"{method}Request")
        call = getattr(self._roster if of_roster else self._stub, method)
        return await call(make(**request), metadata=self._metadata, timeout=server.UNARY_DEADLINE_S)

    async def list(self, **request: Any) -> dispatch_pb2.ListIncidentsResponse:
        """Lists incidents."""
        return await self._stub.ListIncidents(
            dispatch_pb2.ListIncidentsRequest(**request), metadata=self._metadata, timeout=server.UNARY_DEADLINE_S
        )

    async def incident_when(self, condition: Callable[[dispatch_pb2.Incident], bool]) -> dispatch_pb2.Incident:
        """Waits until the only incident of the leg fulfils a condition, and returns it."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                (incident,) = (await self.list()).incidents
                if condition(incident):
                    return incident
                await asyncio.sleep(0.05)


class Subscription:
    """An open stream of steps."""

    def __init__(self, call: Any) -> None:
        self._steps = call.__aiter__()

    async def next(self, state: dispatch_pb2.AssignmentState.ValueType) -> dispatch_pb2.SubscribeResponse:
        """Returns the next step to a state, and skips other steps."""
        while (response := await self.next_of_any()).step.assignment.state != state:
            pass
        return response

    async def next_of_any(self) -> dispatch_pb2.SubscribeResponse:
        """Returns the next step."""
        async with asyncio.timeout(PATIENCE_S):
            response: dispatch_pb2.SubscribeResponse = await self._steps.__anext__()
            return response


class RunningLeg:
    """A client of a running leg."""

    def __init__(self, leg: str, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self._stub = dispatch_pb2_grpc.DispatchServiceStub(channel)
        self._roster = roster_pb2_grpc.RosterServiceStub(channel)
        self.registry = CollectorRegistry()
        """Metrics of a leg that runs within this process."""
        self.desk = self.caller(DESKS[leg])

    def caller(self, spiffe_id: str) -> Desk:
        """Returns a caller of this leg with a SPIFFE id."""
        return Desk(self._stub, self._roster, spiffe_id)


def settings(leg: str, nats: TestServer, folder: Path, **more: Any) -> DispatchSettings:
    """Returns settings of a leg on a free port, with its data in `folder`."""
    given = {
        "leg": leg,
        "port": free_port(),
        "nats_url": nats.url_as(f"dispatch-{leg}"),
        "nats_monitor_url": nats.monitor_url,
        "data_dir": folder,
        "dev_secret": SECRET,
        "metrics_port": 0,
        "other_leg_within_s": 3600,  # most tests run one leg, which would report the others as absent
    }
    return DispatchSettings.model_validate(given | more)


@asynccontextmanager
async def client(configured: DispatchSettings) -> AsyncIterator[RunningLeg]:
    """Opens a client of a leg, once its health is SERVING."""
    async with server.channel(f"127.0.0.1:{configured.port}") as channel:
        await _until_serving(health_pb2_grpc.HealthStub(channel))
        yield RunningLeg(configured.leg, channel)


async def _until_serving(health: health_pb2_grpc.HealthStub) -> None:
    """Waits until a leg answers. Retries a broken stream: after a restart on the same port, the channel may still use the connection to
    the killed process, which gRPC shares between channels."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                await health.Check(  # type: ignore[attr-defined]  # the stubs lack it
                    health_pb2.HealthCheckRequest(), wait_for_ready=True
                )
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.05)


@asynccontextmanager
async def running(configured: DispatchSettings) -> AsyncIterator[RunningLeg]:
    """Runs a leg within this process, and stops it in good order at the end."""
    registry = process_registry()
    work = asyncio.create_task(run(configured, registry))
    try:
        async with client(configured) as leg:
            leg.registry = registry
            yield leg
            assert not work.done(), "the leg ended by itself"
    finally:
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)


@asynccontextmanager
async def process(configured: DispatchSettings, **more: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Runs a leg as a separate process with `more` environment variables, and kills it at the end if it still runs."""
    started = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.dispatch", "--leg", configured.leg),
        env=os.environ | variables(configured) | more,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield started
    finally:
        if started.returncode is None:
            started.kill()
            await started.wait()


def variables(configured: DispatchSettings) -> dict[str, str]:
    """Returns the environment variables that give a process these settings."""
    return {
        "TANDEM_PORT": str(configured.port),
        "TANDEM_NATS_URL": configured.nats_url,
        "TANDEM_NATS_MONITOR_URL": configured.nats_monitor_url,
        "TANDEM_DATA_DIR": str(configured.data_dir),
        "TANDEM_DEV_SECRET": configured.dev_secret,
        "TANDEM_METRICS_PORT": str(configured.metrics_port),
        "TANDEM_ACKNOWLEDGE_WITHIN_S": str(configured.acknowledge_within_s),
        "TANDEM_OTHER_LEG_WITHIN_S": str(configured.other_leg_within_s),
        f"TANDEM_{configured.leg.upper()}_DATABASE_URL": configured.database_url,
    }


def mark_canary(message: alert_pb2.Alert) -> None:
    """Makes an alert one of a canary's records."""
    message.exercise = exercise_pb2.CANARY
    message.order_id, message.wearer_id = f"{ids.CANARY_IDS}a.order-0", f"{ids.CANARY_IDS}a.wearer-0"


def alert(
    sequence: int,
    demand: geometry_pb2.Demand.ValueType = geometry_pb2.RESPOND,
    *,
    incident: str = "incident-1",
    protected: tuple[str, ...] = ("p1",),
    ends: bool = False,
    of_wearer: bool = True,
) -> alert_pb2.Alert:
    """Returns an alert about a wearer and protected persons, caused by a report of this moment."""
    message = alert_pb2.Alert(
        alert_id=f"alert-{incident}-{sequence}",
        sequence=sequence,
        kind=alert_pb2.RING_CLEARED if ends else alert_pb2.RING_ENTERED,
        demand=demand,
        order_id="order-1",
        case_id="case-1",
        incident_id=incident,
        wearer_id="w1",
        target_id="p1",
        incident_ends=ends,
        cause=alert_pb2.ReportCause(
            device_id="tag-1" if of_wearer else "phone-1",
            report_id=f"r-{sequence}",
            received_wall_us=wall_us(),
            of_wearer=of_wearer,
        ),
    )
    message.destinations.add(leg=alert_pb2.PROBATION, subject_id="w1")
    for subject_id in protected:
        message.destinations.add(leg=alert_pb2.POLICE, subject_id=subject_id)
        message.destinations.add(leg=alert_pb2.WARNING, subject_id=subject_id)
    return message


async def publish(bus: Bus, *alerts: alert_pb2.Alert) -> None:
    """Publishes alerts in the way of an evaluator."""
    for message in alerts:
        subject = flow.alert_subject(message.partition, message.alert_id)
        await bus.publish_until_stored(subject, message.SerializeToString(), expected_last=0)


async def stored_steps(bus: Bus, leg: str, incident: str, count: int) -> list[dispatch_pb2.Step]:
    """Waits until INCIDENTS has `count` steps of a leg for an incident, and returns all of them."""
    subject = flow.incident_subject(leg, incident)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            subscription = await bus.js.subscribe(subject, stream=flow.INCIDENTS.name, ordered_consumer=True)
            steps = []
            info = await bus.js.stream_info(flow.INCIDENTS.name, subjects_filter=subject)
            for _ in range((info.state.subjects or {}).get(subject, 0)):
                steps.append(dispatch_pb2.Step.FromString((await subscription.next_msg(timeout=5)).data))
            await subscription.unsubscribe()
            if len(steps) >= count:
                return steps
            await asyncio.sleep(0.05)
