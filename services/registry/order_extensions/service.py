"""Extends orders, each in one transaction that reads the stored order, extends it and renews its joint cases."""

from __future__ import annotations

from services.registry.domain import Order
from services.registry.order_extensions.domain import OrderExtension, extended
from services.registry.records import stored_versions
from services.registry.records.kinds import ORDERS
from services.registry.records.police import PoliceService
from services.registry.records.prepared import prepare
from services.registry.records.versions import PutOutcome
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet


class OrderExtensions:
    """Extends orders on behalf of the police's clerks."""

    def __init__(self, transactions: Transactions, police: PoliceService) -> None:
        self._transactions = transactions
        self._police = police

    async def extend(self, extension: OrderExtension) -> tuple[PutOutcome, Order]:
        """Stores an extension. Returns the outcome and the extended order.

        Raises NotFound if the order is unknown or destroyed, FailedPrecondition, InvalidField and Conflict.
        """

        def apply(working: WorkingSet) -> tuple[PutOutcome, Order]:
            found = working.records.find(ORDERS, extension.order_id)
            _, before = stored_versions.opened(found, "order_id: no such order")
            order = extended(before, extension)
            outcome, _ = self._police.apply_order(working, prepare(order, working.vault))
            return outcome, order

        return await self._transactions.change(apply)
