"""The DeviceTokenService of the registry process: permissions, rejections, and that no token is stored. On both engines."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.common.rpc import server
from tandem.registry.v1 import registry_pb2
from tandem.registry.v1.device_token_pb2 import IssueDeviceTokenRequest, RevokeDeviceTokensRequest
from tests.support.registry import records
from tests.support.registry.registry import MOJ, NPA, SECRET, WITHIN_S, Client, RegistryMesh

Code = grpc.StatusCode
MAX_S = 7 * 86_400


@pytest.fixture
async def client(mesh: RegistryMesh) -> AsyncIterator[Client]:
    async with mesh.connected() as connected:
        await connected.put(records.wearer(), records.tag(), records.person(), records.device())
        yield connected


async def issue(client: Client, who: str, device_id: str, keep_older_for_s: int = 0) -> str:
    request = IssueDeviceTokenRequest(device_id=device_id, keep_older_for_s=keep_older_for_s)
    metadata = server.bearer(who, SECRET)
    return str((await client.device_tokens.IssueDeviceToken(request, metadata=metadata, timeout=WITHIN_S)).token)


async def revoke(client: Client, who: str, device_id: str) -> int:
    request, metadata = RevokeDeviceTokensRequest(device_id=device_id), server.bearer(who, SECRET)
    return int((await client.device_tokens.RevokeDeviceTokens(request, metadata=metadata, timeout=WITHIN_S)).revoked)


async def code_of(call: Any) -> grpc.StatusCode:
    """Status code with which a call is rejected."""
    with pytest.raises(grpc.aio.AioRpcError) as refusal:
        await call
    return refusal.value.code()


async def test_the_route_has_the_hash_of_a_token_and_the_token_is_stored_nowhere(client: Client) -> None:
    for who, device_id in ((MOJ, "tag-1"), (NPA, "app-1")):
        tokens = [await issue(client, who, device_id, MAX_S) for _ in range(2)]
        route = await client.route(device_id)
        assert [token.sha256 for token in route.tokens] == [hashlib.sha256(token.encode()).digest() for token in tokens]
        assert route.tokens[0].valid_until_ms > 0 and route.tokens[1].valid_until_ms == 0
        held = client.mesh.held()
        assert b'"device_token_issued"' in held and not any(token.encode() in held for token in tokens)
        assert await revoke(client, who, device_id) == 2
        assert not (await client.route(device_id)).tokens


@pytest.mark.parametrize(
    "who",
    [
        "spiffe://vendor/test",
        "spiffe://moj/desk/seoul",
        "spiffe://npa/desk/seoul",
        "spiffe://tandem/operator/one",
        "spiffe://tandem/reviewer/one",
        "spiffe://tandem/warning-gateway",
    ],
)
async def test_only_the_records_systems_may_issue_and_revoke_tokens(client: Client, who: str) -> None:
    for device_id in ("tag-1", "app-1"):
        assert await code_of(issue(client, who, device_id)) is Code.PERMISSION_DENIED
        assert await code_of(revoke(client, who, device_id)) is Code.PERMISSION_DENIED


async def test_invalid_requests_are_rejected_with_their_status(client: Client) -> None:
    await client.put(records.tag("tag-ended"))
    off = registry_pb2.EndTagRequest(
        device_id="tag-ended", source_version=2, removed_at=Timestamp(seconds=1_700_000_000)
    )
    await client.stub.EndTag(off, metadata=server.bearer(MOJ, SECRET))
    for call, code in (
        (issue(client, NPA, "tag-1"), Code.PERMISSION_DENIED),
        (revoke(client, MOJ, "app-1"), Code.PERMISSION_DENIED),
        (issue(client, MOJ, "unknown"), Code.NOT_FOUND),
        (revoke(client, NPA, "unknown"), Code.NOT_FOUND),
        (issue(client, MOJ, "tag-ended"), Code.FAILED_PRECONDITION),
        (issue(client, MOJ, ""), Code.INVALID_ARGUMENT),
        (revoke(client, MOJ, "a b"), Code.INVALID_ARGUMENT),
        (issue(client, MOJ, "tag-1", MAX_S + 1), Code.INVALID_ARGUMENT),
    ):
        assert await code_of(call) is code
