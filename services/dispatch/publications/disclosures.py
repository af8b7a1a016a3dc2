"""Disclosures that a leg made: published before their answer is sent, kept for a day, and republished if DISCLOSURES loses them.

The registry copies each disclosure into the ledger within moments. A stream that went back may have lost a disclosure before that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import sqlalchemy as sa

from services.common.messaging import flow, lost_publications
from services.common.messaging.bus import Bus
from services.common.messaging.lost_publications import SoleMessage
from services.common.retrying import retried
from services.common.rpc.errors import Unavailable
from services.dispatch.domain.leg import Leg
from services.dispatch.leg.store import Store
from services.dispatch.leg.tables import disclosures
from tandem.common.v1 import ledger_pb2

RECORDED_WITHIN_S = 4.0
"""Time limit for storing the disclosures of one call, seconds."""
RETENTION_MS = 86_400_000
"""Retention of a disclosure in the leg's database, milliseconds of mesh time."""
_NEWEST = (
    sa.select(disclosures)
    .order_by(disclosures.c.at_ms.desc(), disclosures.c.disclosure_id)
    .offset(sa.bindparam("skipped"))
    .limit(sa.bindparam("most"))
)


class LegDisclosures:
    """Stores the disclosures that one leg made, and republishes lost ones."""

    def __init__(self, leg: Leg, store: Store) -> None:
        self._leg, self._store = leg, store

    async def record(self, bus: Bus, made: Sequence[ledger_pb2.Disclosure]) -> None:
        """Publishes and stores disclosures before their answer is sent. Raises StoreFull or Unavailable if one can't be stored."""
        try:
            async with asyncio.timeout(RECORDED_WITHIN_S):
                await asyncio.gather(*(self._publish(bus, disclosure) for disclosure in made))
                await self.keep(made)
        except TimeoutError:
            raise Unavailable(
                f"the disclosure can't be recorded: not stored within {RECORDED_WITHIN_S:.0f} s"
            ) from None

    async def _publish(self, bus: Bus, disclosure: ledger_pb2.Disclosure) -> None:
        id_ = disclosure.disclosure_id
        subject = flow.disclosure_subject(flow.leg_user(self._leg), id_)
        await bus.publish(subject, disclosure.SerializeToString(), msg_id=id_)

    async def keep(self, made: Sequence[ledger_pb2.Disclosure]) -> None:
        """Stores disclosures that were just published. Raises Unavailable."""
        if not made:
            return
        rows = [
            {
                "disclosure_id": disclosure.disclosure_id,
                "payload": disclosure.SerializeToString(),
                "at_ms": disclosure.at_ms,
            }
            for disclosure in made
        ]

        def work(connection: sa.Connection) -> None:
            connection.execute(sa.delete(disclosures).where(disclosures.c.at_ms < made[0].at_ms - RETENTION_MS))
            ids = [disclosure.disclosure_id for disclosure in made]
            connection.execute(sa.delete(disclosures).where(disclosures.c.disclosure_id.in_(ids)))
            connection.execute(sa.insert(disclosures), rows)

        await self._store.transaction(work)

    async def run(self, bus: Bus) -> None:
        """Republishes disclosures that DISCLOSURES has lost, until cancelled. A full stream or disk doesn't end the leg."""
        await retried(lambda: lost_publications.keep_restored(bus, flow.DISCLOSURES.name, self._page))

    async def _page(self, skipped: int, limit: int) -> list[SoleMessage]:
        part = {"skipped": skipped, "most": limit}
        rows = await self._store.transaction(lambda connection: connection.execute(_NEWEST, part).all())
        return [
            SoleMessage(
                flow.disclosure_subject(flow.leg_user(self._leg), row.disclosure_id), row.payload, row.disclosure_id
            )
            for row in rows
        ]
