"""gRPC servicer of the DeviceTokenService: issues and revokes the tokens of devices."""

from __future__ import annotations

from typing import Any

import grpc.aio

from services.common import fields
from services.common.rpc import server
from services.common.rpc.errors import InvalidField
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.device_tokens.domain import MAX_KEEP_OLDER_S
from services.registry.device_tokens.service import DeviceTokens
from services.registry.reconciliation.domain import Agency
from tandem.registry.v1 import device_token_pb2, device_token_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class DeviceTokenServicer(device_token_pb2_grpc.DeviceTokenServiceServicer):
    """Parses requests of the DeviceTokenService, runs the commands and builds the responses."""

    def __init__(self, tokens: DeviceTokens) -> None:
        self._tokens = tokens

    async def IssueDeviceToken(
        self, request: device_token_pb2.IssueDeviceTokenRequest, context: _Context
    ) -> device_token_pb2.IssueDeviceTokenResponse:
        device_id = fields.required_id("device_id", request.device_id)
        if request.keep_older_for_s > MAX_KEEP_OLDER_S:
            raise InvalidField("keep_older_for_s", f"must be from 0 to {MAX_KEEP_OLDER_S}")
        token = await completed(self._tokens.issue(_agency(), device_id, request.keep_older_for_s))
        return device_token_pb2.IssueDeviceTokenResponse(token=token)

    async def RevokeDeviceTokens(
        self, request: device_token_pb2.RevokeDeviceTokensRequest, context: _Context
    ) -> device_token_pb2.RevokeDeviceTokensResponse:
        device_id = fields.required_id("device_id", request.device_id)
        revoked = await completed(self._tokens.revoke(_agency(), device_id))
        return device_token_pb2.RevokeDeviceTokensResponse(revoked=revoked)


def _agency() -> Agency:
    return Agency.MOJ if server.caller().role == Role.ROLE_MOJ_RECORDS else Agency.NPA
