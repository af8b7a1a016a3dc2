"""gRPC servicer of the PartyService: the names behind an order, for a desk that works on an incident."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import grpc.aio

from services.common import fields
from services.common.clock import MeshClock
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc.errors import InvalidField
from services.common.rpc.identity import Role
from services.common.rpc.server import caller
from services.common.running import completed
from services.registry.disclosure.domain import article_of
from services.registry.disclosure.translate import parse_grounds
from services.registry.domain import ProtectedPerson, Respondent
from services.registry.order_people.service import PartyReading
from services.registry.records.kinds import ORDERS, PERSONS
from tandem.registry.v1 import parties_pb2, parties_pb2_grpc, registry_pb2

_Context = grpc.aio.ServicerContext[Any, Any]


class PartyServicer(parties_pb2_grpc.PartyServiceServicer):
    """Parses requests of the PartyService and limits the responses to the fields that the caller's role may see."""

    def __init__(self, reading: PartyReading, clock: MeshClock) -> None:
        self._reading = reading
        self._clock = clock

    async def ReadParties(
        self, request: parties_pb2.ReadPartiesRequest, context: _Context
    ) -> parties_pb2.ReadPartiesResponse:
        order_id = fields.required_id("order_id", request.order_id)
        grounds = parse_grounds(request.grounds, RecordKind.ORDER, now_ms=self._clock.now_ms())
        if grounds.purpose is not Purpose.ENFORCEMENT:
            raise InvalidField("grounds.purpose", "must be PURPOSE_ENFORCEMENT: a desk reads names during an incident")
        if not grounds.reference:
            raise InvalidField("grounds.reference", "is missing: name the incident (example: incident-1)")
        who = caller()
        people, disclosure_id = await completed(self._reading.read(who, grounds, order_id))
        shows = ORDERS.shows[who.role]
        is_police = who.role == Role.ROLE_NPA_DESK
        return parties_pb2.ReadPartiesResponse(
            article=article_of(people.order),
            respondent=_respondent(people.order.respondent, shows),
            protected_persons=[_person(person, PERSONS.shows[who.role]) for person in people.persons],
            rings_m=sorted({ring.radius_m for ring in people.rings}) if is_police else [],
            disclosure_id=disclosure_id,
        )


def _respondent(respondent: Respondent, shows: Collection[str]) -> parties_pb2.Party:
    sex = respondent.sex.value if respondent.sex else "UNSPECIFIED"
    return parties_pb2.Party(
        name=respondent.name if "name" in shows else "",
        birth_date=respondent.birth_date.isoformat() if "birth_date" in shows else "",
        sex=registry_pb2.Sex.Value(f"SEX_{sex if 'sex' in shows else 'UNSPECIFIED'}"),
        phone=respondent.phone if "phone" in shows else "",
    )


def _person(person: ProtectedPerson, shows: Collection[str]) -> parties_pb2.Party:
    return parties_pb2.Party(person_id=person.person_id, name=person.name if "name" in shows else "")
