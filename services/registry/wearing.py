"""What officers record about the wearing of tags: refusals, good cause and authorised removals.

Each command is one transaction with the snapshots of the joint cases that it changes and the rows of the ledger for what the police
are told.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import grpc.aio
import sqlalchemy as sa
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from services.common import fields, ids, times
from services.common.clock import MeshClock
from services.common.errors import Conflict, FailedPrecondition, NotFound
from services.common.privacy.grounds import Grounds, Purpose, RecordKind
from services.common.rpc import server
from services.common.rpc.identity import Caller, Role
from services.common.running import completed
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain.cases import check_tag_order
from services.registry.domain.disclosure import Deed
from services.registry.domain.ledger import Disclosure
from services.registry.domain.records import OrderType, case_id_of
from services.registry.domain.wearing import TagRecord, TagRecordKind, check_overlaps, check_tag_record, ended_removal
from services.registry.keys import DataKey, KeyOwner, Vault
from services.registry.ledger import LedgerRepository
from services.registry.records.kinds import ORDERS, TAGS, WEARERS
from services.registry.records.translate import REASON_MAX_CHARS, required_text
from services.registry.tables import data_keys, tag_records, wearers
from services.registry.transactions import Transactions
from services.registry.working_set.rows import StoredTagRecord
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import tag_record_pb2, tag_record_pb2_grpc


class ReasonedRecord(NamedTuple):
    """A record about a tag with its reason."""

    record: TagRecord
    reason: str


def tag_record_owner(record_id: str) -> KeyOwner:
    """Owner of the key that encrypts the reason of a record."""
    return KeyOwner(tag_records.name, record_id)


def records_about(connection: sa.Connection, vault: Vault, wearer_id: str) -> list[ReasonedRecord]:
    """All records about a wearer's tags, in the order in which they were recorded. Raises NotFound if the wearer is unknown."""
    if connection.execute(sa.select(wearers.c.wearer_id).where(wearers.c.wearer_id == wearer_id)).first() is None:
        raise NotFound("wearer_id: no such wearer")
    owner = sa.literal(f"{tag_records.name}/").concat(tag_records.c.record_id)
    joined = tag_records.join(data_keys, data_keys.c.owner == owner)
    rows = connection.execute(
        sa.select(tag_records, data_keys.c.ring, data_keys.c.wrapped)
        .select_from(joined)
        .where(tag_records.c.wearer_id == wearer_id)
        .order_by(tag_records.c.recorded_ms, tag_records.c.record_id)
    )
    return [_reasoned(row, vault) for row in rows]


def _reasoned(row: sa.Row[tuple[object, ...]], vault: Vault) -> ReasonedRecord:
    values = dict(row._mapping)
    key = DataKey(values.pop("ring"), values.pop("wrapped"))
    sealed, _ = values.pop("sealed_reason"), values.pop("digest")
    values["kind"], values["afterwards"] = TagRecordKind(values["kind"]), bool(values["afterwards"])
    record = TagRecord(**values)
    return ReasonedRecord(record, vault.unseal(tag_record_owner(record.record_id).text, sealed, key).decode())


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
            owner = tag_record_owner(record.record_id)
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
        check_tag_record(record)
        if record.kind is TagRecordKind.REMOVAL:
            check_overlaps(record, working.tag_records.of_wearers([record.wearer_id]).get(record.wearer_id, ()))
            return record
        order = working.records.opened(ORDERS, (record.order_id,)).get(record.order_id)
        if order is None:
            raise NotFound("order_id: no such order")
        case = working.cases.find(case_id_of(record.order_id, record.wearer_id))
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
            record = ended_removal(stored.record, ended_ms, by, now_ms=self._clock.now_ms())
            self._put(working, replace(stored, record=record))
            return True

        return await self._commit(apply, [])

    async def list_records(self, who: Caller, grounds: Grounds, wearer_id: str) -> tuple[list[ReasonedRecord], str]:
        """All records about a wearer's tags with their reasons, and the id of the disclosure in the ledger. Raises NotFound."""
        vault = self._transactions.vault
        return await self._disclosures.disclose_record(
            lambda connection: records_about(connection, vault, wearer_id),
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
            stored = await self._transactions.change_within(work, apply)
            await LedgerRepository(work.connection).append(notices)
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


_KINDS = {
    TagRecordKind.REFUSAL: tag_record_pb2.TAG_RECORD_KIND_REFUSAL,
    TagRecordKind.GOOD_CAUSE: tag_record_pb2.TAG_RECORD_KIND_GOOD_CAUSE,
    TagRecordKind.REMOVAL: tag_record_pb2.TAG_RECORD_KIND_REMOVAL,
}


def parse_refusal(msg: tag_record_pb2.RecordRefusalRequest) -> NewRecord:
    """Parse a refusal. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.REFUSAL,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("refused_at", msg, msg.refused_at),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        order_id=fields.required_id("order_id", msg.order_id),
    )


def parse_good_cause(msg: tag_record_pb2.RecordGoodCauseRequest) -> NewRecord:
    """Parse good cause. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.GOOD_CAUSE,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("from", msg, getattr(msg, "from")),
        until_ms=_moment("until", msg, msg.until),
        wearer_id=fields.required_id("wearer_id", msg.wearer_id),
        order_id=fields.required_id("order_id", msg.order_id),
    )


def parse_removal(msg: tag_record_pb2.AllowRemovalRequest) -> NewRecord:
    """Parse an authorised removal. Raises InvalidField."""
    return NewRecord(
        record_id=fields.required_id("record_id", msg.record_id),
        kind=TagRecordKind.REMOVAL,
        reason=required_text("reason", msg.reason, REASON_MAX_CHARS),
        from_ms=_moment("from", msg, getattr(msg, "from")) if msg.HasField("from") else None,
        until_ms=_moment("until", msg, msg.until),
        device_id=fields.required_id("device_id", msg.device_id),
        allowed_by=fields.required_id("allowed_by", msg.allowed_by),
        afterwards=msg.afterwards,
    )


def _moment(field: str, msg: Message, value: Timestamp) -> int:
    return fields.moment(field, value, msg.HasField(field))


def record_to_proto(reasoned: ReasonedRecord, *, with_reason: bool) -> tag_record_pb2.TagRecord:
    """A record about a tag as a message."""
    record, reason = reasoned
    message = tag_record_pb2.TagRecord(
        record_id=record.record_id,
        kind=_KINDS[record.kind],
        wearer_id=record.wearer_id,
        order_id=record.order_id,
        device_id=record.device_id,
        until=_optional(record.until_ms),
        allowed_by=record.allowed_by,
        afterwards=record.afterwards,
        reason=reason if with_reason else "",
        recorded_by=record.recorded_by,
        recorded_at=times.to_timestamp(record.recorded_ms),
        ended_at=_optional(record.ended_ms),
        ended_by=record.ended_by,
    )
    # `from` is a keyword of Python, so the field has no attribute syntax.
    getattr(message, "from").CopyFrom(times.to_timestamp(record.from_ms))
    return message


def _optional(ms: int | None) -> Timestamp | None:
    return None if ms is None else times.to_timestamp(ms)


SEE_REASONS = frozenset({Role.ROLE_MOJ_RECORDS, Role.ROLE_MOJ_DESK, Role.ROLE_REVIEWER})
"""Roles that see the reasons of records about tags, which may say something about the wearer's health."""
_Context = grpc.aio.ServicerContext[Any, Any]


class TagRecordServicer(tag_record_pb2_grpc.TagRecordServiceServicer):
    """Parses requests of the TagRecordService, runs the commands and builds the responses."""

    def __init__(self, wearing: WearingService, clock: MeshClock) -> None:
        self._wearing = wearing
        self._clock = clock

    async def RecordRefusal(
        self, request: tag_record_pb2.RecordRefusalRequest, context: _Context
    ) -> tag_record_pb2.RecordRefusalResponse:
        outcome = await self._add(parse_refusal(request))
        return tag_record_pb2.RecordRefusalResponse(outcome=outcome)

    async def RecordGoodCause(
        self, request: tag_record_pb2.RecordGoodCauseRequest, context: _Context
    ) -> tag_record_pb2.RecordGoodCauseResponse:
        outcome = await self._add(parse_good_cause(request))
        return tag_record_pb2.RecordGoodCauseResponse(outcome=outcome)

    async def AllowRemoval(
        self, request: tag_record_pb2.AllowRemovalRequest, context: _Context
    ) -> tag_record_pb2.AllowRemovalResponse:
        outcome = await self._add(parse_removal(request))
        return tag_record_pb2.AllowRemovalResponse(outcome=outcome)

    async def EndRemoval(
        self, request: tag_record_pb2.EndRemovalRequest, context: _Context
    ) -> tag_record_pb2.EndRemovalResponse:
        record_id = fields.required_id("record_id", request.record_id)
        ended_ms = fields.moment("ended_at", request.ended_at, request.HasField("ended_at"))
        by = server.caller().spiffe_id
        stored = await completed(self._wearing.end_removal(record_id, ended_ms, by))
        return tag_record_pb2.EndRemovalResponse(outcome=_outcome(stored))

    async def ListTagRecords(
        self, request: tag_record_pb2.ListTagRecordsRequest, context: _Context
    ) -> tag_record_pb2.ListTagRecordsResponse:
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        who = server.caller()
        records, disclosure_id = await completed(self._wearing.list_records(who, grounds, wearer_id))
        with_reason = who.role in SEE_REASONS
        return tag_record_pb2.ListTagRecordsResponse(
            records=[record_to_proto(record, with_reason=with_reason) for record in records],
            disclosure_id=disclosure_id,
        )

    async def _add(self, new: NewRecord) -> tag_record_pb2.TagRecordOutcome.ValueType:
        by = server.caller().spiffe_id
        return _outcome(await completed(self._wearing.add(new, by)))


def _outcome(stored: bool) -> tag_record_pb2.TagRecordOutcome.ValueType:
    return tag_record_pb2.TAG_RECORD_OUTCOME_STORED if stored else tag_record_pb2.TAG_RECORD_OUTCOME_UNCHANGED
