"""Tokens of the devices in the database."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import sqlalchemy as sa

from services.registry.device_tokens.domain import DeviceToken
from services.registry.device_tokens.tables import device_tokens
from services.registry.repository import Repository


class DeviceTokenRepository(Repository):
    """The tokens of the devices as one transaction sees them."""

    async def of(self, device_ids: Collection[str]) -> dict[str, list[DeviceToken]]:
        """Tokens of these devices, oldest first, including expired ones, by device id. Devices without tokens are omitted."""
        if not device_ids:
            return {}
        mine = sa.select(device_tokens).where(device_tokens.c.device_id.in_(device_ids)).order_by(device_tokens.c.id)
        found: dict[str, list[DeviceToken]] = defaultdict(list)
        for row in await self._rows(mine):
            found[row.device_id].append(DeviceToken(row.sha256, row.valid_until_ms))
        return dict(found)

    async def put(self, tokens: Mapping[str, Sequence[DeviceToken]]) -> None:
        """Replace all tokens of devices with these tokens, oldest first, by device id."""
        if not tokens:
            return
        await self._connection.execute(sa.delete(device_tokens).where(device_tokens.c.device_id.in_(tokens)))
        rows = (
            {"device_id": device_id, "sha256": token.sha256, "valid_until_ms": token.valid_until_ms}
            for device_id, valid in tokens.items()
            for token in valid
        )
        await self._write(sa.insert(device_tokens), rows)
