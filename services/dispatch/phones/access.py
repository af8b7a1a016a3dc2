"""Access of protected persons' phones to the warning leg: the notices that they read, and their receipts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.dispatch.phones.ended import EndedIncidents
from services.dispatch.phones.open_notices import OpenNotices
from services.dispatch.warning.contacts import ContactBook
from services.dispatch.warning.domain import ReceiptKind
from services.dispatch.warning.receipts import ReceiptStore
from services.dispatch.warning.store import WarningStore
from services.dispatch.warning.tables import MessageRow


@dataclass(frozen=True, slots=True)
class PhoneAccess:
    """The notices that phones can read, and the receipts that they send. All methods raise Unavailable."""

    store: WarningStore
    notices: OpenNotices
    ended: EndedIncidents
    receipts: ReceiptStore
    contacts: ContactBook
    clock: MeshClock
    wake: Callable[[], None]
    """Wakes the sender after a receipt."""

    async def record(self, message: MessageRow, receipt: ReceiptKind, choice: int) -> None:
        """Records a receipt. `choice` is the number of the button, 0 without an answer. A duress choice takes the same work."""
        duress = choice > 0 and await self.contacts.is_duress(message.person_id, choice)
        await self.receipts.put(message, receipt, self.clock.now_ms(), duress=duress)
        self.wake()
        logger().info("warning_receipt", message_id=message.message_id, receipt=receipt.value)  # never log the choice
