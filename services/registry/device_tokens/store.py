"""Reads and writes of the devices' tokens within one transaction."""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.device_tokens.domain import DeviceToken
from services.registry.records.tables import device_tokens


class TokenRecords:
    """The devices' tokens as one transaction sees them."""

    def __init__(self, connection: AsyncConnection) -> None:
        self._connection = connection

    async def of(self, device_id: str) -> list[DeviceToken]:
        """Tokens of a device, oldest first, including expired ones."""
        mine = sa.select(device_tokens).where(device_tokens.c.device_id == device_id).order_by(device_tokens.c.id)
        return [DeviceToken(row.sha256, row.valid_until_ms) for row in await self._connection.execute(mine)]

    async def put(self, device_id: str, tokens: Sequence[DeviceToken]) -> None:
        """Replace all tokens of a device with these tokens, oldest first."""
        await self._connection.execute(sa.delete(device_tokens).where(device_tokens.c.device_id == device_id))
        rows = [
            {"device_id": device_id, "sha256": token.sha256, "valid_until_ms": token.valid_until_ms} for token in tokens
        ]
        if rows:
            await self._connection.execute(sa.insert(device_tokens), rows)
