"""Commands that issue and revoke the tokens of a device, each in one transaction with the new route of the device."""

from __future__ import annotations

import hashlib
import logging
import secrets
from collections.abc import Callable

from services.common.clock import MeshClock
from services.common.rpc.errors import FailedPrecondition, NotFound, PermissionDenied
from services.registry.cases.effects import Effects
from services.registry.cases.service import CaseService
from services.registry.device_tokens.domain import DeviceToken, rotated, valid_at
from services.registry.domain import Device, Tag
from services.registry.reconciliation.domain import Agency
from services.registry.records.kinds import DEVICES, TAGS
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

TOKEN_BYTES = 32


class DeviceTokens:
    """Issues and revokes the tokens with which devices report directly."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    async def issue(self, agency: Agency, device_id: str, keep_older_for_s: int) -> str:
        """Issue a token. Only its hash is stored.

        Raises NotFound, PermissionDenied if the device belongs to the other agency, FailedPrecondition if it is out of service.
        """
        token, command = self.issuing(agency, device_id, keep_older_for_s)
        await self._transactions.change(command)
        return token

    def issuing(
        self, agency: Agency, device_id: str, keep_older_for_s: int
    ) -> tuple[str, Callable[[WorkingSet], None]]:
        """A new token, and the command that issues it as a part of a transaction. It raises the errors of `issue`."""
        token = secrets.token_urlsafe(TOKEN_BYTES)
        hashed = hashlib.sha256(token.encode()).digest()

        def apply(working: WorkingSet) -> None:
            device = device_of(working, agency, device_id)
            effects = self._cases.begin_routes(working, [device])
            if effects.is_revoked(device):
                raise FailedPrecondition("device_id: this device is out of service, so it can't get a token")
            older = effects.found.tokens.get(device_id, [])
            tokens = rotated(older, hashed, self._clock.now_ms(), keep_older_for_s=keep_older_for_s)
            self._apply(working, effects, device, tokens=tokens, event="device_token_issued")

        return token, apply

    def is_in_service(self, working: WorkingSet, device: Tag | Device) -> bool:
        """Whether a device may get a token: neither its own record nor that of its wearer or person has ended."""
        return not self._cases.begin_routes(working, [device]).is_revoked(device)

    async def revoke(self, agency: Agency, device_id: str) -> int:
        """Revoke all tokens of a device; returns how many were valid. Raises NotFound, PermissionDenied."""

        def apply(working: WorkingSet) -> int:
            device = device_of(working, agency, device_id)
            effects = self._cases.begin_routes(working, [device])
            valid = valid_at(effects.found.tokens.get(device_id, []), self._clock.now_ms())
            self._apply(working, effects, device, tokens=[], event="device_tokens_revoked")
            return len(valid)

        return await self._transactions.change(apply)

    def _apply(
        self, working: WorkingSet, effects: Effects, device: Tag | Device, *, tokens: list[DeviceToken], event: str
    ) -> None:
        effects.tokens[device.device_id] = tokens
        effects.send_route(device)
        effects.log(logging.INFO, event, device_id=device.device_id)
        self._cases.apply(working, effects)


def device_of(working: WorkingSet, agency: Agency, device_id: str) -> Tag | Device:
    """An agency's tag or device. Raises NotFound, PermissionDenied if it belongs to the other agency."""
    tag, device = working.records.find(TAGS, device_id), working.records.find(DEVICES, device_id)
    mine, other = (tag, device) if agency is Agency.MOJ else (device, tag)
    record = mine.open() if mine else None
    if record is None:
        if other:
            raise PermissionDenied("device_id: belongs to the other agency")
        raise NotFound("device_id: no such device")
    return record
