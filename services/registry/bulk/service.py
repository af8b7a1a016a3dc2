"""Put records in bulk: each batch is one transaction, with the commands that single puts use."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias, assert_never

from services.common.rpc.errors import PermanentError
from services.registry.bulk.pace import BulkPace
from services.registry.bulk.prefetch import prefetch
from services.registry.domain import Device, Order, ProtectedPerson, Tag, Wearer
from services.registry.presence_units.domain import PersonUnit, WearerUnit
from services.registry.presence_units.service import PresenceUnits
from services.registry.records.kinds import Record
from services.registry.records.lifecycle import OrderStage
from services.registry.records.ministry import MinistryService
from services.registry.records.police import PoliceService
from services.registry.records.prepared import PreparedRecord
from services.registry.records.versions import PutOutcome
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet


@dataclass(frozen=True, slots=True)
class PutResult:
    """Result for a record that wasn't refused."""

    outcome: PutOutcome
    stage: OrderStage | None = None
    """Stage of an order; None for other records, and if nothing was stored."""


Result: TypeAlias = PutResult | PermanentError
"""Result for a record of a batch: the error if it was refused."""


class BulkService:
    """Puts batches of records."""

    def __init__(
        self, transactions: Transactions, ministry: MinistryService, police: PoliceService, *, units: PresenceUnits
    ) -> None:
        self._transactions = transactions
        self.vault = transactions.vault
        self._ministry = ministry
        self._police = police
        self._units = units
        self._pace = BulkPace(transactions)

    async def put(self, batch: Sequence[PreparedRecord[Any]]) -> list[Result]:
        """Put records in their order, as one transaction, at the pace of the log. Returns the result for each record.

        Raises Unavailable if the database refuses. Then nothing of the batch is stored.
        """

        def apply(working: WorkingSet) -> list[Result]:
            prefetch(working, batch)
            return [self._apply(working, prepared) for prepared in batch]

        if not batch:
            return []
        async with self._pace.turn(len(batch)):
            return await self._transactions.change(apply)

    def _apply(self, working: WorkingSet, prepared: PreparedRecord[Any]) -> Result:
        record: Record = prepared.record
        try:
            match record:
                case Wearer():
                    return PutResult(self._ministry.apply_wearer(working, prepared))
                case Tag():
                    return PutResult(self._ministry.apply_tag(working, prepared))
                case ProtectedPerson():
                    return PutResult(self._police.apply_person(working, prepared))
                case Device():
                    return PutResult(self._police.apply_device(working, prepared))
                case Order():
                    outcome, stage = self._police.apply_order(working, prepared)
                    return PutResult(outcome, stage)
                case WearerUnit() | PersonUnit():
                    return PutResult(self._units.apply_unit(working, prepared))
                case _:
                    assert_never(record)
        except PermanentError as error:
            return error
