"""Background work on the keys of the records: rewrap them with the current master key, and destroy them after the retention period."""

from __future__ import annotations

import asyncio
from functools import partial

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose
from services.common.rpc.errors import Unavailable
from services.registry.cases.service import CaseService
from services.registry.disclosure.domain import Deed
from services.registry.domain import Device, Tag
from services.registry.keys.store import KeyOwner
from services.registry.keys.vault import Vault
from services.registry.ledger.chain import Disclosure
from services.registry.records.kinds import DEVICES, PERSONS, TAGS, UNIT_TYPES, WEARERS, type_in
from services.registry.records.store import owner_of
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

KEYS_BATCH = 50
POLL_S = 60.0
"""How often due records are destroyed, seconds of wall time. A check scans all wearers, so it runs rarely."""
REGISTRY_IDENTITY = "spiffe://tandem/registry"
_LEGAL_BASIS = "TAG_16_2"


class KeyRetention:
    """Rewraps and destroys the keys of the records. A record without its key can't be decrypted (crypto-shredding)."""

    def __init__(self, transactions: Transactions, cases: CaseService, vault: Vault, *, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._vault = vault
        self._clock = clock

    async def run(self) -> None:
        """Rewrap all keys once, then destroy due keys until cancelled. Master keys change only with a restart."""
        wrapped = False
        while True:
            try:
                if not wrapped and not await self.rewrap_some():
                    wrapped = True
                    *unused, current = self._vault.rings
                    logger().info("keys_wrapped", current=current, unused=tuple(unused))
                if wrapped and not await self.destroy_some():
                    await asyncio.sleep(POLL_S)
            except Unavailable as error:
                await asyncio.sleep(error.retry_after_s)

    async def rewrap_some(self) -> bool:
        """Rewrap a batch of record keys with the current master key. If no key is left to rewrap, create keys
        for a batch of records without a key.

        Returns False if nothing was left to do.
        """
        async with self._transactions.open() as work:
            if await work.keys.rewrap(KEYS_BATCH):
                return True
            return await work.records.complete_keys(KEYS_BATCH, self._clock.now_ms())

    async def destroy_some(self) -> bool:
        """Destroy a batch of due records, with all data that only they needed; false if none was left.

        A backup still holds the wrapped key of a destroyed record. So the record stays readable in the backup until the master key
        is rotated and the older master key is destroyed.
        """
        now_ms = self._clock.now_ms()
        async with self._transactions.open() as work:
            destroyed = await work.destruction.destroy_due(now_ms, KEYS_BATCH)
            await work.ledger.append(_row(record, now_ms) for record in destroyed)
            await work.change(partial(self._revoke_routes, destroyed=destroyed))
            await work.destruction.drop_devices(destroyed)  # after the revocation, which reads them
        for record in destroyed:
            logger().info("record_destroyed", kind=record.table, record_id=record.record_id)
        return bool(destroyed)

    def _revoke_routes(self, working: WorkingSet, destroyed: list[KeyOwner]) -> None:
        """Send the routes of the tags and devices of destroyed wearers and persons, and of destroyed units."""
        wearers = [owner.record_id for owner in destroyed if owner.table == WEARERS.table.name]
        persons = [owner.record_id for owner in destroyed if owner.table == PERSONS.table.name]
        devices: list[Tag | Device] = [
            *working.records.owned(TAGS, wearers),
            *working.records.owned(DEVICES, persons),
        ]
        unit_tables = {kind.table.name for kind in UNIT_TYPES}
        unit_ids = [owner.record_id for owner in destroyed if owner.table in unit_tables]
        if not devices and not unit_ids:
            return
        effects = self._cases.begin_routes(working, devices, unit_ids)
        for unit_id in unit_ids:
            effects.resend_route(unit_id, revoked=True)
        for owner in destroyed:
            for device in devices:
                if owner_of(device) == owner:
                    effects.send_route(device)
        self._cases.apply(working, effects)


def _row(destroyed: KeyOwner, now_ms: int) -> Disclosure:
    return Disclosure(
        disclosure_id=ids.hash_id("destroyed", destroyed.table, destroyed.record_id, now_ms),
        at_ms=now_ms,
        deed=Deed.DESTROYED.value,
        who=REGISTRY_IDENTITY,
        legal_basis=_LEGAL_BASIS,
        purpose=Purpose.RETENTION.value,
        reference="",
        record_kind=type_in(destroyed.table).required_ledger_kind.value,
        record_id=destroyed.record_id,
        order_id="",
        recipient="",
        expires_at_ms=0,
        positions=None,
    )
