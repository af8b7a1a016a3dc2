"""Exercises on a running mesh: create their records, and send their devices' reports to ingest."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import grpc.aio

from services.cli.calls import call
from services.cli.failure import of_rpc
from services.cli.simulate.demo import METRES_PER_DEGREE
from services.cli.stack.mesh import Clients
from services.common import times
from tandem.common.v1 import exercise_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import exercise_pb2 as records_pb2

VENDOR_ID = "exercise"
VENDOR = f"spiffe://vendor/{VENDOR_ID}"
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
        self._clients, self._kind, self.exercise_id = clients, kind, exercise_id
        self._run_by, self._vendor = clients.identity(run_by), clients.identity(VENDOR)
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
            vendor_id=VENDOR_ID,
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
