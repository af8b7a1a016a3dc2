"""Commands that issue and revoke the tokens of a device, each in one transaction with the new route of the device."""

from __future__ import annotations

import hashlib
import secrets
from functools import partial

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound, PermissionDenied
from services.registry.device_tokens import domain
from services.registry.domain import Device, Tag
from services.registry.reconciliation.domain import Agency
from services.registry.records.service import Registry
from services.registry.records.store import Records

TOKEN_BYTES = 32


class DeviceTokens:
    """Issues and revokes the tokens with which devices report directly."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    async def issue(self, agency: Agency, device_id: str, keep_older_for_s: int) -> str:
        """Issue a token, of which only the hash is stored. Raises NotFound, PermissionDenied, FailedPrecondition (ended)."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        hashed = hashlib.sha256(token.encode()).digest()
        async with self._registry.changing() as records:
            if await self._registry.cases.has_ended(records, await _device_of(records, agency, device_id)):
                raise FailedPrecondition("device_id: this device is out of service, so it can't get a token")
            older = await records.tokens.of(device_id)
            tokens = domain.rotated(older, hashed, self._clock.now_ms(), keep_older_for_s=keep_older_for_s)
            await records.tokens.put(device_id, tokens)
            await self._registry.cases.send_route(records, device_id)
            records.after_commit.append(partial(logger().info, "device_token_issued", device_id=device_id))
        return token

    async def revoke(self, agency: Agency, device_id: str) -> int:
        """Revoke all tokens of a device; returns how many were valid. Raises NotFound, PermissionDenied."""
        async with self._registry.changing() as records:
            await _device_of(records, agency, device_id)
            valid = domain.valid_at(await records.tokens.of(device_id), self._clock.now_ms())
            await records.tokens.put(device_id, [])
            await self._registry.cases.send_route(records, device_id)
            records.after_commit.append(partial(logger().info, "device_tokens_revoked", device_id=device_id))
        return len(valid)


async def _device_of(records: Records, agency: Agency, device_id: str) -> Tag | Device:
    tag, device = await records.tag(device_id), await records.device(device_id)
    mine, other = (tag, device) if agency is Agency.MOJ else (device, tag)
    if mine is None:
        if other:
            raise PermissionDenied("device_id: belongs to the other agency")
        raise NotFound("device_id: no such device")
    return mine
