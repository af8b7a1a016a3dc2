"""gRPC servicer of the RecordSearchService: parses searches, and limits the answers to what the caller's role may see."""

from __future__ import annotations

import re
from datetime import date
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.privacy.grounds import LEGAL_BASES, Grounds, RecordKind
from services.common.rpc.errors import InvalidField
from services.common.rpc.identity import Role
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain import Order, ProtectedPerson
from services.registry.records.kinds import ORDERS, PERSONS, WEARERS, RecordType
from services.registry.records.translate import NAME_MAX_CHARS, PHONE_MAX_CHARS
from services.registry.search.domain import RecordQuery
from services.registry.search.service import FoundRecord, RecordSearch
from tandem.registry.v1 import record_search_pb2, record_search_pb2_grpc

_KINDS = {
    WEARERS: record_search_pb2.FOUND_KIND_WEARER,
    PERSONS: record_search_pb2.FOUND_KIND_PROTECTED_PERSON,
    ORDERS: record_search_pb2.FOUND_KIND_ORDER,
}
_OWN_DEVICES = {WEARERS: Role.ROLE_MOJ_DESK, PERSONS: Role.ROLE_NPA_DESK}
"""Role that sees the devices of each kind's person."""
_Context = grpc.aio.ServicerContext[Any, Any]


class RecordSearchServicer(record_search_pb2_grpc.RecordSearchServiceServicer):
    """Answers searches for people and orders."""

    def __init__(self, search: RecordSearch, clock: MeshClock) -> None:
        self._search, self._clock = search, clock

    async def SearchRecords(
        self, request: record_search_pb2.SearchRecordsRequest, context: _Context
    ) -> record_search_pb2.SearchRecordsResponse:
        query, who = parse_query(request), caller()
        grounds = self._grounds(request)
        basis = next(basis for basis in LEGAL_BASES if basis.code == grounds.legal_basis)
        kinds = self._search.kinds_for(who, basis.kinds, query)
        found, disclosure_ids = await completed(self._search.find(who, grounds, query, kinds=kinds))
        return record_search_pb2.SearchRecordsResponse(
            records=[
                _row(record, who.role, disclosure_id)
                for record, disclosure_id in zip(found, disclosure_ids, strict=True)
            ],
            searched=[_KINDS[kind] for kind in kinds],
        )

    def _grounds(self, request: record_search_pb2.SearchRecordsRequest) -> Grounds:
        """Parses the grounds. An article that allows to read any record of a person will do: others aren't searched then."""
        return parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())


def parse_query(request: record_search_pb2.SearchRecordsRequest) -> RecordQuery:
    """Parses a search. Raises InvalidField."""
    given = [field for field in ("name", "phone", "record_id") if getattr(request, field)]
    if len(given) != 1:
        raise InvalidField(given[1] if given else "name", "must be the only one of name, phone and record_id")
    if request.birth_date and not request.name:
        raise InvalidField("birth_date", "goes with a name only")
    if request.record_id:
        return RecordQuery(record_id=fields.required_id("record_id", request.record_id))
    if request.phone:
        query = RecordQuery(phone=request.phone)
        if len(request.phone) > PHONE_MAX_CHARS or not query.keys:
            raise InvalidField(
                "phone", f"must be at most {PHONE_MAX_CHARS} characters with 7 to 15 digits (example: 010-1234-5678)"
            )
        return query
    name = request.name.strip()
    if not 2 <= len(name) <= NAME_MAX_CHARS:
        raise InvalidField("name", f"must be 2 to {NAME_MAX_CHARS} characters")
    query = RecordQuery(name=name, birth_date=_birth_date(request.birth_date) if request.birth_date else None)
    if not query.keys:
        raise InvalidField("name", "must be a family name and a given name, in Hangul or Latin letters")
    return query


def _birth_date(text: str) -> date:
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text)
    except ValueError:
        pass
    raise InvalidField("birth_date", "is no date (example: 1980-02-29)")


def _row(found: FoundRecord, role: Role.ValueType, disclosure_id: str) -> record_search_pb2.FoundRecord:
    visible, record = found.kind.shows.get(role, frozenset()), found.record
    row = record_search_pb2.FoundRecord(
        kind=_KINDS[found.kind],
        record_id=found.record_id,
        order_ids=found.order_ids,
        disclosure_id=disclosure_id,
        device_ids=found.device_ids if _may_see_devices(found.kind, role) else (),
    )
    if isinstance(record, ProtectedPerson):
        row.name = record.name if "name" in visible else ""
        return row
    person = record.respondent if isinstance(record, Order) else record
    row.name = person.name if "name" in visible else ""
    row.phone = person.phone if "phone" in visible else ""
    if "birth_date" in visible:
        row.birth_date = person.birth_date.isoformat()
    return row


def _may_see_devices(kind: RecordType[Any], role: Role.ValueType) -> bool:
    return _OWN_DEVICES.get(kind) == role
