"""Keys that encrypt the records: create and rewrap them, and ask which records have ended."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from services.registry.keys.tables import data_keys
from services.registry.keys.vault import DataKey, Vault
from services.registry.repository import Repository


class KeyOwner(NamedTuple):
    """Row with encrypted personal data, which has a key of its own."""

    table: str
    record_id: str

    @property
    def text(self) -> str:
        """The owner as text: the key of the row in data_keys, and authenticated with the encrypted data."""
        return f"{self.table}/{self.record_id}"

    @classmethod
    def parse(cls, text: str) -> KeyOwner:
        """The owner from its stored text."""
        table, _, record_id = text.partition("/")
        return cls(table, record_id)


class KeyRepository(Repository):
    """The keys of the records as one transaction sees them."""

    def __init__(self, connection: AsyncConnection, vault: Vault) -> None:
        super().__init__(connection)
        self._vault = vault

    async def make(self, owner: KeyOwner, destroy_at_ms: int | None = None) -> DataKey:
        """Create a key for a record and replace its previous key, so that older copies of the record can't be decrypted."""
        key = self._vault.make_key(owner.text)
        row = {"owner": owner.text, "ring": key.ring, "wrapped": key.wrapped}
        await self._upsert(data_keys, [{**row, "destroy_at_ms": destroy_at_ms, "destroyed_at_ms": None}])
        return key

    async def rewrap(self, limit: int) -> bool:
        """Rewrap a batch of keys with the current master key; false if none was left."""
        old = sa.and_(data_keys.c.ring != self._vault.current, data_keys.c.destroyed_at_ms.is_(None))
        rows = await self._rows(sa.select(data_keys).where(old).limit(limit))
        rewrapped = [(row.owner, self._vault.rewrap(row.owner, DataKey(row.ring, row.wrapped))) for row in rows]
        await self._write(
            _REWRAP, [{"of": owner, "ring": key.ring, "wrapped": key.wrapped} for owner, key in rewrapped]
        )
        return bool(rows)

    async def lacking(self) -> frozenset[str]:
        """Ids of master keys that wrap stored keys but are missing from the key ring."""
        used = sa.select(data_keys.c.ring).where(data_keys.c.destroyed_at_ms.is_(None)).distinct()
        return frozenset(row.ring for row in await self._rows(used)) - set(self._vault.rings)

    async def ended(self, owners: Collection[KeyOwner]) -> frozenset[KeyOwner]:
        """The owners in `owners` that have ended or were destroyed."""
        if not owners:
            return frozenset()
        over = sa.or_(data_keys.c.destroy_at_ms.is_not(None), data_keys.c.destroyed_at_ms.is_not(None))
        mine = data_keys.c.owner.in_([owner.text for owner in owners])
        return frozenset(
            KeyOwner.parse(row.owner) for row in await self._rows(sa.select(data_keys.c.owner).where(mine, over))
        )


_REWRAP = sa.update(data_keys).where(data_keys.c.owner == sa.bindparam("of"))
