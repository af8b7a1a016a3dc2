"""Reads the grounds of an order for the Ministry's notices."""

from __future__ import annotations

from services.common.clock import MeshClock
from services.common.rpc.errors import NotFound
from services.registry.notices.domain import OrderGround, order_ground
from services.registry.records.kinds import ORDERS, TAGS
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet


class NoticeGrounds:
    """Answers on which grounds the Ministry may notify the persons whom an order protects."""

    def __init__(self, transactions: Transactions, clock: MeshClock) -> None:
        self._transactions = transactions
        self._clock = clock

    async def of_order(self, order_id: str) -> list[OrderGround]:
        """The grounds of an order, one for each wearer against whom it is enforced, in the order of matching. Raises NotFound."""
        now_ms = self._clock.now_ms()

        def work(working: WorkingSet) -> list[OrderGround]:
            order = working.records.opened(ORDERS, [order_id]).get(order_id)
            if order is None:
                raise NotFound("order_id: no such order")
            cases = [case for case in working.cases.of_orders([order_id]) if case.withdrawn_at_ms is None]
            tags = working.records.owned(TAGS, {case.wearer_id for case in cases})
            return [order_ground(case.case_id, order, case.wearer_id, tags=tags, now_ms=now_ms) for case in cases]

        vault = self._transactions.vault
        async with self._transactions.database.reading() as connection:
            return await connection.run_sync(lambda reading: work(WorkingSet(reading, vault)))
