"""The gRPC edge of what-if questions."""

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
from services.geofence.consumer import Evaluator
from services.geofence.domain import what_if
from services.geofence.domain.entries import Case
from services.geofence.domain.rules import Rules
from services.geofence.partition_ownership import Holding
from services.geofence.what_if import translate
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import what_if_pb2, what_if_pb2_grpc

OF_RECORDS = frozenset({Role.ROLE_NPA_DESK, Role.ROLE_REVIEWER})
"""Roles that may ask about a case of the records: those who run the mesh need no address."""
RECORDED_WITHIN_S = 4.0


class WhatIfServicer(what_if_pb2_grpc.WhatIfServiceServicer):
    """Folds beside the evaluators of this process, on nothing of theirs but a case and the rules."""

    def __init__(self, bus: Bus, evaluators: Mapping[int, Evaluator], partitions: int, clock: MeshClock) -> None:
        self._bus, self._evaluators, self._clock = bus, evaluators, clock
        self._holding = Holding(evaluators, partitions)
        self._one = asyncio.Lock()
        """One at a time: the evaluators need the processor."""

    async def Evaluate(
        self, request: what_if_pb2.EvaluateRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> what_if_pb2.EvaluateResponse:
        if self._one.locked():
            raise Unavailable("another question is being evaluated")
        # A thread can't be stopped: whoever goes away holds the turn until theirs has ended.
        return await asyncio.shield(asyncio.ensure_future(self._answer(request)))

    async def _answer(self, request: what_if_pb2.EvaluateRequest) -> what_if_pb2.EvaluateResponse:
        async with self._one:
            match request.WhichOneof("subject"):
                case "case_id":
                    case, rules = self._case_of_records(request)
                    translate.steps_of(request.steps, case)
                    await self._record(request, case, server.caller())
                case "case":
                    case = await asyncio.to_thread(translate.inline_case, request.case)
                    rules = next(iter(self._evaluators.values())).state.rules
                case _:
                    raise InvalidField("subject", "needs a case_id or a case")
            # A thread: the event loop, and with it the next alert, never waits for an answer to a question.
            return await asyncio.to_thread(_evaluate, request, case, rules)

    def _case_of_records(self, request: what_if_pb2.EvaluateRequest) -> tuple[Case, Rules]:
        case_id = fields.required_id("case_id", request.case_id)
        who = server.caller()
        if who.role not in OF_RECORDS:
            logger().warning("what_if_refused", who=who.spiffe_id, case_id=case_id)
            raise PermissionDenied("this role may evaluate made-up cases only")
        try:
            check_grounds(
                request.grounds.legal_basis,
                PURPOSES.get(request.grounds.purpose),
                request.grounds.reference,
                RecordKind.ORDER,
                self._clock.now_ms(),
            )
        except InvalidField as error:
            raise error.under("grounds") from None
        evaluator = self._holding.of(case_id)
        if evaluator is None:
            raise self._holding.missing()
        return evaluator.state.cases[case_id].case, evaluator.state.rules

    async def _record(self, request: what_if_pb2.EvaluateRequest, case: Case, who: Caller) -> None:
        """The row for the ledger is stored before anything is answered. Raises Unavailable where it can't be."""
        at_ms = self._clock.now_ms()
        disclosure = ledger_pb2.Disclosure(
            disclosure_id=hash_id("what-if", who.spiffe_id, at_ms, request.SerializeToString(deterministic=True).hex()),
            at_ms=at_ms,
            who=who.spiffe_id,
            legal_basis=request.grounds.legal_basis,
            purpose=PURPOSES[request.grounds.purpose].value,
            reference=request.grounds.reference or case.case_id,
            record_kind=RecordKind.ORDER.value,
            record_id=case.order_id,
            order_id=case.order_id,
            recipient=who.spiffe_id,
        )
        subject = flow.disclosure_subject("geofence", disclosure.disclosure_id)
        try:
            async with asyncio.timeout(RECORDED_WITHIN_S):
                await self._bus.publish(subject, disclosure.SerializeToString(), msg_id=disclosure.disclosure_id)
        except TimeoutError:
            raise Unavailable("the disclosure can't be recorded") from None


def _evaluate(request: what_if_pb2.EvaluateRequest, case: Case, rules: Rules) -> what_if_pb2.EvaluateResponse:
    outputs = what_if.play(case, rules, translate.steps_of(request.steps, case))
    return translate.answer(case, rules.rules_id, outputs)
