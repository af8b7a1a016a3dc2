"""What happens when a device is given a token, or its tokens are revoked: the route that says so is the same transaction."""

from __future__ import annotations

import hashlib
import secrets
from functools import partial

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.rpc.errors import FailedPrecondition, NotFound, PermissionDenied
from services.registry import device_token
from services.registry.domain import Device, Tag
from services.registry.handlers import Registry
from services.registry.reconcile import Agency
from services.registry.store import Records

TOKEN_BYTES = 32


class DeviceTokens:
    """Tokens with which devices report by themselves."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    async def issue(self, agency: Agency, device_id: str, keep_older_for_s: int) -> str:
        """A new token of a device, kept nowhere. Raises NotFound, PermissionDenied, FailedPrecondition (it has ended)."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        hashed = hashlib.sha256(token.encode()).digest()
        async with self._registry.changing() as records:
            if await self._registry.cases.has_ended(records, await _device_of(records, agency, device_id)):
                raise FailedPrecondition("device_id: is of a device that was taken out of service")
            older = await records.tokens.of(device_id)
            tokens = device_token.rotated(older, hashed, self._clock.now_ms(), keep_older_for_s)
            await records.tokens.put(device_id, tokens)
            await self._registry.cases.send_route(records, device_id)
            records.afterwards.append(partial(logger().info, "device_token_issued", device_id=device_id))
        return token

    async def revoke(self, agency: Agency, device_id: str) -> int:
        """Revokes all tokens of a device; returns how many were good. Raises NotFound, PermissionDenied."""
        async with self._registry.changing() as records:
            await _device_of(records, agency, device_id)
            good = device_token.good_at(await records.tokens.of(device_id), self._clock.now_ms())
            await records.tokens.put(device_id, [])
            await self._registry.cases.send_route(records, device_id)
            records.afterwards.append(partial(logger().info, "device_tokens_revoked", device_id=device_id))
        return len(good)


async def _device_of(records: Records, agency: Agency, device_id: str) -> Tag | Device:
    tag, device = await records.tag(device_id), await records.device(device_id)
    mine, other = (tag, device) if agency is Agency.MOJ else (device, tag)
    if mine is None:
        raise PermissionDenied("device_id: is the other agency's") if other else NotFound("device_id: no such device")
    return mine
