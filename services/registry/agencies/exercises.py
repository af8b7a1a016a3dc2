"""Synthetic records for drills and canaries: derived from an id, and put and ended by the same code as the agencies' records."""

from __future__ import annotations

import contextlib
import hashlib
import re
from datetime import date, timedelta
from typing import Any

import grpc.aio
import sqlalchemy as sa

from services.common import fields, ids
from services.common.clock import MeshClock
from services.common.errors import FailedPrecondition, InvalidField, NotFound, PermissionDenied
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.agencies.ministry import MinistryService
from services.registry.agencies.police import PoliceService
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.records import (
    Action,
    Device,
    EndReason,
    ExerciseKind,
    Order,
    OrderEnd,
    OrderRing,
    ProtectedPerson,
    Respondent,
    Tag,
    Wearer,
    WearerEnd,
    WearerEndReason,
)
from services.registry.records.kinds import ORDERS, PERSONS, TAGS
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.common.v1 import access_pb2, exercise_pb2, geometry_pb2
from tandem.registry.v1 import exercise_pb2 as exercise_service_pb2
from tandem.registry.v1 import exercise_pb2_grpc

MAX_WEARERS = 10
MAX_VALID_MS = 7 * 86_400_000
RADIUS_M = 100.0
PLACE_DEG = (36.0, 125.0)
"""Latitude and longitude of all exercises, degrees: a place in the Yellow Sea."""
_VERSION = 1
"""Source version of all records except orders, until the record ends."""
_DAYS_OF_BIRTH = 18_000


class ExerciseRecords:
    """Builds the records of one exercise. The same ids and numbers always give the same people."""

    def __init__(self, exercise: ExerciseKind, exercise_id: str) -> None:
        self._exercise = exercise
        self._prefix = f"{ids.EXERCISE_IDS}{exercise.value.lower()}.{exercise_id}"
        self.person_id = f"{self._prefix}.person"
        self.device_id = f"{self._prefix}.app"

    def order_id(self, number: int) -> str:
        """Id of the order with this number."""
        return f"{self._prefix}.order-{number}"

    def wearer_id(self, number: int) -> str:
        """Id of the wearer with this number."""
        return f"{self._prefix}.wearer-{number}"

    def tag_id(self, number: int) -> str:
        """Id of the tag of the wearer with this number."""
        return f"{self._prefix}.tag-{number}"

    def person(self) -> ProtectedPerson:
        """The protected person of all orders of the exercise."""
        return ProtectedPerson(self.person_id, "Exercise", _VERSION)

    def device(self, vendor_id: str) -> Device:
        """The protective device of the protected person."""
        return Device(self.device_id, self.person_id, _VERSION, vendor_id=vendor_id)

    def wearer(self, number: int) -> Wearer:
        """The wearer with this number."""
        identity = self._identity(number)
        return Wearer(
            wearer_id=self.wearer_id(number),
            national_id=identity.national_id,
            name=identity.name,
            birth_date=identity.birth_date,
            source_version=_VERSION,
            exercise=self._exercise,
        )

    def tag(self, number: int, vendor_id: str) -> Tag:
        """The tag of the wearer with this number."""
        return Tag(self.tag_id(number), self.wearer_id(number), _VERSION, vendor_id=vendor_id)

    def order(self, number: int, now_ms: int, until_ms: int) -> Order:
        """The order against the wearer with this number, valid from `now_ms`. To prolong the order, put it again with later times."""
        return Order(
            order_id=self.order_id(number),
            respondent=self._identity(number),
            protected_person_ids=(self.person_id,),
            places=(),
            rings=(OrderRing(RADIUS_M, Action.RESPOND),),
            valid_from_ms=now_ms,
            valid_until_ms=until_ms,
            source_version=now_ms,
            exercise=self._exercise,
        )

    def _identity(self, number: int) -> Respondent:
        """The person with this number. The persons differ so much that matching never takes two of them for one."""
        digest = hashlib.sha256(self.wearer_id(number).encode()).digest()
        digits = f"{int.from_bytes(digest[:8]) % 10**13:013d}"
        name = "".join(chr(ord("a") + byte % 26) for byte in digest[8:24])
        born = date(1950, 1, 1) + timedelta(days=int.from_bytes(digest[24:28]) % _DAYS_OF_BIRTH)
        return Respondent(national_id=digits, name=name, birth_date=born)


class Exercises:
    """Puts and ends the records of exercises."""

    def __init__(
        self, transactions: Transactions, ministry: MinistryService, police: PoliceService, *, clock: MeshClock
    ) -> None:
        self._transactions = transactions
        self._ministry = ministry
        self._police = police
        self._clock = clock

    async def put(self, records: ExerciseRecords, wearers: int, vendor_id: str, *, until_ms: int) -> None:
        """Put all records of an exercise. For records that exist, prolong the orders.

        Raises InvalidField if `until_ms` is past or too far ahead, FailedPrecondition if the exercise has ended.
        """
        now_ms = self._clock.now_ms()
        if not now_ms < until_ms <= now_ms + MAX_VALID_MS:
            raise InvalidField("valid_until", "must be within 7 days from now")
        _check_running(await self._police.put_protected_person(records.person()))
        _check_running(await self._police.put_device(records.device(vendor_id)))
        for number in range(wearers):
            _check_running(await self._ministry.put_wearer(records.wearer(number)))
            _check_running(await self._ministry.put_tag(records.tag(number, vendor_id)))
            await self._police.put_order(records.order(number, now_ms, until_ms))

    async def end(self, records: ExerciseRecords) -> None:
        """End all records that haven't ended. The order of the steps allows a retry after a failure.

        Raises NotFound if there is no such exercise.
        """
        now_ms = self._clock.now_ms()

        def read(connection: sa.Connection) -> tuple[dict[str, Tag], dict[str, Order]]:
            stored = WorkingSet(connection, self._transactions.vault).records
            if stored.find(PERSONS, records.person_id) is None:
                raise NotFound("exercise_id: no such exercise")
            tag_ids = [records.tag_id(number) for number in range(MAX_WEARERS)]
            order_ids = [records.order_id(number) for number in range(MAX_WEARERS)]
            return stored.opened(TAGS, tag_ids), stored.opened(ORDERS, order_ids)

        tags, orders = await self._transactions.database.visit(read)
        order_end = OrderEnd(EndReason.CANCELLED_BY_POLICE, now_ms)
        for order in orders.values():
            if order.end is None:
                await self._police.end_order(order.order_id, order_end, max(now_ms, order.source_version + 1))
        for tag in tags.values():
            if tag.removed_at_ms is None:
                await self._ministry.end_tag(tag.device_id, now_ms, now_ms)
        for number in range(MAX_WEARERS):
            # LAPSED destroys the wearer at once, because the data belongs to nobody. A retry then gets NotFound, as for a number that
            # wasn't put. A wearer whose tag wasn't put ends, too: a put may have broken off between them.
            with contextlib.suppress(NotFound):
                wearer_id = records.wearer_id(number)
                await self._ministry.end_wearer(wearer_id, WearerEnd(WearerEndReason.LAPSED, now_ms), now_ms)
        with contextlib.suppress(NotFound):
            await self._police.end_device(records.device_id, now_ms, now_ms)
        with contextlib.suppress(NotFound):
            await self._police.end_protected_person(records.person_id, now_ms, now_ms)


def _check_running(outcome: PutOutcome) -> None:
    """Raises FailedPrecondition if a record of an exercise has ended, which is a later version than the one that was put."""
    if outcome is PutOutcome.SUPERSEDED:
        raise FailedPrecondition("exercise_id: this exercise has ended; start one with another id")


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
