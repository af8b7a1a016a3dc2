"""gRPC servicer of the TagRecordService: what officers record about the wearing of tags."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.privacy.grounds import RecordKind
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.disclosure.translate import parse_grounds
from services.registry.wearing import translate
from services.registry.wearing.service import NewRecord, WearingService
from tandem.registry.v1 import tag_record_pb2, tag_record_pb2_grpc

SEE_REASONS = frozenset({Role.ROLE_MOJ_RECORDS, Role.ROLE_MOJ_DESK, Role.ROLE_REVIEWER})
"""Roles that see the reasons of records about tags, which may say something about the wearer's health."""
_Context = grpc.aio.ServicerContext[Any, Any]


class TagRecordServicer(tag_record_pb2_grpc.TagRecordServiceServicer):
    """Parses requests of the TagRecordService, runs the commands and builds the responses."""

    def __init__(self, wearing: WearingService, clock: MeshClock) -> None:
        self._wearing = wearing
        self._clock = clock

    async def RecordRefusal(
        self, request: tag_record_pb2.RecordRefusalRequest, context: _Context
    ) -> tag_record_pb2.RecordRefusalResponse:
        outcome = await self._add(translate.parse_refusal(request))
        return tag_record_pb2.RecordRefusalResponse(outcome=outcome)

    async def RecordGoodCause(
        self, request: tag_record_pb2.RecordGoodCauseRequest, context: _Context
    ) -> tag_record_pb2.RecordGoodCauseResponse:
        outcome = await self._add(translate.parse_good_cause(request))
        return tag_record_pb2.RecordGoodCauseResponse(outcome=outcome)

    async def AllowRemoval(
        self, request: tag_record_pb2.AllowRemovalRequest, context: _Context
    ) -> tag_record_pb2.AllowRemovalResponse:
        outcome = await self._add(translate.parse_removal(request))
        return tag_record_pb2.AllowRemovalResponse(outcome=outcome)

    async def EndRemoval(
        self, request: tag_record_pb2.EndRemovalRequest, context: _Context
    ) -> tag_record_pb2.EndRemovalResponse:
        record_id = fields.required_id("record_id", request.record_id)
        ended_ms = fields.moment("ended_at", request.ended_at, request.HasField("ended_at"))
        by = server.caller().spiffe_id
        stored = await completed(self._wearing.end_removal(record_id, ended_ms, by))
        return tag_record_pb2.EndRemovalResponse(outcome=_outcome(stored))

    async def ListTagRecords(
        self, request: tag_record_pb2.ListTagRecordsRequest, context: _Context
    ) -> tag_record_pb2.ListTagRecordsResponse:
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        who = server.caller()
        records, disclosure_id = await completed(self._wearing.list_records(who, grounds, wearer_id))
        with_reason = who.role in SEE_REASONS
        return tag_record_pb2.ListTagRecordsResponse(
            records=[translate.record_to_proto(record, with_reason=with_reason) for record in records],
            disclosure_id=disclosure_id,
        )

    async def _add(self, new: NewRecord) -> tag_record_pb2.TagRecordOutcome.ValueType:
        by = server.caller().spiffe_id
        return _outcome(await completed(self._wearing.add(new, by)))


def _outcome(stored: bool) -> tag_record_pb2.TagRecordOutcome.ValueType:
    return tag_record_pb2.TAG_RECORD_OUTCOME_STORED if stored else tag_record_pb2.TAG_RECORD_OUTCOME_UNCHANGED
