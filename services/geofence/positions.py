"""gRPC servicer of live positions (rules in `domain/sharing.py`): the shares of each stream, and the events that the stream sends.

No position leaves before its disclosure is on disk. A stream works when a share may have changed, not at intervals.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import grpc.aio

from services.common import fields, times
from services.common.clock import MeshClock, Moments
from services.common.errors import FailedPrecondition, InvalidField, RetryableError, StoreFull, TandemError, Unavailable
from services.common.observability.outages import WORKS_AFTER_S, Outages
from services.common.observability.telemetry import logger
from services.common.privacy.grounds import Purpose, RecordKind
from services.common.rpc import server, statuses
from services.common.rpc.identity import Role
from services.geofence.consumer import Evaluator
from services.geofence.disclosures import DisclosureOutbox, OpenShare
from services.geofence.domain import sharing
from services.geofence.domain.geometry import lat_lon_deg
from services.geofence.domain.sharing import End, KnownPosition, PositionQuery, PositionShare, Subject
from services.geofence.domain.state import OpenIncident
from services.geofence.live_shares import LiveShare
from tandem.common.v1 import ledger_pb2, presence_pb2, subject_pb2
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
        query = _query_of(request)
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


EVENTS_PER_RESPONSE = 100
"""Shares that are checked for one response. A check takes some 10 us, during which the evaluator can't fold."""
MAX_REFUSALS = 1_000
"""Number of unsent refusals from which on no more shares are added, so that a caller that reads no answer fills no memory."""
LONGEST_SLEEP_S = 1.0
"""Interval, seconds, of the check whether the evaluators are current. It also bounds the delay after a step of the system clock."""
LOG_LAG_MS = 200
"""Delay of the next check when a moment has come by the clock and not by the log, milliseconds of mesh time."""


class ShareStream:
    """The shares of one stream."""

    def __init__(
        self, evaluators: Sequence[Evaluator], outbox: DisclosureOutbox, clock: MeshClock, *, interval_s: float
    ) -> None:
        self._evaluators = {evaluator.watched: evaluator for evaluator in evaluators}
        self._outbox = outbox
        self._clock = clock
        self._interval_s = interval_s
        self._shares: dict[int, LiveShare] = {}
        self._changed: dict[LiveShare, None] = {}
        """Shares to check, in the order in which they were marked."""
        self._limited: deque[LiveShare] = deque()
        """Shares whose next position has to wait, in the order of `next_s`."""
        self._moments: Moments[LiveShare] = Moments()
        """When time alone may change a share."""
        self._refusals: deque[positions_pb2.ShareEvent] = deque()
        self._refusals_sent = asyncio.Event()
        self._wake = asyncio.Event()
        self._is_ended = False
        self._failure: Exception | None = None

    # ── from the caller ──────────────────────────────────────────────────────────────────────────────────────────────

    def __contains__(self, number: int) -> bool:
        return number in self._shares

    def __len__(self) -> int:
        return len(self._shares)

    def add(self, share: LiveShare) -> None:
        """Follows an open share, whose number isn't in use."""
        self._shares[share.number] = share
        state = self._evaluators[share.watched].state
        share.watched.add(share, sharing.devices(state, share.right))
        self.mark(share)

    def refuse(self, number: int, error: TandemError) -> None:
        """Sends the refusal of a share."""
        self._refusals.append(_refused_event(number, error))
        self._wake.set()

    async def refusals_read(self) -> None:
        """Waits until fewer than MAX_REFUSALS refusals wait to be sent."""
        while len(self._refusals) >= MAX_REFUSALS:
            self._refusals_sent.clear()
            await self._refusals_sent.wait()

    def remove(self, number: int) -> None:
        """Ends a share that the caller no longer wants."""
        if (share := self._shares.get(number)) is not None:
            self._close(share)
            self._outbox.end(share.opened)

    def mark(self, share: LiveShare) -> None:
        """Marks a share that has to be checked."""
        self._changed[share] = None
        self._wake.set()

    def finish(self, failure: Exception | None = None) -> None:
        """Notes that the caller adds nothing more. The stream ends with its last share, or at once with a failure."""
        self._is_ended, self._failure = True, failure
        self._wake.set()

    def close(self) -> list[LiveShare]:
        """Stops following. Returns the shares that were open."""
        shares = list(self._shares.values())
        for share in shares:
            self._close(share)
        return shares

    # ── to the caller ────────────────────────────────────────────────────────────────────────────────────────────────

    async def responses(self) -> AsyncIterator[positions_pb2.FollowPositionsResponse]:
        """Yields events until the caller has finished and no share is left. Raises the failure that `finish` got.

        The reader's pace is this loop's pace, so a slow reader gets the newest position of each share, and nothing is queued.
        """
        while self._shares or self._refusals or not self._is_ended:
            if self._failure is not None:
                raise self._failure
            self._mark_due()
            shares = [share for share, _ in zip(self._changed, range(EVENTS_PER_RESPONSE), strict=False)]
            await self._allow([share for share in shares if share.opened.is_exhausted])
            events = [*self._events(shares), *self._refused()]
            if events:
                yield positions_pb2.FollowPositionsResponse(events=events)
            elif self._changed:
                await asyncio.sleep(0)  # marks without changes must not hold up the fold
            else:
                await self._wait()
        if self._failure is not None:
            raise self._failure

    async def _allow(self, shares: Sequence[LiveShare]) -> None:
        """Raises the counts on disk of shares that have none left. If the disk refuses, these shares are refused."""
        if not shares:
            return
        try:
            await self._outbox.allow([share.opened for share in shares])
        except Unavailable as error:
            for share in shares:
                if share.number in self._shares:
                    self._lose(share, error)

    def _refused(self) -> Iterable[positions_pb2.ShareEvent]:
        while self._refusals:
            yield self._refusals.popleft()
        self._refusals_sent.set()

    def _events(self, shares: Iterable[LiveShare]) -> Iterable[positions_pb2.ShareEvent]:
        """Checks shares. Doesn't await, so each event tells the state at one moment."""
        for share in shares:
            self._changed.pop(share, None)
            if self._shares.get(share.number) is share:
                yield from self._check(share)

    def _check(self, share: LiveShare) -> Iterable[positions_pb2.ShareEvent]:
        evaluator = self._evaluators[share.watched]
        if share.is_lost or not evaluator.is_current:
            self._lose(share, Unavailable("this evaluator is behind the log"))
            return
        if not share.is_announced:
            share.is_announced = True
            yield _opened_event(share.number, share.opened.disclosure_id)
        state, right = evaluator.state, share.right
        now_ms = max(state.now_ms, self._clock.now_ms())
        reason = sharing.end_of(state, right, now_ms)
        if reason is not None:
            self._close(share)
            self._outbox.end(share.opened)
            logger().info("sharing_ended", reason=reason.name, under=right.incident_id or right.order_id)
            yield _ended_event(share.number, reason)
            return
        share.watched.reindex(share, sharing.devices(state, right))
        known = sharing.locate(state, right)
        self._moments.set(share, max(sharing.next_change_ms(state, right, known), now_ms + LOG_LAG_MS))
        if known == share.sent:
            return
        now_s = asyncio.get_running_loop().time()
        if now_s < share.next_s:
            if not share.is_limited:
                share.is_limited = True
                self._limited.append(share)
            return
        share.opened.count()
        share.sent, share.next_s = known, now_s + self._interval_s
        yield _position_event(share.number, known, state.now_ms)

    def _lose(self, share: LiveShare, error: TandemError) -> None:
        """Ends a share that this evaluator can no longer serve."""
        self._close(share)
        self._outbox.end(share.opened)
        logger().warning(
            "sharing_interrupted", reason=error.reason, under=share.right.incident_id or share.right.order_id
        )
        self.refuse(share.number, error)

    def _close(self, share: LiveShare) -> None:
        del self._shares[share.number]
        self._changed.pop(share, None)
        self._moments.drop(share)
        share.watched.remove(share)

    # ── time ─────────────────────────────────────────────────────────────────────────────────────────────────────────

    def _mark_due(self) -> None:
        """Marks the shares that wait for a moment that has come, and the shares of evaluators that fell behind the log."""
        now_s = asyncio.get_running_loop().time()
        while self._limited and self._limited[0].next_s <= now_s:
            share = self._limited.popleft()
            share.is_limited = False
            self.mark(share)
        for share in self._moments.pop_due(self._clock.now_ms()):
            self.mark(share)
        for watched, evaluator in self._evaluators.items():
            if not evaluator.is_current:
                watched.mark_all()

    async def _wait(self) -> None:
        """Waits for a mark, but at most until the next moment."""
        within_s = LONGEST_SLEEP_S
        if self._limited:
            within_s = min(within_s, self._limited[0].next_s - asyncio.get_running_loop().time())
        if await self._moments.sleep(self._wake, self._clock, within_s=within_s):
            self._wake.clear()


_SUBJECT_KINDS = {
    subject_pb2.WEARER: RecordKind.WEARER,
    subject_pb2.PROTECTED_PERSON: RecordKind.PROTECTED_PERSON,
    subject_pb2.PROTECTED_PLACE: RecordKind.ORDER,
}


def _query_of(request: positions_pb2.ShareRequest) -> PositionQuery:
    """The query of a request. Raises InvalidField."""
    under = request.WhichOneof("under")
    if under is None:
        raise InvalidField("under", "is missing: set incident_id or order_id")
    fields.required_id(under, getattr(request, under))
    subject = request.subject
    if subject.kind not in _SUBJECT_KINDS:
        raise InvalidField("subject.kind", "is no known kind (known: WEARER, PROTECTED_PERSON, PROTECTED_PLACE)")
    is_place = subject.kind == subject_pb2.PROTECTED_PLACE
    for part in subject.subject_id.split("/", 1) if is_place else (subject.subject_id,):
        fields.required_id("subject.subject_id", part)
    return PositionQuery(
        incident_id=request.incident_id,
        order_id=request.order_id,
        legal_basis=request.legal_basis,
        subject=Subject(_SUBJECT_KINDS[subject.kind], subject.subject_id),
        expires_at_ms=fields.moment("expires_at", request.expires_at, request.HasField("expires_at")),
    )


def _opened_event(number: int, disclosure_id: str) -> positions_pb2.ShareEvent:
    """The event that a share is open."""
    return positions_pb2.ShareEvent(number=number, opened=positions_pb2.ShareOpened(disclosure_id=disclosure_id))


def _refused_event(number: int, error: TandemError) -> positions_pb2.ShareEvent:
    """The event that a share isn't served."""
    refusal = positions_pb2.ShareRefused(code=statuses.status_of(error).code, reason=error.reason)
    if isinstance(error, InvalidField):
        refusal.field = error.field
    if isinstance(error, RetryableError):
        refusal.retry_delay.FromMilliseconds(int(error.retry_after_s * 1000))
    return positions_pb2.ShareEvent(number=number, refused=refusal)


def _ended_event(number: int, reason: End) -> positions_pb2.ShareEvent:
    """The event that a share ended."""
    end = positions_pb2.ShareEnd(reason=positions_pb2.ShareEndReason.Value(reason.name))
    return positions_pb2.ShareEvent(number=number, end=end)


def _position_event(number: int, known: KnownPosition, now_ms: int) -> positions_pb2.ShareEvent:
    """The event of a subject's position, with its age at `now_ms`, the log's time."""
    event = positions_pb2.ShareEvent(number=number)
    shown = event.position
    shown.unknown = known.unknown
    if known.fix is not None:
        shown.lat_deg, shown.lon_deg = lat_lon_deg(known.fix.point)
        shown.accuracy_m = known.fix.accuracy_mm / 1000
        shown.fix_time.CopyFrom(times.to_timestamp(known.fix.time_ms))
        shown.age_s = (now_ms - known.fix.time_ms) / 1000
        shown.source = presence_pb2.PositionSource.ValueType(known.fix.source)
    elif known.place is not None:
        center, radius_mm = known.place.bounding_ball
        shown.lat_deg, shown.lon_deg = lat_lon_deg(center)
        shown.accuracy_m = radius_mm / 1000
    return event
