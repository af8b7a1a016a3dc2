"""Commands that put and end home units and beacons: gather the stored state, decide, apply.

The Ministry has the units of wearers, the police have those of protected persons. A unit, its route and the joint cases that name it
are written in one transaction.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import grpc.aio

from services.common.errors import FailedPrecondition, InvalidField, NotFound, PermissionDenied
from services.common.rpc import server
from services.common.rpc.identity import Role
from services.common.running import completed
from services.registry.cases import surroundings
from services.registry.cases.service import CaseService
from services.registry.domain.lifecycle import PutOutcome
from services.registry.domain.reconciliation import Agency
from services.registry.domain.records import PersonUnit, WearerUnit
from services.registry.records import translate
from services.registry.records.kinds import (
    DEVICE_TYPES,
    PERSONS,
    UNIT_TYPES,
    WEARERS,
    RecordType,
    type_of,
)
from services.registry.records.places import ServiceArea
from services.registry.records.store import PreparedRecord, owners_before_and_after, prepare, require_opened
from services.registry.records.translate import outcome_to_proto
from services.registry.transactions import Transactions
from services.registry.working_set.working_set import WorkingSet
from tandem.registry.v1 import presence_unit_pb2, presence_unit_pb2_grpc


class PresenceUnits:
    """The system of record for home units and beacons. Each command is one transaction; `apply_unit` is a part of a batch."""

    def __init__(self, transactions: Transactions, cases: CaseService) -> None:
        self._transactions = transactions
        self._cases = cases

    async def put(self, agency: Agency, unit: WearerUnit | PersonUnit) -> PutOutcome:
        """Store a unit.

        Raises PermissionDenied if the other agency has it, NotFound if its holder is unknown, FailedPrecondition if the id belongs to
        another device.
        """
        if type_of(unit).agency is not agency:
            raise PermissionDenied(
                "presence_unit: the Ministry puts units of wearers, the police those of protected persons"
            )
        prepared = prepare(unit, self._transactions.vault)
        return await self._transactions.change(partial(self.apply_unit, prepared=prepared))

    def apply_unit(self, working: WorkingSet, prepared: PreparedRecord[Any]) -> PutOutcome:
        """Put a unit in a working set. Raises Conflict, NotFound or FailedPrecondition; then nothing is changed."""
        unit: WearerUnit | PersonUnit = prepared.record
        stored = working.records.find(prepared.kind, unit.unit_id)
        if stored is not None and stored.open() is None:
            raise FailedPrecondition("presence_unit.unit_id: the record of this unit was destroyed; use another id")
        outcome = working.records.decide(stored, prepared)
        if outcome is PutOutcome.STORED:
            owners = owners_before_and_after(unit, stored)
            self._require_owner(working, unit)
            others = [*DEVICE_TYPES, *UNIT_TYPES]
            others.remove(prepared.kind)
            if any(working.records.find(kind, unit.unit_id) for kind in others):
                raise FailedPrecondition("presence_unit.unit_id: is already the id of another device")
            self._put(working, prepared, owners)
        return outcome

    async def end(self, agency: Agency, unit_id: str, removed_at_ms: int, *, source_version: int) -> PutOutcome:
        """Store that a unit was removed. Raises NotFound if the agency has no such unit, InvalidField if it ends before it began."""

        def apply(working: WorkingSet) -> PutOutcome:
            # The other agency's unit gets the answer of an unknown one, so that nothing tells which units exist.
            [mine] = (kind for kind in UNIT_TYPES if kind.agency is agency)
            found = working.records.find(mine, unit_id)
            stored, before = require_opened(found, "unit_id: no such unit")
            if removed_at_ms <= before.installed_from_ms:
                raise InvalidField("removed_at", "must be later than installed_from")
            unit = replace(before, installed_until_ms=removed_at_ms, source_version=source_version)
            prepared = prepare(unit, working.vault)
            outcome = working.records.decide(stored, prepared)
            if outcome is PutOutcome.STORED:
                self._put(working, prepared, owners_before_and_after(unit, None))
            return outcome

        return await self._transactions.change(apply)

    def _require_owner(self, working: WorkingSet, unit: WearerUnit | PersonUnit) -> None:
        kind: RecordType[Any] = WEARERS if isinstance(unit, WearerUnit) else PERSONS
        owner_id = unit.wearer_id if isinstance(unit, WearerUnit) else unit.person_id
        stored = working.records.find(kind, owner_id)
        if stored is None:
            raise NotFound(f"presence_unit.{kind.key.name}: no such record")
        if stored.has_ended:
            raise FailedPrecondition(f"presence_unit.{kind.key.name}: the record has ended")

    def _put(self, working: WorkingSet, prepared: PreparedRecord[Any], owners: list[str]) -> None:
        """Put a unit, send its route, and renew the joint cases of its holders, one after the other."""
        unit: WearerUnit | PersonUnit = prepared.record
        if isinstance(unit, WearerUnit):
            cases = working.cases.of_wearers(owners)
            cases.sort(key=lambda case: owners.index(case.wearer_id))
            also_persons: list[str] = []
        else:
            cases = [case for owner in owners for case in working.cases.of_person(owner)]
            also_persons = [unit.person_id]
        pairs = surroundings.pairs_of_cases(working, cases)
        effects = self._cases.begin(working, pairs, put=unit, also_persons=also_persons)
        effects.send_route(unit)
        for pair in pairs:
            effects.refresh(pair)
        self._cases.apply(working, effects, put=prepared)


_Context = grpc.aio.ServicerContext[Any, Any]


class PresenceUnitServicer(presence_unit_pb2_grpc.PresenceUnitServiceServicer):
    """Parses requests of the PresenceUnitService, runs the commands and builds the responses."""

    def __init__(self, units: PresenceUnits, area: ServiceArea) -> None:
        self._units = units
        self._area = area

    async def PutPresenceUnit(
        self, request: presence_unit_pb2.PutPresenceUnitRequest, context: _Context
    ) -> presence_unit_pb2.PutPresenceUnitResponse:
        if not request.HasField("presence_unit"):
            raise InvalidField("presence_unit", "is missing")
        try:
            unit = translate.parse_unit(request.presence_unit)
            translate.check_unit_area(unit, self._area)
        except InvalidField as error:
            raise error.under("presence_unit") from None
        outcome = await completed(self._units.put(_agency(), unit))
        return presence_unit_pb2.PutPresenceUnitResponse(outcome=outcome_to_proto(outcome))

    async def EndPresenceUnit(
        self, request: presence_unit_pb2.EndPresenceUnitRequest, context: _Context
    ) -> presence_unit_pb2.EndPresenceUnitResponse:
        unit_id, removed_at_ms, source_version = translate.parse_unit_end(request)
        ending = self._units.end(_agency(), unit_id, removed_at_ms, source_version=source_version)
        return presence_unit_pb2.EndPresenceUnitResponse(outcome=outcome_to_proto(await completed(ending)))


def _agency() -> Agency:
    return Agency.MOJ if server.caller().role == Role.ROLE_MOJ_RECORDS else Agency.NPA
