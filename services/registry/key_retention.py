"""What goes on by itself with keys: those of an older ring are wrapped anew, and those whose time is over are destroyed."""

from __future__ import annotations

import asyncio

from services.common import ids
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc.errors import Unavailable
from services.registry import tables
from services.registry.chain import Disclosure
from services.registry.disclosure import Deed
from services.registry.handlers import Registry
from services.registry.store_keys import Destroyed

AT_ONCE = 50
POLL_S = 60.0
"""How long what is over may wait for its end; it looks at every wearer, so not more often."""
WHO = "spiffe://tandem/registry"
_LEGAL_BASIS = "TAG_16_2"
_KINDS = {"wearers": RecordKind.WEARER, "protected_persons": RecordKind.PROTECTED_PERSON, "orders": RecordKind.ORDER}


class Custodian:
    """Keeps the keys of the records."""

    def __init__(self, registry: Registry, clock: MeshClock) -> None:
        self._registry = registry
        self._clock = clock

    async def run(self) -> None:
        """Works for ever: the ring is what it was at the start, so keys are wrapped anew once."""
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
        """Wraps some keys with the current one of the ring, and gives keys to records of before; false where all have it."""
        async with self._registry.transaction() as records:
            return await records.keys.rewrap(AT_ONCE) or await records.complete_keys(AT_ONCE)

    async def destroy_some(self) -> bool:
        """Destroys some of the orders whose time is over, with all that only they needed; false where none was left.

        Without its key nothing opens a record, in a backup neither, once the ring was rotated and its older key destroyed.
        """
        now_ms = self._clock.now_ms()
        async with self._registry.transaction() as records:
            destroyed = await records.keys.destroy_due(now_ms, AT_ONCE)
            for one in destroyed:
                await records.ledger.append(_row(one, now_ms))
                if one.table == tables.wearers.name:
                    await self._registry.cases.send_tag_routes_of(records, one.record_id)
                elif one.table == tables.protected_persons.name:
                    await self._registry.cases.send_routes_of(records, [one.record_id])
        for one in destroyed:
            logger().info("record_destroyed", kind=one.table, record_id=one.record_id)
        return bool(destroyed)


def _row(destroyed: Destroyed, now_ms: int) -> Disclosure:
    return Disclosure(
        disclosure_id=ids.hash_id("destroyed", destroyed.table, destroyed.record_id, now_ms),
        at_ms=now_ms,
        deed=Deed.DESTROYED.value,
        who=WHO,
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
