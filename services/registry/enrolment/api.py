"""gRPC servicer of the EnrolmentService: codes for protected persons' phones."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.rpc import server
from services.common.rpc.errors import InvalidField
from services.common.running import completed
from services.registry.enrolment import domain
from services.registry.enrolment.service import Enrolments
from tandem.registry.v1 import enrolment_pb2, enrolment_pb2_grpc

MAX_TOKEN_LENGTH = 64

_Context = grpc.aio.ServicerContext[Any, Any]


class EnrolmentServicer(enrolment_pb2_grpc.EnrolmentServiceServicer):
    """Parses requests of the EnrolmentService, runs the commands and builds the responses."""

    def __init__(self, enrolments: Enrolments) -> None:
        self._enrolments = enrolments

    async def IssueEnrolmentCode(
        self, request: enrolment_pb2.IssueEnrolmentCodeRequest, context: _Context
    ) -> enrolment_pb2.IssueEnrolmentCodeResponse:
        device_id = fields.required_id("device_id", request.device_id)
        valid_for_s = domain.valid_for_s(request.valid_for_s)
        issuing = self._enrolments.issue(device_id, valid_for_s, by=server.caller().spiffe_id)
        issued = await completed(issuing)
        return enrolment_pb2.IssueEnrolmentCodeResponse(
            code=issued.code, expires_at=times.to_timestamp(issued.expires_ms)
        )

    async def Enrol(self, request: enrolment_pb2.EnrolRequest, context: _Context) -> enrolment_pb2.EnrolResponse:
        enrolled = await completed(self._enrolments.enrol(domain.parse(request.code)))
        return enrolment_pb2.EnrolResponse(token=enrolled.token, **enrolled.phone._asdict())

    async def FindPhone(
        self, request: enrolment_pb2.FindPhoneRequest, context: _Context
    ) -> enrolment_pb2.FindPhoneResponse:
        if not 0 < len(request.token) <= MAX_TOKEN_LENGTH:
            raise InvalidField("token", f"must be 1 to {MAX_TOKEN_LENGTH} characters")
        return enrolment_pb2.FindPhoneResponse(**(await self._enrolments.find(request.token))._asdict())
