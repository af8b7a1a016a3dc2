"""gRPC servicer of the DisclosureService: reads of personal data and signed heads of the ledger."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.privacy.grounds import RecordKind
from services.common.rpc import server
from services.common.running import completed
from services.registry.disclosure.service import Disclosures
from services.registry.disclosure.translate import parse_grounds
from services.registry.records import places as translate_places
from services.registry.records import translate
from services.registry.records.kinds import PERSONS, WEARERS
from tandem.registry.v1 import disclosure_pb2, disclosure_pb2_grpc

_Context = grpc.aio.ServicerContext[Any, Any]


class DisclosureServicer(disclosure_pb2_grpc.DisclosureServiceServicer):
    """Parses requests of the DisclosureService and limits the responses to the fields that the caller's role may see."""

    def __init__(self, disclosures: Disclosures, clock: MeshClock) -> None:
        self._disclosures = disclosures
        self._clock = clock

    async def ReadWearer(
        self, request: disclosure_pb2.ReadWearerRequest, context: _Context
    ) -> disclosure_pb2.ReadWearerResponse:
        wearer_id = fields.required_id("wearer_id", request.wearer_id)
        grounds = parse_grounds(request.grounds, RecordKind.WEARER, now_ms=self._clock.now_ms())
        who = server.caller()
        wearer, disclosure_id = await completed(self._disclosures.read(who, grounds, WEARERS, record_id=wearer_id))
        shown = translate.wearer_to_proto(wearer, WEARERS.shows[who.role])
        return disclosure_pb2.ReadWearerResponse(wearer=shown, disclosure_id=disclosure_id)

    async def ReadProtectedPerson(
        self, request: disclosure_pb2.ReadProtectedPersonRequest, context: _Context
    ) -> disclosure_pb2.ReadProtectedPersonResponse:
        person_id = fields.required_id("person_id", request.person_id)
        grounds = parse_grounds(request.grounds, RecordKind.PROTECTED_PERSON, now_ms=self._clock.now_ms())
        who = server.caller()
        person, places, disclosure_id = await completed(self._disclosures.read_person(who, grounds, person_id))
        visible = PERSONS.shows[who.role]
        shown = translate.protected_person_to_proto(person, visible)
        return disclosure_pb2.ReadProtectedPersonResponse(
            protected_person=shown,
            places=[translate_places.place_to_proto(place) for place in places] if "places" in visible else [],
            disclosure_id=disclosure_id,
        )

    async def SignLedger(
        self, request: disclosure_pb2.SignLedgerRequest, context: _Context
    ) -> disclosure_pb2.SignLedgerResponse:
        signed = await completed(self._disclosures.sign())
        return disclosure_pb2.SignLedgerResponse(head=self._disclosures.to_proto(signed) if signed else None)

    async def WatchLedgerHeads(
        self, request: disclosure_pb2.WatchLedgerHeadsRequest, context: _Context
    ) -> AsyncIterator[disclosure_pb2.WatchLedgerHeadsResponse]:
        fields.number("after_sequence", request.after_sequence, 0, greatest=1 << 62)
        async for signed in self._disclosures.watch_heads(request.after_sequence):
            yield disclosure_pb2.WatchLedgerHeadsResponse(head=self._disclosures.to_proto(signed))
