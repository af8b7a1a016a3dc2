"""gRPC servicer of the FindingService."""

from __future__ import annotations

from datetime import date
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.rpc import server
from services.common.rpc.errors import InvalidField
from services.common.running import completed
from services.registry.findings.domain import Closing, ReviewFinding
from services.registry.findings.service import ReviewFindings
from services.registry.records.translate import required_text
from tandem.registry.v1 import finding_pb2, finding_pb2_grpc

TEXT_MAX_CHARS = 500
OWNER_MAX_CHARS = 100
LATEST_YEAR = 2100
"""Last year in which a finding may be due. The end of a day of the year 9999 is no time that Python can hold."""
_Context = grpc.aio.ServicerContext[Any, Any]


class FindingServicer(finding_pb2_grpc.FindingServiceServicer):
    """Parses requests of the FindingService, runs the commands and builds the responses."""

    def __init__(self, findings: ReviewFindings, clock: MeshClock) -> None:
        self._findings, self._clock = findings, clock

    async def PutFinding(
        self, request: finding_pb2.PutFindingRequest, context: _Context
    ) -> finding_pb2.PutFindingResponse:
        finding = ReviewFinding(
            finding_id=fields.required_id("finding_id", request.finding_id),
            incident_id=fields.required_id("incident_id", request.incident_id),
            text=required_text("text", request.text, TEXT_MAX_CHARS),
            owner=required_text("owner", request.owner, OWNER_MAX_CHARS),
            due_on=_day("due_on", request.due_on),
            made_by=server.caller().spiffe_id,
            made_ms=self._clock.now_ms(),
        )
        stored = await completed(self._findings.put(finding))
        return finding_pb2.PutFindingResponse(finding=self._to_proto(stored))

    async def CloseFinding(
        self, request: finding_pb2.CloseFindingRequest, context: _Context
    ) -> finding_pb2.CloseFindingResponse:
        finding_id = fields.required_id("finding_id", request.finding_id)
        outcome = required_text("outcome", request.outcome, TEXT_MAX_CHARS)
        closing = Closing(self._clock.now_ms(), server.caller().spiffe_id, outcome)
        stored = await completed(self._findings.close(finding_id, closing))
        return finding_pb2.CloseFindingResponse(finding=self._to_proto(stored))

    async def ListFindings(
        self, request: finding_pb2.ListFindingsRequest, context: _Context
    ) -> finding_pb2.ListFindingsResponse:
        incident_id = fields.required_id("incident_id", request.incident_id) if request.incident_id else ""
        found, is_cut = await self._findings.listed(incident_id, only_open=request.only_open)
        return finding_pb2.ListFindingsResponse(findings=map(self._to_proto, found), is_cut=is_cut)

    def _to_proto(self, finding: ReviewFinding) -> finding_pb2.ReviewFinding:
        closing = finding.closing
        return finding_pb2.ReviewFinding(
            finding_id=finding.finding_id,
            incident_id=finding.incident_id,
            text=finding.text,
            owner=finding.owner,
            due_on=finding.due_on.isoformat(),
            made_by=finding.made_by,
            made_at=times.to_timestamp(finding.made_ms),
            closed_by=closing.by if closing else "",
            closed_at=times.to_timestamp(closing.at_ms) if closing else None,
            outcome=closing.outcome if closing else "",
            overdue=finding.is_overdue(self._clock.now_ms()),
        )


def _day(field: str, text: str) -> date:
    """A day such as 2027-03-01, until the end of LATEST_YEAR. Raises InvalidField."""
    try:
        day = date.fromisoformat(text)
    except ValueError:
        day = None
    if day is None or day.isoformat() != text or day.year > LATEST_YEAR:
        raise InvalidField(field, f"must be a day until {LATEST_YEAR}-12-31 (example: 2027-03-01)")
    return day
