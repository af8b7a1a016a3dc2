"""The shares of one stream, and the events that the stream sends. It works when a share may have changed, not at intervals."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Sequence

from services.common.clock import MeshClock
from services.common.moments import Moments
from services.common.observability.telemetry import logger
from services.common.rpc.errors import TandemError, Unavailable
from services.geofence.consumer import Evaluator
from services.geofence.domain import sharing
from services.geofence.sharing import translate
from services.geofence.sharing.outbox import DisclosureOutbox
from services.geofence.sharing.watched import LiveShare
from tandem.geofence.v1 import positions_pb2

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
        self._outbox, self._clock, self._interval_s = outbox, clock, interval_s
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
        self._refusals.append(translate.refused(number, error))
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
            yield translate.opened(share.number, share.opened.disclosure_id)
        state, right = evaluator.state, share.right
        now_ms = max(state.now_ms, self._clock.now_ms())
        reason = sharing.end_of(state, right, now_ms)
        if reason is not None:
            self._close(share)
            self._outbox.end(share.opened)
            logger().info("sharing_ended", reason=reason.name, under=right.incident_id or right.order_id)
            yield translate.ended(share.number, reason)
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
        yield translate.position(share.number, known, state.now_ms)

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
