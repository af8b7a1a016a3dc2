"""Reads the contacts of protected persons. A contact is stored only sealed, and unsealed only for the moment of its use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from services.common.observability.telemetry import logger
from services.common.privacy import sealing
from services.common.rpc.errors import InvalidField
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import ContactRow
from tandem.common.v1 import contact_pb2


class ContactBook:
    """Contacts of protected persons."""

    def __init__(self, store: WarningStore, keys: Sequence[X25519PrivateKey]) -> None:
        self._store, self._keys = store, keys

    async def of(self, person_id: str) -> contact_pb2.Contact | None:
        """Returns the newest readable contact of a person; None if there is none. Raises Unavailable."""
        return self.unsealed((await self._store.contacts_of([person_id]))[person_id])

    async def is_duress(self, person_id: str, choice: int) -> bool:
        """Whether an answer is the choice that the person and the police have agreed to mean duress. Raises Unavailable."""
        contact = await self.of(person_id)
        return contact is not None and contact.duress_choice == choice

    def unsealed(self, rows: Iterable[ContactRow]) -> contact_pb2.Contact | None:
        """Unseals the first readable contact of a person; None if there is none. Logs an unreadable contact as critical."""
        for row in rows:
            if row.sealed:
                try:
                    return sealing.unseal(row.sealed, row.person_id, self._keys)
                except InvalidField:
                    logger().critical("contact_cannot_be_opened", case_id=row.case_id)
        return None
