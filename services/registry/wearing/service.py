"""Commands of officers about the wearing of tags. Each is one transaction with the snapshots of the joint cases that it changes and the
rows of the ledger for what the police are told."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple, TypeAlias

from services.common import ids
from services.common.clock import MeshClock
from services.common.privacy.grounds import Grounds, Purpose, RecordKind
from services.common.rpc.errors import Conflict, FailedPrecondition, NotFound
from services.common.rpc.identity import Caller
from services.registry import domain
from services.registry.cases import surroundings
from services.registry.cases.domain import check_tag_order
from services.registry.cases.service import CaseService
from services.registry.disclosure.domain import Deed
from services.registry.disclosure.service import Disclosures
from services.registry.domain import OrderType
from services.registry.ledger.chain import Disclosure
from services.registry.records.kinds import ORDERS, TAGS, WEARERS
from services.registry.transactions import Transactions
from services.registry.wearing import domain as wearing
from services.registry.wearing import store
from services.registry.wearing.domain import TagRecord, TagRecordKind
from services.registry.wearing.store import ReasonedRecord
from services.registry.working_set.tag_records import StoredTagRecord
from services.registry.working_set.working_set import WorkingSet

_Command: TypeAlias = Callable[[WorkingSet], bool]

POLICE = "spiffe://npa/desk"
"""Recipient of what the police are told, in the ledger."""
_LEGAL_BASIS = "TAG_DECREE_23_10"


class NewRecord(NamedTuple):
    """A record about a tag, as an officer sends it."""

    record_id: str
    kind: TagRecordKind
    reason: str
    from_ms: int | None
    """Start, milliseconds since 1970 UTC; None for a removal that begins now."""
    until_ms: int | None = None
    wearer_id: str = ""
    """Empty for a removal, whose tag names the wearer."""
    order_id: str = ""
    device_id: str = ""
    allowed_by: str = ""
    afterwards: bool = False


class WearingService:
    """Stores what officers record about the wearing of tags."""

    def __init__(
        self, transactions: Transactions, cases: CaseService, disclosures: Disclosures, *, clock: MeshClock
    ) -> None:
        self._transactions = transactions
        self._cases = cases
        self._disclosures = disclosures
        self._clock = clock

    async def add(self, new: NewRecord, by: str) -> bool:
        """Store a record; False if the same record is stored already.

        Raises Conflict if its id has other content, NotFound, FailedPrecondition or InvalidField if it can't be recorded.
        """
        notices: list[Disclosure] = []

        def apply(working: WorkingSet) -> bool:
            digest = working.vault.digest(json.dumps(new, default=lambda kind: kind.value).encode())
            stored = working.tag_records.find(new.record_id)
            if stored is not None:
                if stored.digest != digest:
                    raise Conflict(
                        "record_id: this id is stored with different content; records about tags can't be changed"
                    )
                return False
            record = self._checked(working, new, by)
            owner = store.owner_of(record.record_id)
            key, sealed = working.vault.seal_with_new_key(owner.text, new.reason.encode())
            self._put(working, StoredTagRecord(record, digest, sealed, new_key=key))
            notices.extend(self._notices(working, record))
            return True

        return await self._commit(apply, notices)

    def _checked(self, working: WorkingSet, new: NewRecord, by: str) -> TagRecord:
        now_ms = self._clock.now_ms()
        record = TagRecord(
            record_id=new.record_id,
            kind=new.kind,
            wearer_id=new.wearer_id or _wearer_of(working, new.device_id),
            order_id=new.order_id,
            device_id=new.device_id,
            from_ms=now_ms if new.from_ms is None else new.from_ms,
            until_ms=new.until_ms,
            allowed_by=new.allowed_by,
            afterwards=new.afterwards,
            recorded_by=by,
            recorded_ms=now_ms,
        )
        if record.wearer_id not in working.records.opened(WEARERS, (record.wearer_id,)):
            raise NotFound("wearer_id: no such wearer")
        wearing.check(record)
        if record.kind is TagRecordKind.REMOVAL:
            wearing.check_overlaps(record, working.tag_records.of_wearers([record.wearer_id]).get(record.wearer_id, ()))
            return record
        order = working.records.opened(ORDERS, (record.order_id,)).get(record.order_id)
        if order is None:
            raise NotFound("order_id: no such order")
        case = working.cases.find(domain.case_id_of(record.order_id, record.wearer_id))
        check_tag_order(record, order, enforced=case is not None and case.withdrawn_at_ms is None)
        return record

    async def end_removal(self, record_id: str, ended_ms: int, by: str) -> bool:
        """End a removal early; False if it has that end already. Raises NotFound, InvalidField or FailedPrecondition."""

        def apply(working: WorkingSet) -> bool:
            stored = working.tag_records.find(record_id)
            if stored is None:
                raise NotFound("record_id: no such record")
            if stored.record.ended_ms == ended_ms:
                return False
            record = wearing.ended(stored.record, ended_ms, by, now_ms=self._clock.now_ms())
            self._put(working, replace(stored, record=record))
            return True

        return await self._commit(apply, [])

    async def list_records(self, who: Caller, grounds: Grounds, wearer_id: str) -> tuple[list[ReasonedRecord], str]:
        """All records about a wearer's tags with their reasons, and the id of the disclosure in the ledger. Raises NotFound."""
        vault = self._transactions.vault
        return await self._disclosures.disclose_record(
            lambda connection: store.records_about(connection, vault, wearer_id),
            who,
            grounds,
            kind=WEARERS,
            record_id=wearer_id,
        )

    def _put(self, working: WorkingSet, stored: StoredTagRecord) -> None:
        """Put a record, and send the snapshots of the wearer's joint cases that hold."""
        record = stored.record
        working.tag_records.put(stored)
        cases = [case for case in working.cases.of_wearers([record.wearer_id]) if case.withdrawn_at_ms is None]
        pairs = surroundings.pairs_of_cases(working, cases)
        effects = self._cases.begin(working, pairs)
        for pair in pairs:
            effects.refresh(pair)
        event = "tag_record_stored" if stored.new_key else "tag_removal_ended"
        effects.log(logging.INFO, event, record_id=record.record_id, kind=record.kind.value, by=record.recorded_by)
        self._cases.apply(working, effects)

    def _notices(self, working: WorkingSet, record: TagRecord) -> list[Disclosure]:
        """Rows of the ledger for what the police are told of a record: refusals and removals under an order of item 3-2."""
        if record.kind is TagRecordKind.GOOD_CAUSE:
            return []
        cases = working.cases.of_wearers([record.wearer_id])
        orders = working.records.opened(ORDERS, [case.order_id for case in cases if case.withdrawn_at_ms is None])
        return [
            Disclosure(
                disclosure_id=ids.hash_id("told", record.record_id, order.order_id),
                at_ms=record.recorded_ms,
                deed=Deed.SHARED.value,
                who=record.recorded_by,
                legal_basis=_LEGAL_BASIS,
                purpose=Purpose.ENFORCEMENT.value,
                reference=record.record_id,
                record_kind=RecordKind.WEARER.value,
                record_id=record.wearer_id,
                order_id=order.order_id,
                recipient=POLICE,
                expires_at_ms=0,
                positions=None,
            )
            for order in orders.values()
            if order.type is OrderType.STALKING_TAG
            and not order.is_over(record.recorded_ms)
            and record.order_id in ("", order.order_id)
        ]

    async def _commit(self, apply: _Command, notices: Sequence[Disclosure]) -> bool:
        async with self._transactions.changing() as work:
            stored = await work.change(apply)
            await work.ledger.append(notices)
        if notices:
            self._disclosures.note_appended(notices)
        return stored


def _wearer_of(working: WorkingSet, device_id: str) -> str:
    stored = working.records.find(TAGS, device_id)
    tag = stored.open() if stored else None
    if tag is None:
        raise NotFound("device_id: no such tag")
    if tag.removed_at_ms is not None:
        raise FailedPrecondition("device_id: the record of this tag has ended, so it can't be removed")
    return tag.wearer_id
