"""Daily renewal of routes and joint cases, because the log keeps its entries only for days."""

from __future__ import annotations

from functools import partial

from services.common.clock import MeshClock
from services.registry.cases.service import DAY_MS, CaseService
from services.registry.domain import RoutedDevice
from services.registry.outbox.store import OutboxMessage
from services.registry.records.kinds import DEVICE_TYPES, UNIT_TYPES
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet

RENEWED_BATCH = 50


class Renewal:
    """Enqueues all routes and valid joint cases once on each day of mesh time, so that the log always holds them."""

    def __init__(self, transactions: Transactions, cases: CaseService, clock: MeshClock) -> None:
        self._transactions = transactions
        self._cases = cases
        self._clock = clock

    async def renew_some(self) -> bool:
        """Enqueue a batch of routes and cases that weren't sent on this day of mesh time; false if none was left."""
        now_ms = self._clock.now_ms()
        day = now_ms // DAY_MS
        # `open` is enough, since nobody needs the wake-up: the relay, the only caller, reads the outbox next.
        async with self._transactions.open() as work:
            device_ids = await work.routes.not_sent_on(day, RENEWED_BATCH)
            if device_ids:
                await work.change(partial(self._renew_routes, device_ids=device_ids))
                return True
            snapshots = await work.cases.not_sent_on(day, now_ms - DAY_MS, RENEWED_BATCH)
            await work.cases.mark_sent([snapshot.case_id for snapshot in snapshots], day)
            await work.outbox.enqueue(
                OutboxMessage(
                    self._cases.subject(snapshot.wearer_id),
                    f"{snapshot.case_id}:{snapshot.version}:{day}",
                    snapshot.entry,
                )
                for snapshot in snapshots
            )
            await work.outbox.drop_sent_before(now_ms - DAY_MS)
        return bool(snapshots)

    def _renew_routes(self, working: WorkingSet, device_ids: list[str]) -> None:
        found: dict[str, RoutedDevice] = {}
        for kind in (*DEVICE_TYPES, *UNIT_TYPES):
            found |= working.records.opened(kind, [id_ for id_ in device_ids if id_ not in found])
        destroyed = [id_ for id_ in device_ids if id_ not in found]
        effects = self._cases.begin_routes(working, list(found.values()), destroyed)
        for device_id in device_ids:
            if device_id in found:
                effects.send_route(found[device_id], renew=True)
            else:
                effects.resend_route(device_id)
        self._cases.apply(working, effects)
