"""Background work on the keys of the records: rewrap them with the current master key, and destroy them after the retention period."""

from __future__ import annotations

import asyncio

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc.errors import Unavailable
from services.registry.disclosure.domain import Deed
from services.registry.keys.store import DestroyedRecord
from services.registry.ledger.chain import Disclosure
from services.registry.records import tables
from services.registry.records.service import Registry

KEYS_BATCH = 50
POLL_S = 60.0
"""How often due records are destroyed, seconds of wall time. A check scans all wearers, so it runs rarely."""
REGISTRY_IDENTITY = "spiffe://tandem/registry"
_LEGAL_BASIS = "TAG_16_2"
_KINDS = {"wearers": RecordKind.WEARER, "protected_persons": RecordKind.PROTECTED_PERSON, "orders": RecordKind.ORDER}


class KeyRetention:
    """Rewraps and destroys the keys of the records. A record without its key can't be decrypted (crypto-shredding)."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    async def run(self) -> None:
        """Rewrap all keys once, then destroy due keys until cancelled. Master keys change only with a restart."""
        wrapped = False
        while True:
            try:
                if not wrapped and not await self.rewrap_some():
                    wrapped = True
                    logger().info("keys_wrapped", current=self._registry.rings[-1], unused=self._registry.rings[:-1])
                if wrapped and not await self.destroy_some():
                    await asyncio.sleep(POLL_S)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s)

    async def rewrap_some(self) -> bool:
        """Rewrap a batch of record keys with the current master key. If every key is wrapped with it, create keys for a batch of
        records that have none.

        Returns False if nothing was left to do.
        """
        async with self._registry.transaction() as records:
            return await records.keys.rewrap(KEYS_BATCH) or await records.complete_keys(KEYS_BATCH)

    async def destroy_some(self) -> bool:
        """Destroy a batch of due records, with all data that only they needed; false if none was left.

        A backup still holds the wrapped key of a destroyed record. So the record stays readable in the backup until the master key
        is rotated and the older master key is destroyed.
        """
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            destroyed = await records.keys.destroy_due(now_ms, KEYS_BATCH)
            for record in destroyed:
                await records.ledger.append(_row(record, now_ms))
                if record.table == tables.wearers.name:
                    await self._registry.cases.send_tag_routes_of(records, record.record_id)
                elif record.table == tables.protected_persons.name:
                    await self._registry.cases.send_routes_of(records, [record.record_id])
        for record in destroyed:
            logger().info("record_destroyed", kind=record.table, record_id=record.record_id)
        return bool(destroyed)


def _row(destroyed: DestroyedRecord, now_ms: int) -> Disclosure:
    return Disclosure(
        disclosure_id=ids.hash_id("destroyed", destroyed.table, destroyed.record_id, now_ms),
        at_ms=now_ms,
        deed=Deed.DESTROYED.value,
        who=REGISTRY_IDENTITY,
        legal_basis=_LEGAL_BASIS,
        purpose=Purpose.RETENTION.value,
        reference="",
        record_kind=_KINDS[destroyed.table].value,
        record_id=destroyed.record_id,
        order_id="",
        recipient="",
        expires_at_ms=0,
        positions=None,
    )
