"""gRPC servicer of live positions (rules in `domain/sharing.py`). No position leaves before its disclosure is on disk."""

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
"""Interval of the check of each share. Shares aren't checked at each log entry, so that a thousand readers don't delay an alert."""
_KINDS = {
    positions_pb2.WEARER: RecordKind.WEARER,
    positions_pb2.PROTECTED_PERSON: RecordKind.PROTECTED_PERSON,
    positions_pb2.PROTECTED_PLACE: RecordKind.ORDER,
}
_OF_KINDS = {kind: number for number, kind in _KINDS.items()}

Responses = AsyncIterator[positions_pb2.WatchPositionsResponse]


class PositionServicer(positions_pb2_grpc.PositionServiceServicer):
    """Serves PositionService from the evaluators of this process."""

    def __init__(
        self, evaluators: Iterable[Evaluator], outbox: DisclosureOutbox, clock: MeshClock, *, interval_s: float
    ) -> None:
        self._evaluators = tuple(evaluators)
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s

    async def WatchPositions(
        self, request: positions_pb2.WatchPositionsRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> Responses:
        role = Role.Name(server.caller().role)
        try:
            evaluator, query, shares = self._admit(request)
            opened = await self._outbox.begin([self._disclosure(query.legal_basis, share) for share in shares])
        except TandemError as error:
            logger().warning("sharing_refused", role=role, reason=str(error))
            raise
        logger().info("sharing_began", role=role, under=query.incident_id or query.order_id, subjects=len(shares))
        open_shares = dict(zip(shares, opened, strict=True))
        try:
            async for response in self._follow(evaluator, open_shares):
                yield response
        finally:
            for share in open_shares.values():
                self._outbox.end(share)

    def _admit(
        self, request: positions_pb2.WatchPositionsRequest
    ) -> tuple[Evaluator, PositionQuery, tuple[PositionShare, ...]]:
        query = _parse(request)
        sharing.check(query, server.caller().role, self._clock.now_ms())
        for evaluator in self._evaluators:
            if not evaluator.is_current:
                raise Unavailable("this evaluator is behind the log")
            shares = sharing.shares(evaluator.state, query)
            if shares:
                return evaluator, query, shares
        missing = "incident is open" if query.incident_id else "order is in force"
        raise FailedPrecondition(f"no such {missing} in the partitions of this evaluator: call another evaluator")

    async def _follow(self, evaluator: Evaluator, open_shares: dict[PositionShare, OpenShare]) -> Responses:
        """Streams the newest position of each subject until every share ends. A slow reader skips positions; none are queued."""
        loop = asyncio.get_running_loop()
        sent: dict[PositionShare, KnownPosition] = {}
        next_s = dict.fromkeys(open_shares, 0.0)
        while open_shares:
            for share in tuple(open_shares):
                # Check before each share, because a slow reader may have delayed the previous one.
                if not evaluator.is_current:
                    raise Unavailable("this evaluator is behind the log")
                reason = sharing.end_of(evaluator.state, share, max(evaluator.state.now_ms, self._clock.now_ms()))
                if reason is not None:
                    self._outbox.end(open_shares.pop(share))
                    logger().info("sharing_ended", reason=reason.name, under=share.incident_id or share.order_id)
                    yield _end(share, reason)
                    continue
                known = sharing.locate(evaluator.state, share)
                if loop.time() < next_s[share] or known == sent.get(share):
                    continue
                await open_shares[share].count()
                sent[share], next_s[share] = known, loop.time() + self._interval_s
                yield _position(share, known, evaluator.state.now_ms)
            if open_shares:
                await asyncio.sleep(min(CHECK_INTERVAL_S, self._interval_s))

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
        raise InvalidField("under", "is missing: set incident_id or order_id")
    fields.required_id(under, getattr(request, under))
    subjects = []
    for i, subject in enumerate(request.subjects):
        if subject.kind not in _KINDS:
            raise InvalidField(
                f"subjects[{i}].kind", "is no known kind (known: WEARER, PROTECTED_PERSON, PROTECTED_PLACE)"
            )
        parts = (
            subject.subject_id.split("/", 1) if subject.kind == positions_pb2.PROTECTED_PLACE else (subject.subject_id,)
        )
        for part in parts:
            fields.required_id(f"subjects[{i}].subject_id", part)
        subjects.append(Subject(_KINDS[subject.kind], subject.subject_id))
    expires_at_ms = fields.moment("expires_at", request.expires_at, request.HasField("expires_at"))
    return PositionQuery(
        incident_id=request.incident_id,
        order_id=request.order_id,
        legal_basis=request.legal_basis,
        subjects=tuple(subjects),
        expires_at_ms=expires_at_ms,
    )


def _subject(share: PositionShare) -> positions_pb2.Subject:
    return positions_pb2.Subject(kind=_OF_KINDS[share.subject.kind], subject_id=share.subject.subject_id)


def _position(share: PositionShare, known: KnownPosition, now_ms: int) -> positions_pb2.WatchPositionsResponse:
    position = positions_pb2.LivePosition(subject=_subject(share), unknown=known.unknown)
    if known.fix is not None:
        position.lat_deg, position.lon_deg = lat_lon_deg(known.fix.point)
        position.accuracy_m = known.fix.accuracy_mm / 1000
        position.fix_time.CopyFrom(times.to_timestamp(known.fix.time_ms))
        position.age_s = (now_ms - known.fix.time_ms) / 1000
    elif known.place is not None:
        center, radius_mm = known.place.bounding_ball
        position.lat_deg, position.lon_deg = lat_lon_deg(center)
        position.accuracy_m = radius_mm / 1000
    return positions_pb2.WatchPositionsResponse(position=position)


def _end(share: PositionShare, reason: End) -> positions_pb2.WatchPositionsResponse:
    end = positions_pb2.ShareEnd(subject=_subject(share), reason=positions_pb2.ShareEndReason.Value(reason.name))
    return positions_pb2.WatchPositionsResponse(end=end)
