"""gRPC servicer of the ExerciseService: puts and ends synthetic records for drills and canaries."""

from __future__ import annotations

import re
from typing import Any

import grpc.aio

from services.common import fields
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, PermissionDenied
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.domain import ExerciseKind
from services.registry.exercises.service import MAX_WEARERS, PLACE_DEG, ExerciseRecords, Exercises
from tandem.common.v1 import access_pb2, exercise_pb2, geometry_pb2
from tandem.registry.v1 import exercise_pb2 as exercise_service_pb2
from tandem.registry.v1 import exercise_pb2_grpc

RUN_BY = {Role.ROLE_OPERATOR: ExerciseKind.DRILL, Role.ROLE_WATCH: ExerciseKind.CANARY}
"""Kind of exercise that each role may run."""
_ID = re.compile(r"[a-z0-9-]{1,32}")

_Context = grpc.aio.ServicerContext[Any, Any]


class ExerciseServicer(exercise_pb2_grpc.ExerciseServiceServicer):
    """Parses requests of the ExerciseService, runs the commands and builds the responses."""

    def __init__(self, exercises: Exercises) -> None:
        self._exercises = exercises

    async def PutExercise(
        self, request: exercise_service_pb2.PutExerciseRequest, context: _Context
    ) -> exercise_service_pb2.PutExerciseResponse:
        records = _records(request)
        if not 1 <= request.wearers <= MAX_WEARERS:
            raise InvalidField("wearers", f"must be from 1 to {MAX_WEARERS}")
        if not fields.vendor_id("vendor_id", request.vendor_id):
            raise InvalidField("vendor_id", "is missing")
        until_ms = fields.moment("valid_until", request.valid_until, request.HasField("valid_until"))
        await completed(self._exercises.put(records, request.wearers, request.vendor_id, until_ms=until_ms))
        lat_deg, lon_deg = PLACE_DEG
        return exercise_service_pb2.PutExerciseResponse(
            cases=[
                exercise_service_pb2.ExerciseCase(
                    order_id=records.order_id(number),
                    wearer_id=records.wearer_id(number),
                    tag_device_id=records.tag_id(number),
                )
                for number in range(request.wearers)
            ],
            person_id=records.person_id,
            device_id=records.device_id,
            place=geometry_pb2.Point(lat_deg=lat_deg, lon_deg=lon_deg),
        )

    async def EndExercise(
        self, request: exercise_service_pb2.EndExerciseRequest, context: _Context
    ) -> exercise_service_pb2.EndExerciseResponse:
        await completed(self._exercises.end(_records(request)))
        return exercise_service_pb2.EndExerciseResponse()


def _records(
    request: exercise_service_pb2.PutExerciseRequest | exercise_service_pb2.EndExerciseRequest,
) -> ExerciseRecords:
    if request.exercise not in (exercise_pb2.DRILL, exercise_pb2.CANARY):
        raise InvalidField("exercise", "must be DRILL or CANARY")
    exercise = ExerciseKind(exercise_pb2.Exercise.Name(request.exercise))
    role = server.caller().role
    if RUN_BY.get(role) is not exercise:
        raise PermissionDenied(f"{access_pb2.Role.Name(role)} may not run a {exercise.value}")
    if not _ID.fullmatch(request.exercise_id):
        raise InvalidField("exercise_id", "must be 1 to 32 characters of a-z 0-9 - (example: drill-2026-07)")
    return ExerciseRecords(exercise, request.exercise_id)
