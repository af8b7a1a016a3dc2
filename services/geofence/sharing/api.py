"""gRPC servicer of live positions (rules in `domain/sharing.py`). No position leaves before its disclosure is on disk."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc.aio

from services.common.clock import MeshClock
from services.common.observability.outages import WORKS_AFTER_S, Outages
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc import server
from services.common.rpc.errors import FailedPrecondition, InvalidField, StoreFull, TandemError, Unavailable
from services.common.rpc.identity import Role
from services.geofence.consumer import Evaluator
from services.geofence.domain import sharing
from services.geofence.domain.sharing import PositionShare
from services.geofence.domain.state import OpenIncident
from services.geofence.sharing import translate
from services.geofence.sharing.outbox import DisclosureOutbox, OpenShare
from services.geofence.sharing.stream import ShareStream
from services.geofence.sharing.watched import LiveShare
from tandem.common.v1 import ledger_pb2
from tandem.geofence.v1 import positions_pb2, positions_pb2_grpc

_REFUSALS = Outages("sharing_refused", "sharing_accepted")
MAX_ADDS = 1_000
"""Maximum number of shares that one request adds."""
ADDS_PER_STEP = 100
"""Shares that are admitted at a time, some 2 ms, and then written in one transaction."""
MAX_SHARES = 50_000
"""Maximum number of shares of one stream."""

Requests = AsyncIterator[positions_pb2.FollowPositionsRequest]
Responses = AsyncIterator[positions_pb2.FollowPositionsResponse]


class _Admitted(NamedTuple):
    """A share that the caller may have."""

    number: int
    legal_basis: str
    right: PositionShare
    evaluator: Evaluator


class _ShareKey(NamedTuple):
    """Identifies a share across streams."""

    recipient: str
    legal_basis: str
    right: PositionShare


class PositionServicer(positions_pb2_grpc.PositionServiceServicer):
    """Serves PositionService from the evaluators of this process."""

    def __init__(
        self, evaluators: Iterable[Evaluator], outbox: DisclosureOutbox, clock: MeshClock, *, interval_s: float
    ) -> None:
        self._evaluators = tuple(evaluators)
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s

    async def FollowPositions(self, requests: Requests, context: grpc.aio.ServicerContext[Any, Any]) -> Responses:
        """Opens, follows and ends shares as the caller adds and removes them."""
        # The caller waits for these headers to know that the evaluator answers, since it may have nothing to add yet.
        await context.send_initial_metadata(())
        stream = ShareStream(self._evaluators, self._outbox, self._clock, interval_s=self._interval_s)
        reading = asyncio.create_task(self._read(requests, stream))
        try:
            async for response in stream.responses():
                yield response
        finally:
            reading.cancel()
            recipient = server.caller().spiffe_id
            for share in stream.close():
                self._outbox.suspend(_ShareKey(recipient, share.legal_basis, share.right), share.opened)

    async def _read(self, requests: Requests, stream: ShareStream) -> None:
        failure: Exception | None = None
        try:
            async for request in requests:
                for number in request.removes:
                    stream.remove(number)
                _require_new_numbers(request, stream)
                for first in range(0, len(request.adds), ADDS_PER_STEP):
                    await stream.refusals_read()
                    await self._add(request.adds[first : first + ADDS_PER_STEP], stream)
        except Exception as error:  # `responses` raises it in the call
            failure = error
        stream.finish(failure)

    async def _add(self, requests: Sequence[positions_pb2.ShareRequest], stream: ShareStream) -> None:
        """Opens shares, all in one transaction, or refuses each."""
        incidents = {evaluator: sharing.incidents_by_id(evaluator.state) for evaluator in self._evaluators}
        admitted: list[_Admitted] = []
        for request in requests:
            try:
                if len(stream) + len(admitted) >= MAX_SHARES:
                    raise StoreFull(f"a stream has at most {MAX_SHARES} shares", retry_after_s=60.0)
                admitted.append(self._admit(request, incidents))
            except TandemError as error:
                role = Role.Name(server.caller().role)
                _REFUSALS.failed({"role": role}, str(error), logging.WARNING)
                stream.refuse(request.number, error)
        recipient = server.caller().spiffe_id
        opened: dict[_Admitted, OpenShare] = {}
        for share in admitted:
            suspended = self._outbox.resume(_ShareKey(recipient, share.legal_basis, share.right))
            if suspended is not None:
                opened[share] = suspended
        new = [share for share in admitted if share not in opened]
        for share, open_share in opened.items():
            stream.add(_live(share, open_share, stream))
        if new:
            await self._begin(new, stream)
        await asyncio.sleep(0)  # a long request must not delay the fold

    async def _begin(self, new: Sequence[_Admitted], stream: ShareStream) -> None:
        try:
            opened = await self._outbox.begin([self._disclosure(share) for share in new])
        except Unavailable as error:
            for share in new:
                stream.refuse(share.number, error)
            _REFUSALS.failed({"role": Role.Name(server.caller().role)}, error.reason, logging.WARNING)
            return
        for share, open_share in zip(new, opened, strict=True):
            stream.add(_live(share, open_share, stream))
        role = Role.Name(server.caller().role)
        _REFUSALS.succeeded({"role": role}, WORKS_AFTER_S)
        for under, count in Counter(share.right.incident_id or share.right.order_id for share in new).items():
            logger().info("sharing_began", role=role, under=under, subjects=count)

    def _admit(
        self, request: positions_pb2.ShareRequest, incidents: Mapping[Evaluator, Mapping[str, OpenIncident]]
    ) -> _Admitted:
        query = translate.query_of(request)
        sharing.check(query, server.caller().role, self._clock.now_ms())
        for evaluator in self._evaluators:
            if not evaluator.is_current:
                raise Unavailable("this evaluator is behind the log")
            right = sharing.share_of(evaluator.state, query, incidents[evaluator])
            if right is not None:
                return _Admitted(number=request.number, legal_basis=query.legal_basis, right=right, evaluator=evaluator)
        missing = "incident is open" if query.incident_id else "order is in force"
        raise FailedPrecondition(f"no such {missing} in the partitions of this evaluator: call another evaluator")

    def _disclosure(self, share: _Admitted) -> ledger_pb2.Disclosure:
        who, right = server.caller().spiffe_id, share.right
        return ledger_pb2.Disclosure(
            disclosure_id=f"share-{uuid.uuid4().hex}",
            at_ms=self._clock.now_ms(),
            who=who,
            legal_basis=share.legal_basis,
            purpose=Purpose.ENFORCEMENT.value,
            reference=right.incident_id or right.case_id,
            record_kind=right.subject.kind.value,
            record_id=right.order_id if right.subject.kind is RecordKind.ORDER else right.subject.subject_id,
            order_id=right.order_id,
            recipient=who,
            expires_at_ms=right.expires_at_ms,
        )


def _live(share: _Admitted, opened: OpenShare, stream: ShareStream) -> LiveShare:
    return LiveShare(
        number=share.number,
        right=share.right,
        legal_basis=share.legal_basis,
        opened=opened,
        watched=share.evaluator.watched,
        mark=stream.mark,
    )


def _require_new_numbers(request: positions_pb2.FollowPositionsRequest, stream: ShareStream) -> None:
    """Raises InvalidField unless each added share has a number of its own."""
    if len(request.adds) > MAX_ADDS:
        raise InvalidField("adds", f"name at most {MAX_ADDS} shares in a request")
    numbers = Counter(share.number for share in request.adds)
    for i, share in enumerate(request.adds):
        if not share.number:
            raise InvalidField(f"adds[{i}].number", "is missing: number the shares from 1")
        if share.number in stream or numbers[share.number] > 1:
            raise InvalidField(f"adds[{i}].number", f"{share.number} is in use in this stream")
