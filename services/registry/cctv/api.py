"""gRPC servicer of the CctvService: the log of requests to local governments for CCTV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.privacy.grounds import RecordKind
from services.common.rpc import server
from services.common.rpc.errors import InvalidField
from services.common.running import completed
from services.registry.cctv.domain import CctvEntry, CctvGround, CctvRequest, CctvStep
from services.registry.cctv.service import CctvRequests, NewRequest
from services.registry.disclosure.translate import parse_grounds
from services.registry.records.translate import REASON_MAX_CHARS, optional_text, required_text
from tandem.registry.v1 import cctv_pb2, cctv_pb2_grpc

GOVERNMENT_MAX_CHARS = 100
DETAILS_MAX_CHARS = 1_000
_GROUNDS: Mapping[int, CctvGround] = {
    cctv_pb2.CctvGround.Value(f"CCTV_GROUND_{ground.value}"): ground for ground in CctvGround
}
_STEPS: Mapping[int, CctvStep] = {cctv_pb2.CctvStep.Value(f"CCTV_STEP_{step.value}"): step for step in CctvStep}
_Context = grpc.aio.ServicerContext[Any, Any]


class CctvServicer(cctv_pb2_grpc.CctvServiceServicer):
    """Parses requests of the CctvService, runs the commands and builds the responses."""

    def __init__(self, requests: CctvRequests, clock: MeshClock) -> None:
        self._requests = requests
        self._clock = clock

    async def RequestCctv(
        self, request: cctv_pb2.RequestCctvRequest, context: _Context
    ) -> cctv_pb2.RequestCctvResponse:
        if request.ground not in _GROUNDS:
            raise InvalidField("ground", "is missing or unknown (example: CCTV_GROUND_DUTY_14_1)")
        new = NewRequest(
            request_id=fields.required_id("request_id", request.request_id),
            wearer_id=fields.required_id("wearer_id", request.wearer_id),
            ground=_GROUNDS[request.ground],
            government=required_text("government", request.government, GOVERNMENT_MAX_CHARS),
            details=required_text("details", request.details, DETAILS_MAX_CHARS),
        )
        made, disclosure_id = await completed(self._requests.request(new, server.caller().spiffe_id))
        return cctv_pb2.RequestCctvResponse(request=self._to_proto(made), disclosure_id=disclosure_id)

    async def RecordCctvStep(
        self, request: cctv_pb2.RecordCctvStepRequest, context: _Context
    ) -> cctv_pb2.RecordCctvStepResponse:
        request_id = fields.required_id("request_id", request.request_id)
        step = _STEPS.get(request.step)
        if step is None or step is CctvStep.REQUESTED:
            raise InvalidField("step", "must be PROVIDED, DECLINED, VIEWING_ENDED or WEARER_NOTIFIED")
        at_ms = fields.moment("at", request.at, request.HasField("at"))
        note = optional_text("note", request.note, REASON_MAX_CHARS)
        entry = CctvEntry(
            step=step,
            at_ms=at_ms,
            recorded_ms=self._clock.now_ms(),
            recorded_by=server.caller().spiffe_id,
            text=note,
        )
        changed = await completed(self._requests.add_step(request_id, entry))
        return cctv_pb2.RecordCctvStepResponse(request=self._to_proto(changed))

    async def ListCctvRequests(
        self, request: cctv_pb2.ListCctvRequestsRequest, context: _Context
    ) -> cctv_pb2.ListCctvRequestsResponse:
        after = fields.required_id("after_request_id", request.after_request_id) if request.after_request_id else ""
        if not request.wearer_id:
            found = await self._requests.list_all(after, only_overdue=request.only_overdue)
            return cctv_pb2.ListCctvRequestsResponse(requests=map(self._to_proto, found))
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        listing = self._requests.list_about(
            server.caller(), grounds, wearer_id, after=after, only_overdue=request.only_overdue
        )
        found, disclosure_id = await completed(listing)
        return cctv_pb2.ListCctvRequestsResponse(requests=map(self._to_proto, found), disclosure_id=disclosure_id)

    def _to_proto(self, request: CctvRequest) -> cctv_pb2.CctvRequest:
        return cctv_pb2.CctvRequest(
            request_id=request.request_id,
            wearer_id=request.wearer_id,
            ground=cctv_pb2.CctvGround.Value(f"CCTV_GROUND_{request.ground.value}"),
            government=request.government,
            entries=[
                cctv_pb2.CctvEntry(
                    step=cctv_pb2.CctvStep.Value(f"CCTV_STEP_{entry.step.value}"),
                    at=times.to_timestamp(entry.at_ms),
                    recorded_at=times.to_timestamp(entry.recorded_ms),
                    recorded_by=entry.recorded_by,
                    text=entry.text,
                )
                for entry in request.entries
            ],
            due_at=None if request.due_ms is None else times.to_timestamp(request.due_ms),
            overdue=request.is_overdue(self._clock.now_ms()),
        )
