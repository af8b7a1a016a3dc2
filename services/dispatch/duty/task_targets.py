"""Live positions of the targets of a unit's assignment, each with a row of the ledger before its first position leaves."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple

from services.common import ids
from services.common.clock import MeshClock
from services.common.ids import PlaceId
from services.common.messaging.bus import Bus
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc.errors import FailedPrecondition, Unavailable
from services.dispatch.domain.assignment import ACCEPTED
from services.dispatch.duty.access import unit_name
from services.dispatch.following.desk_stream import DeskStream
from services.dispatch.following.follower import TargetFollower
from services.dispatch.following.targets import CALLERS, FOLLOWING_BASES
from services.dispatch.leg.service import LegService
from services.dispatch.publications.disclosures import LegDisclosures
from tandem.common.v1 import ledger_pb2
from tandem.dispatch.v1 import following_pb2

NOT_ACCEPTED = "NOT_ACCEPTED"
"""Machine-readable reason for refusing positions: the unit has accepted no assignment of the incident."""


class _Destinations(NamedTuple):
    """Targets that a unit may follow in an incident: the wearer and its own destinations, under these orders."""

    subject_ids: frozenset[str]
    order_ids: Sequence[str]


class TaskTargets:
    """Shows units the targets of the assignments that they accepted, as the leg follows them for its desk."""

    def __init__(
        self, leg: LegService, follower: TargetFollower | None, clock: MeshClock, *, disclosures: LegDisclosures
    ) -> None:
        self._leg, self._follower, self._clock, self._disclosures = leg, follower, clock, disclosures
        self._bus: Bus | None = None

    def connected(self, bus: Bus) -> None:
        """Sets the bus on which disclosures are published."""
        self._bus = bus

    async def follow(self, unit_id: str, incident_id: str) -> AsyncGenerator[list[following_pb2.TargetEvent]]:
        """Yields events of the incident's targets until the unit hasn't the assignment any more.

        Raises FailedPrecondition if it never had it, Unavailable if the leg follows nobody or can't record the disclosure.
        """
        if self._follower is None:
            raise Unavailable("this leg has no target positions", retry_after_s=60.0)
        await self._required(unit_id, incident_id)
        if not await self._leg.show_targets([incident_id], unit_name(self._leg.name, unit_id)):
            raise FailedPrecondition("the incident isn't open in this leg", NOT_ACCEPTED)
        stream, recorded = DeskStream(self._follower, self._clock), set[str]()
        with stream.watching():
            stream.add(incident_id)
            stream.finish(None)
            async for response in stream.responses():
                may_follow = await self._destinations(unit_id, incident_id)
                if may_follow is None:
                    return
                shown = [
                    event
                    for event in response.events
                    if event.HasField("not_followed") or event.target.subject_id in may_follow.subject_ids
                ]
                new = [event.target for event in shown if event.HasField("target")]
                await self._record(
                    unit_id, incident_id, may_follow, new=[t for t in new if t.subject_id not in recorded]
                )
                recorded |= {target.subject_id for target in new}
                if shown:
                    yield shown

    async def _required(self, unit_id: str, incident_id: str) -> _Destinations:
        found = await self._destinations(unit_id, incident_id)
        if found is None:
            raise FailedPrecondition("the unit has accepted no assignment of this incident", NOT_ACCEPTED)
        return found

    async def _destinations(self, unit_id: str, incident_id: str) -> _Destinations | None:
        """The targets that the unit may follow; None if it has accepted no assignment of the incident, or has it no longer."""
        for incident in await self._leg.record.open_incidents():
            if incident.incident_id == incident_id:
                own = {
                    assignment.subject_id
                    for assignment in incident.assignments.values()
                    if assignment.unit_id == unit_id and assignment.state in ACCEPTED
                }
                return _Destinations(frozenset({*own, incident.wearer_id}), incident.order_ids) if own else None
        return None

    async def _record(
        self,
        unit_id: str,
        incident_id: str,
        destinations: _Destinations,
        *,
        new: Sequence[following_pb2.TargetPosition],
    ) -> None:
        """Stores a row of the ledger for each target and order. Raises Unavailable; then no position leaves."""
        if not new:
            return
        if self._bus is None:
            raise Unavailable("the disclosure can't be recorded: no connection to NATS")
        now_ms, who, recipient = self._clock.now_ms(), CALLERS[self._leg.name], unit_name(self._leg.name, unit_id)
        rows = [
            ledger_pb2.Disclosure(
                disclosure_id=ids.hash_id("unit", recipient, incident_id, order_id, kind.value, record_id, now_ms),
                at_ms=now_ms,
                who=who,
                legal_basis=FOLLOWING_BASES[self._leg.name],
                purpose=Purpose.ENFORCEMENT.value,
                reference=incident_id,
                record_kind=kind.value,
                record_id=record_id,
                order_id=order_id,
                recipient=recipient,
            )
            for target in new
            for kind, record_id, order_id in _records(target, destinations.order_ids)
        ]
        await self._disclosures.record(self._bus, rows)


def _records(target: following_pb2.TargetPosition, order_ids: Sequence[str]) -> list[tuple[RecordKind, str, str]]:
    """Kind and id of the record of a target, for each order under which it is shown. A place is part of its order."""
    if target.is_wearer:
        return [(RecordKind.WEARER, target.subject_id, order_id) for order_id in order_ids]
    if (place := PlaceId.parse(target.subject_id)) is not None:
        return [(RecordKind.ORDER, place.order_id, place.order_id)]
    return [(RecordKind.PROTECTED_PERSON, target.subject_id, order_id) for order_id in order_ids]
