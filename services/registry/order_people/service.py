"""Reads the people of an order in one transaction with its row in the ledger."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

import sqlalchemy as sa

from services.common.privacy.grounds import Grounds
from services.common.rpc.errors import NotFound
from services.common.rpc.identity import Caller
from services.registry.disclosure.service import Disclosures
from services.registry.domain import DEFAULT_RINGS, Order, OrderRing, ProtectedPerson
from services.registry.keys.vault import Vault
from services.registry.records import store as records
from services.registry.records.kinds import ORDERS, PERSONS


@dataclass(frozen=True, slots=True)
class Parties:
    """An order with its people."""

    order: Order
    persons: tuple[ProtectedPerson, ...]
    """The protected persons whose records the registry has."""

    @property
    def rings(self) -> tuple[OrderRing, ...]:
        """Rings of the order."""
        return self.order.rings or DEFAULT_RINGS


class PartyReading:
    """Reads the people of orders."""

    def __init__(self, disclosures: Disclosures, vault: Vault) -> None:
        self._disclosures = disclosures
        self._vault = vault

    async def read(self, who: Caller, grounds: Grounds, order_id: str) -> tuple[Parties, str]:
        """The people of an order, and the id of the one row in the ledger, of the order's record. Raises NotFound."""

        def reading(connection: sa.Connection) -> Parties:
            order = records.read(connection, self._vault, ORDERS, record_id=order_id)
            persons = []
            for person_id in order.protected_person_ids:
                with suppress(NotFound):  # an order may name a person whose record came later, or was destroyed
                    persons.append(records.read(connection, self._vault, PERSONS, record_id=person_id))
            return Parties(order, tuple(persons))

        return await self._disclosures.disclose_record(reading, who, grounds, kind=ORDERS, record_id=order_id)
