"""Live positions: the gRPC edge of `domain/sharing.py`. Nothing leaves before its disclosure is on disk."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc import server
from services.common.rpc.errors import FailedPrecondition, InvalidField, TandemError, Unavailable
from services.common.rpc.identity import Role
from services.geofence.consumer import Evaluator
from services.geofence.domain import sharing
from services.geofence.domain.kinematics.geometry import lat_lon_deg
from services.geofence.domain.sharing import End, KnownPosition, PositionQuery, PositionShare, Subject
from services.geofence.sharing.outbox import DisclosureOutbox, OpenShare
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

CHECK_INTERVAL_S = 0.2
"""How often a share is looked at. Not with each entry of the log: a thousand readers must not hold up the next alert."""
_KINDS = {
    positions_pb2.WEARER: RecordKind.WEARER,
    positions_pb2.PROTECTED_PERSON: RecordKind.PROTECTED_PERSON,
    positions_pb2.PROTECTED_PLACE: RecordKind.ORDER,
}
_OF_KINDS = {kind: number for number, kind in _KINDS.items()}

Responses = AsyncIterator[positions_pb2.WatchPositionsResponse]


class PositionServicer(positions_pb2_grpc.PositionServiceServicer):
    """Shares positions from the evaluators of this process."""

    def __init__(
        self, evaluators: Iterable[Evaluator], outbox: DisclosureOutbox, clock: MeshClock, every_s: float
    ) -> None:
        self._evaluators = tuple(evaluators)
        self._outbox = outbox
        self._clock = clock
        self._every_s = every_s

    async def WatchPositions(
        self, request: positions_pb2.WatchPositionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Responses:
        role = Role.Name(server.caller().role)
        try:
            evaluator, asked, shares = self._admit(request)
            opened = await self._outbox.begin([self._disclosure(asked.legal_basis, share) for share in shares])
        except TandemError as error:
            logger().warning("sharing_refused", role=role, reason=str(error))
            raise
        logger().info("sharing_began", role=role, under=asked.incident_id or asked.order_id, subjects=len(shares))
        live = dict(zip(shares, opened, strict=True))
        try:
            async for response in self._follow(evaluator, live):
                yield response
        finally:
            for one in live.values():
                self._outbox.end(one)

    def _admit(
        self, request: positions_pb2.WatchPositionsRequest
    ) -> tuple[Evaluator, PositionQuery, tuple[PositionShare, ...]]:
        asked = _parse(request)
        sharing.check(asked, server.caller().role, self._clock.now_ms())
        for evaluator in self._evaluators:
            if not evaluator.is_current:
                raise Unavailable("this evaluator is behind the log")
            shares = sharing.shares(evaluator.state, asked)
            if shares:
                return evaluator, asked, shares
        what = "incident is open" if asked.incident_id else "order is in force"
        raise FailedPrecondition(f"no such {what} in the partitions of this evaluator")

    async def _follow(self, evaluator: Evaluator, live: dict[PositionShare, OpenShare]) -> Responses:
        """Each subject's newest position, until each share is over; what a slow reader was too slow for is never kept."""
        loop = asyncio.get_running_loop()
        told: dict[PositionShare, KnownPosition] = {}
        next_s = dict.fromkeys(live, 0.0)
        while live:
            for share in tuple(live):
                # Asked anew for each: the reader may have taken its time with the one before.
                if not evaluator.is_current:
                    raise Unavailable("this evaluator is behind the log")
                reason = sharing.end_of(evaluator.state, share, max(evaluator.state.now_ms, self._clock.now_ms()))
                if reason is not None:
                    self._outbox.end(live.pop(share))
                    logger().info("sharing_ended", reason=reason.name, under=share.incident_id or share.order_id)
                    yield _end(share, reason)
                    continue
                seen = sharing.look(evaluator.state, share)
                if loop.time() < next_s[share] or seen == told.get(share):
                    continue
                await live[share].count()
                told[share], next_s[share] = seen, loop.time() + self._every_s
                yield _position(share, seen, evaluator.state.now_ms)
            if live:
                await asyncio.sleep(min(CHECK_INTERVAL_S, self._every_s))

    def _disclosure(self, legal_basis: str, share: PositionShare) -> ledger_pb2.Disclosure:
        who = server.caller().spiffe_id
        return ledger_pb2.Disclosure(
            disclosure_id=f"share-{uuid.uuid4().hex}",
            at_ms=self._clock.now_ms(),
            who=who,
            legal_basis=legal_basis,
            purpose=Purpose.ENFORCEMENT.value,
            reference=share.incident_id or share.case_id,
            record_kind=share.subject.kind.value,
            record_id=share.order_id if share.subject.kind is RecordKind.ORDER else share.subject.subject_id,
            order_id=share.order_id,
            recipient=who,
            expires_at_ms=share.expires_at_ms,
        )


def _parse(request: positions_pb2.WatchPositionsRequest) -> PositionQuery:
    under = request.WhichOneof("under")
    if under is None:
        raise InvalidField("under", "is missing")
    fields.required_id(under, getattr(request, under))
    subjects = []
    for i, subject in enumerate(request.subjects):
        if subject.kind not in _KINDS:
            raise InvalidField(f"subjects[{i}].kind", "is no known kind")
        parts = (
            subject.subject_id.split("/", 1) if subject.kind == positions_pb2.PROTECTED_PLACE else (subject.subject_id,)
        )
        for part in parts:
            fields.required_id(f"subjects[{i}].subject_id", part)
        subjects.append(Subject(_KINDS[subject.kind], subject.subject_id))
    expires_at_ms = fields.moment("expires_at", request.expires_at, request.HasField("expires_at"))
    return PositionQuery(request.incident_id, request.order_id, request.legal_basis, tuple(subjects), expires_at_ms)


def _subject(share: PositionShare) -> positions_pb2.Subject:
    return positions_pb2.Subject(kind=_OF_KINDS[share.subject.kind], subject_id=share.subject.subject_id)


def _position(share: PositionShare, seen: KnownPosition, now_ms: int) -> positions_pb2.WatchPositionsResponse:
    position = positions_pb2.LivePosition(subject=_subject(share), unknown=seen.unknown)
    if seen.fix is not None:
        position.lat_deg, position.lon_deg = lat_lon_deg(seen.fix.point)
        position.accuracy_m = seen.fix.accuracy_mm / 1000
        position.fix_time.CopyFrom(times.to_timestamp(seen.fix.time_ms))
        position.age_s = (now_ms - seen.fix.time_ms) / 1000
    elif seen.place is not None:
        middle, reach_mm = seen.place.around
        position.lat_deg, position.lon_deg = lat_lon_deg(middle)
        position.accuracy_m = reach_mm / 1000
    return positions_pb2.WatchPositionsResponse(position=position)


def _end(share: PositionShare, reason: End) -> positions_pb2.WatchPositionsResponse:
    end = positions_pb2.ShareEnd(subject=_subject(share), reason=positions_pb2.ShareEndReason.Value(reason.name))
    return positions_pb2.WatchPositionsResponse(end=end)
