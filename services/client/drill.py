"""Run a drill, a synthetic breach that desks see as an exercise, and measure each step of the response.

The records of an exercise and the reports of its devices are made by ExerciseRun, which the canaries of the watch use too.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import NamedTuple

import grpc
import grpc.aio

from services.client.actors import DESKS, REVIEWER, UNANSWERED, Actor, State, leg_steps
from services.client.calls import call, follow
from services.client.mesh import Clients
from services.common import times
from services.common.clock import wall_us
from services.common.failure import CommandFailed, of_rpc
from services.common.geometry import METRES_PER_DEGREE
from services.common.messaging import flow
from tandem.common.v1 import exercise_pb2, geometry_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tandem.geofence.v1 import geofence_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2

DRILL_OPERATOR = "spiffe://tandem/operator/drill"
VALID_S = 3_600
"""Validity of a drill's records, seconds: a killed drill ends by itself after this."""
STEP_WITHIN_S = 30.0
"""Maximum time per step when the drill answers for the desks, seconds of wall time."""
UNIT_NAME = "훈련 drill"
"""Name of the unit that the drill enters as sent by radio."""
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
        self._clients = clients
        self._order_id = order_id
        self._times = times

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
        self._stub, self._identity = clients.legs[leg].dispatch, clients.identity(DESKS[leg])
        self._order_id = order_id
        self._times = times
        self._answers = answers
        self.leg = leg
        self.state = State.ASSIGNMENT_STATE_UNSPECIFIED

    async def _run(self) -> None:
        async for message in leg_steps(self._stub, self._identity, new_only=True):
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
            elif self.leg != "warning" and assignment.state == State.ACKNOWLEDGED:
                # An exercise asks no unit, so the desk names one as if it had sent it by radio.
                sent = dispatch_pb2.SendByRadioRequest(
                    assignment_id=id_, unit_name=UNIT_NAME, offer_number=assignment.offer_number
                )
                await call(self._stub.SendByRadio, sent, self._identity)
            elif self.leg != "warning" and assignment.state == State.DISPATCHED:
                request = dispatch_pb2.ProgressRequest(assignment_id=id_, state=State.EN_ROUTE)
                await call(self._stub.Progress, request, self._identity)
            elif assignment.state == State.STOOD_DOWN:
                closed = dispatch_pb2.CloseRequest(assignment_id=id_, cause=dispatch_pb2.CloseCause.EXERCISE)
                await call(self._stub.Close, closed, self._identity)
        except grpc.aio.AioRpcError as error:
            # The assignment has changed meanwhile; the stream reports it.
            if error.code() is not grpc.StatusCode.FAILED_PRECONDITION:
                raise


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
            clients=clients, kind=exercise_pb2.DRILL, exercise_id=exercise_id, run_by=DRILL_OPERATOR, valid_s=VALID_S
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


EXERCISE_VENDOR_ID = "exercise"
EXERCISE_VENDOR = f"spiffe://vendor/{EXERCISE_VENDOR_ID}"
"""SPIFFE id of the vendor that reports for devices of exercises only."""
INSIDE_M, OUTSIDE_M = 0.0, 200.0
"""Distances of a wearer from the protected person, metres: within the ring of 100 m, and well beyond it.

A canary moves from one to the other between two reports, 20 s apart. Moving faster than the rules' `reach_mps` (14 m/s) would be a
position jump of a stationary device, and an evaluator rightly waits for a second position before it accepts a jump.
"""
ACCURACY_M = 5.0
ANSWER_WITHIN_S = 8.0
"""Timeout for ingest to put a report into the log, seconds of wall time."""


class Answered(NamedTuple):
    """Ingest's answer to a report."""

    durable: bool
    """Whether the report is in the log."""
    because: str
    """Reason why the report isn't in the log; else empty."""


class ExerciseRun:
    """One exercise, a drill or a series of canaries."""

    def __init__(
        self, clients: Clients, kind: exercise_pb2.Exercise.ValueType, exercise_id: str, *, run_by: str, valid_s: int
    ) -> None:
        self._clients = clients
        self._kind = kind
        self.exercise_id = exercise_id
        self._run_by, self._vendor = clients.identity(run_by), clients.identity(EXERCISE_VENDOR)
        self._valid_s = valid_s
        self.records = records_pb2.PutExerciseResponse()
        """The synthetic records that the registry created."""

    async def put(self, wearers: int) -> None:
        """Creates the records for this many wearers, or prolongs them. Raises AioRpcError."""
        until_ms = self._clients.clock.now_ms() + self._valid_s * 1000
        request = records_pb2.PutExerciseRequest(
            exercise=self._kind,
            exercise_id=self.exercise_id,
            wearers=wearers,
            vendor_id=EXERCISE_VENDOR_ID,
            valid_until=times.to_timestamp(until_ms),
        )
        self.records = await self._clients.exercises.PutExercise(
            request, timeout=ANSWER_WITHIN_S, metadata=self._run_by, wait_for_ready=True
        )

    async def end(self) -> None:
        """Ends all records of the exercise, with retries for 60 s. Raises AioRpcError or CommandFailed."""
        request = records_pb2.EndExerciseRequest(exercise=self._kind, exercise_id=self.exercise_id)
        await call(self._clients.exercises.EndExercise, request, self._run_by)

    async def report(self, distances_m: Mapping[int, float]) -> Answered:
        """Reports the protected person at the protected place, and each wearer, by number, at a distance north of that place."""
        place, now_ms = self.records.place, self._clients.clock.now_ms()
        devices = [(self.records.device_id, 0.0)]
        devices += [(self.records.cases[number].tag_device_id, away_m) for number, away_m in distances_m.items()]
        request = ingest_pb2.ReportBatchRequest(
            positions=[
                ingest_pb2.Position(
                    device_id=device_id,
                    report_id=f"{now_ms}",
                    fix_time=times.to_timestamp(now_ms),
                    lat_deg=place.lat_deg + away_m / METRES_PER_DEGREE,
                    lon_deg=place.lon_deg,
                    accuracy_m=ACCURACY_M,
                )
                for device_id, away_m in devices
            ]
        )
        try:
            answer = await self._clients.ingest.ReportBatch(request, timeout=ANSWER_WITHIN_S, metadata=self._vendor)
        except grpc.aio.AioRpcError as error:
            return Answered(False, of_rpc(error).message)
        if answer.refusals:
            first = answer.refusals[0]
            return Answered(False, f"refused: {first.field}: {first.reason}")
        return Answered(True, "")


def lead_ms() -> int:
    """Shortest time from a report outside to a report inside that isn't a position jump, milliseconds of mesh time."""
    return math.ceil((OUTSIDE_M - INSIDE_M) / 100 * 1000) + 1000
