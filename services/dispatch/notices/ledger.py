"""Ledger rows of the Ministry's notices: giver, recipient and article, stored in DISCLOSURES before a notice is sent.

The law demands a ledger of these uses (Tag Act Decree 14, 23-17(2)). Without its row a notice isn't sent; it waits for NATS. The
police's own warning doesn't.
"""

from __future__ import annotations

from collections.abc import Sequence

from services.common import ids
from services.common.messaging import flow
from services.common.messaging.bus import AlreadyStored, Bus
from services.common.privacy import notices
from services.common.privacy.notice_rows import GivenNotice, row_of
from services.common.privacy.notices import NoticeGround
from services.common.rpc.errors import RetryableError
from services.dispatch.domain.leg import Leg
from services.dispatch.publications.disclosures import LegDisclosures
from services.dispatch.warning.tables import MessageRow
from tandem.common.v1 import ledger_pb2


def disclosures_of(message: MessageRow, *, with_location: bool, now_ms: int) -> list[ledger_pb2.Disclosure]:
    """The ledger's rows of a notice: the notice itself, and the location that goes with it, each under its article."""
    ground = NoticeGround(message.ground)
    articles = [ground.value, *([notices.location_basis(ground)] if with_location else [])]
    given = GivenNotice(
        person_id=message.person_id,
        wearer_id=message.wearer_id,
        order_id=message.order_id,
        incident_id=message.incident_id,
        at_ms=now_ms,
    )
    # A retry gives the same id, so that the ledger counts each notice once.
    return [row_of(given, article, ids.hash_id("notice", message.message_id, article)) for article in articles]


class NoticeLedger:
    """Stores the rows of notices, and keeps them for a day in case the stream loses them."""

    def __init__(self, kept: LegDisclosures) -> None:
        self._kept = kept

    async def store(self, bus: Bus | None, disclosures: Sequence[ledger_pb2.Disclosure]) -> bool:
        """Stores rows in DISCLOSURES. Returns whether all are on disk. Raises Unavailable if the leg's database refuses."""
        if bus is None:
            return False
        for disclosure in disclosures:
            subject = flow.disclosure_subject(flow.leg_user(Leg.WARNING), disclosure.disclosure_id)
            try:
                data, id_ = disclosure.SerializeToString(), disclosure.disclosure_id
                await bus.publish(subject, data, msg_id=id_, expected_last=0)
            except AlreadyStored:
                continue
            except RetryableError:
                return False
        await self._kept.keep(disclosures)
        return True
