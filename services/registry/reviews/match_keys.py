"""Hashed match keys, by which a record finds the records that may describe the same person."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.keys.vault import Vault
from services.registry.matching.similarity import Side
from services.registry.repository import Repository
from services.registry.reviews.tables import match_keys


class MatchKeyRepository(Repository):
    """The match keys of the records as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def put(self, side: Side, record_id: str, keys: Iterable[str], *, new: bool) -> None:
        """Store the match keys of a record. Replaces its older keys unless the record is `new`."""
        if not new:
            mine = sa.and_(match_keys.c.side == side.value, match_keys.c.record_id == record_id)
            await self._connection.execute(sa.delete(match_keys).where(mine))
        rows = [{"side": side.value, "key_hash": hashed, "record_id": record_id} for hashed in self._hashed(keys)]
        await self._write(sa.insert(match_keys), rows)

    async def sharing(self, side: Side, keys: Iterable[str]) -> set[str]:
        """Ids of the records of a side that share at least one of these match keys."""
        wanted = sa.and_(match_keys.c.side == side.value, match_keys.c.key_hash.in_(self._hashed(keys)))
        return {row.record_id for row in await self._rows(sa.select(match_keys.c.record_id).where(wanted).distinct())}

    def _hashed(self, keys: Iterable[str]) -> list[bytes]:
        return sorted({self._vault.index(f"match key {key}") for key in keys})
