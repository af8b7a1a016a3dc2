"""gRPC servicer of what-if questions: the alerts that made-up reports would cause."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.ids import hash_id
from services.common.messaging import flow
from services.common.messaging.bus import Bus
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import RecordKind, check_grounds
from services.common.privacy.purposes import PURPOSES
from services.common.rpc import server
from services.common.rpc.errors import InvalidField, PermissionDenied, Unavailable
from services.common.rpc.identity import Caller, Role
from services.common.running import completed
from services.geofence.consumer import Evaluator
from services.geofence.domain import what_if
from services.geofence.domain.entries import Case
from services.geofence.domain.rules import Rules
from services.geofence.partition_ownership import PartitionOwnership
from services.geofence.what_if import translate
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import what_if_pb2, what_if_pb2_grpc

OF_RECORDS = frozenset({Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER})
"""Roles that may ask about a real case. Operators of the mesh aren't among them, because they need no address."""
RECORDED_WITHIN_S = 4.0
"""Maximum time to publish the disclosure of an answer, seconds."""


class WhatIfServicer(what_if_pb2_grpc.WhatIfServiceServicer):
    """Serves WhatIfService: folds made-up reports in a fresh state. Only the case and the rules come from the evaluators."""

    def __init__(self, bus: Bus, evaluators: Mapping[int, Evaluator], partitions: int, *, clock: MeshClock) -> None:
        self._bus, self._evaluators, self._clock = bus, evaluators, clock
        self._ownership = PartitionOwnership(evaluators, partitions)
        self._evaluating = asyncio.Lock()
        """Held during an evaluation; only one runs at a time, because the evaluators need the processor."""

    async def Evaluate(
        self, request: what_if_pb2.EvaluateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> what_if_pb2.EvaluateResponse:
        if self._evaluating.locked():
            raise Unavailable("another what-if question is being evaluated: retry")
        # A thread can't be stopped. So the lock stays held until the evaluation ends, even if its caller disconnects.
        return await completed(self._answer(request))

    async def _answer(self, request: what_if_pb2.EvaluateRequest) -> what_if_pb2.EvaluateResponse:
        async with self._evaluating:
            match request.WhichOneof("subject"):
                case "case_id":
                    case, rules = self._case_of_records(request)
                    translate.steps_of(request.steps, case)
                    await self._record(request, case, server.caller())
                case "case":
                    rules = self._rules()
                    case = await asyncio.to_thread(translate.inline_case, request.case)
                case _:
                    raise InvalidField("subject", "is missing: set case_id or case")
            # In a thread, so that what-if questions don't delay the event loop and the next alert.
            return await asyncio.to_thread(_evaluate, request, case, rules)

    def _rules(self) -> Rules:
        """The rules in force, which are the same in all partitions. Raises Unavailable if this process folds none."""
        evaluator = next(iter(self._evaluators.values()), None)
        if evaluator is None:
            raise Unavailable("this evaluator folds no partition: ask another evaluator")
        return evaluator.state.rules

    def _case_of_records(self, request: what_if_pb2.EvaluateRequest) -> tuple[Case, Rules]:
        case_id = fields.required_id("case_id", request.case_id)
        caller = server.caller()
        if caller.role not in OF_RECORDS:
            logger().warning("what_if_refused", who=caller.spiffe_id, case_id=case_id)
            raise PermissionDenied("this role may evaluate made-up cases only: send `case` instead of `case_id`")
        try:
            check_grounds(
                request.grounds.legal_basis,
                PURPOSES.get(request.grounds.purpose),
                request.grounds.reference,
                kind=RecordKind.ORDER,
                now_ms=self._clock.now_ms(),
            )
        except InvalidField as error:
            raise error.under("grounds") from None
        evaluator = self._ownership.evaluator_of(case_id)
        if evaluator is None:
            raise self._ownership.not_found()
        return evaluator.state.cases[case_id].case, evaluator.state.rules

    async def _record(self, request: what_if_pb2.EvaluateRequest, case: Case, caller: Caller) -> None:
        """Publishes the disclosure for the ledger, before the answer leaves. Raises Unavailable if that fails."""
        at_ms = self._clock.now_ms()
        disclosure = ledger_pb2.Disclosure(
            disclosure_id=hash_id(
                "what-if", caller.spiffe_id, at_ms, request.SerializeToString(deterministic=True).hex()
            ),
            at_ms=at_ms,
            who=caller.spiffe_id,
            legal_basis=request.grounds.legal_basis,
            purpose=PURPOSES[request.grounds.purpose].value,
            reference=request.grounds.reference or case.case_id,
            record_kind=RecordKind.ORDER.value,
            record_id=case.order_id,
            order_id=case.order_id,
            recipient=caller.spiffe_id,
        )
        subject = flow.disclosure_subject("geofence", disclosure.disclosure_id)
        try:
            async with asyncio.timeout(RECORDED_WITHIN_S):
                await self._bus.publish(subject, disclosure.SerializeToString(), msg_id=disclosure.disclosure_id)
        except TimeoutError:
            raise Unavailable("the disclosure of this answer can't be recorded: NATS doesn't respond") from None


def _evaluate(request: what_if_pb2.EvaluateRequest, case: Case, rules: Rules) -> what_if_pb2.EvaluateResponse:
    outputs = what_if.play(case, rules, translate.steps_of(request.steps, case))
    return translate.answer(case, rules.rules_id, outputs)
