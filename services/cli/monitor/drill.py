"""Run a drill, a synthetic breach that desks see as an exercise, and measure each step of the response."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field

import grpc
import grpc.aio

from services.cli.calls import call, follow
from services.cli.failure import CommandFailed
from services.cli.monitor.exercise import INSIDE_M, OUTSIDE_M, ExerciseRun, lead_ms
from services.cli.simulate.actors import DESKS, REVIEWER, UNANSWERED, Actor, State
from services.cli.stack.mesh import Clients
from services.common.clock import wall_us
from services.common.messaging import flow
from tandem.common.v1 import exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2

OPERATOR = "spiffe://tandem/operator/drill"
VALID_S = 3_600
"""Validity of a drill's records, seconds: a killed drill ends by itself after this."""
STEP_WITHIN_S = 30.0
"""Maximum time per step when the drill answers for the desks, seconds of wall time."""
_REPORT_RETRY_S = 0.2
_STEP_NAMES = {
    State.OFFERED: "offered",
    State.ACKNOWLEDGED: "accepted",
    State.DISPATCHED: "dispatched",
    State.EN_ROUTE: "en route",
    State.STOOD_DOWN: "stood down",
    State.CLOSED: "closed",
}
"""Names of a leg's measured steps, by assignment state."""
AGENCY_STEPS = tuple(_STEP_NAMES.values())
# The warning gateway sends nobody, so it has no steps "dispatched" and "en route".
WARNING_STEPS = ("offered", "accepted", "stood down", "closed")
STEPS = (
    *("received", "durable", "alert seen"),
    *(f"{leg} {step}" for leg in ("probation", "police") for step in AGENCY_STEPS),
    *(f"warning {step}" for step in WARNING_STEPS),
)
"""All measured steps, in their order. "alert seen" comes after the legs' offers: WatchAlerts collects alerts for 0.1 s."""
BREACH, END = "the report", "the end of the case"


def counted_from(step: str) -> str:
    """Origin of a step's time: the breach report, or the end of the case."""
    return END if step.endswith(("stood down", "closed")) else BREACH


@dataclass(slots=True)
class Times:
    """Time of each step, milliseconds of wall time since its origin (`counted_from`)."""

    began_us: int = 0
    ending_us: int = 0
    ms: dict[str, float] = field(default_factory=dict)
    on_step: Callable[[str, float], None] = lambda _step, _ms: None
    """Callback for each step with its time, when it is first seen."""

    def note(self, step: str, at_us: int | None = None) -> None:
        """Records a step the first time it is seen."""
        from_us = self.ending_us if counted_from(step) == END else self.began_us
        if from_us and step not in self.ms:
            self.ms[step] = ((at_us or wall_us()) - from_us) / 1000
            self.on_step(step, self.ms[step])


class _Alerts(Actor):
    """Follows the alerts of a drill, and records when the breach was received and when a follower saw its alert."""

    def __init__(self, clients: Clients, order_id: Callable[[], str], times: Times) -> None:
        super().__init__()
        self._clients, self._order_id, self._times = clients, order_id, times

    async def _run(self) -> None:
        async for message in follow(self._open):
            alert = message.alert
            if alert.order_id == self._order_id() and alert.demand == geometry_pb2.Demand.RESPOND:
                self._times.note("alert seen")
                if alert.HasField("cause"):
                    self._times.note("received", alert.cause.received_wall_us)
                self._changed.set()

    def _open(self) -> grpc.aio.UnaryStreamCall[geofence_pb2.WatchAlertsRequest, geofence_pb2.WatchAlertsResponse]:
        request = geofence_pb2.WatchAlertsRequest(new_only=True)
        return self._clients.geofence.WatchAlerts(request, metadata=self._clients.identity(REVIEWER))


class _DrillDesk(Actor):
    """Follows one leg's assignment of a drill, and answers for its desk if `answers` is set."""

    def __init__(self, clients: Clients, leg: str, order_id: Callable[[], str], *, times: Times, answers: bool) -> None:
        super().__init__()
        self._stub, self._identity = clients.dispatch[leg], clients.identity(DESKS[leg])
        self._order_id, self._times, self._answers = order_id, times, answers
        self._last = 0
        self.leg = leg
        self.state = State.ASSIGNMENT_STATE_UNSPECIFIED

    async def _run(self) -> None:
        async for message in follow(self._open):
            self._last = max(self._last, message.sequence)
            assignment = message.step.assignment
            if self._order_id() not in assignment.order_ids:
                continue
            if assignment.exercise != exercise_pb2.DRILL:
                raise CommandFailed(f"the {self.leg} leg doesn't say that {assignment.assignment_id} is an exercise")
            self.state = assignment.state
            if assignment.state in _STEP_NAMES:
                self._times.note(f"{self.leg} {_STEP_NAMES[assignment.state]}")
            self._changed.set()
            if self._answers:
                await self._answer(assignment)

    async def _answer(self, assignment: dispatch_pb2.Assignment) -> None:
        id_ = assignment.assignment_id
        try:
            if assignment.state in UNANSWERED:
                await call(self._stub.Acknowledge, dispatch_pb2.AcknowledgeRequest(assignment_id=id_), self._identity)
            elif self.leg != "warning" and assignment.state in (State.ACKNOWLEDGED, State.DISPATCHED):
                further = State.DISPATCHED if assignment.state == State.ACKNOWLEDGED else State.EN_ROUTE
                request = dispatch_pb2.ProgressRequest(assignment_id=id_, state=further)
                await call(self._stub.Progress, request, self._identity)
            elif assignment.state == State.STOOD_DOWN:
                closed = dispatch_pb2.CloseRequest(assignment_id=id_, cause=dispatch_pb2.CloseCause.EXERCISE)
                await call(self._stub.Close, closed, self._identity)
        except grpc.aio.AioRpcError as error:
            # The assignment has changed meanwhile; the stream reports it.
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise

    def _open(self) -> grpc.aio.UnaryStreamCall[dispatch_pb2.SubscribeRequest, dispatch_pb2.SubscribeResponse]:
        request = dispatch_pb2.SubscribeRequest(after_sequence=self._last, new_only=not self._last)
        return self._stub.Subscribe(request, metadata=self._identity)


class Drill:
    """One drill on a running mesh."""

    def __init__(
        self,
        clients: Clients,
        answers: bool,
        patience_s: float,
        *,
        on_step: Callable[[str, float], None] = lambda _step, _ms: None,
    ) -> None:
        exercise_id = f"{wall_us():x}"
        self._exercise = ExerciseRun(
            clients=clients, kind=exercise_pb2.DRILL, exercise_id=exercise_id, run_by=OPERATOR, valid_s=VALID_S
        )
        self._clock, self._patience_s = clients.clock, patience_s
        self.times = Times(on_step=on_step)
        self._alerts = _Alerts(clients, self._order_id, self.times)
        self._desks = [
            _DrillDesk(clients=clients, leg=leg, order_id=self._order_id, times=self.times, answers=answers)
            for leg in flow.LEGS
        ]

    def _order_id(self) -> str:
        return self._exercise.records.cases[0].order_id if self._exercise.records.cases else ""

    async def run(self) -> Times:
        """Runs the drill to its end. Raises CommandFailed naming the missing step; the drill's records are ended in any case."""
        async with AsyncExitStack() as stack:
            for actor in (self._alerts, *self._desks):
                await stack.enter_async_context(actor)
            creation = asyncio.ensure_future(self._exercise.put(1))
            try:
                await asyncio.shield(creation)
                await self._breach()
                await self._alerts.until("the alert", lambda: self.times.ms.get("alert seen"), self._patience_s)
                await self._until_step("en route", "accepted")
            finally:
                # The synthetic records must not stay, however the drill ends, Ctrl-C included.
                await asyncio.shield(self._end(creation))
            await self._until_step("closed", "closed")
        return self.times

    async def _end(self, creation: asyncio.Future[None]) -> None:
        await asyncio.wait({creation})
        self.times.ending_us = wall_us()
        if not creation.exception():
            await self._exercise.end()

    async def _breach(self) -> None:
        """Reports the wearer outside until ingest knows the new devices, then inside once the evaluators know the case."""
        give_up_at = asyncio.get_running_loop().time() + STEP_WITHIN_S
        while not (outside := await self._exercise.report({0: OUTSIDE_M})).durable:
            if asyncio.get_running_loop().time() > give_up_at:
                raise CommandFailed(f"ingest doesn't accept the report: {outside.because}")
            await asyncio.sleep(_REPORT_RETRY_S)
        await asyncio.sleep(self._clock.wall_s(lead_ms()))
        self.times.began_us = wall_us()
        inside = await self._exercise.report({0: INSIDE_M})
        if not inside.durable:
            raise CommandFailed(f"ingest doesn't accept the report: {inside.because}")
        self.times.note("durable")

    async def _until_step(self, agencies: str, warning: str) -> None:
        """Waits until the agencies' legs and the warning leg have each come to this step."""
        for desk in self._desks:
            step = f"{desk.leg} {warning if desk.leg == 'warning' else agencies}"
            await desk.until(step, lambda step=step: self.times.ms.get(step), self._patience_s)  # type: ignore[misc]
