"""Subscriptions of desks to a leg's steps: stored steps first, then new ones, and unanswered offers every 5 s."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from services.common.rpc.errors import Unavailable
from services.dispatch.domain.incident import UNANSWERED, AssignmentState
from services.dispatch.leg import translate
from services.dispatch.leg.store import PeerRow, Store
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

REPEAT_S = 5.0
"""Interval at which an unanswered offer is repeated to each desk, seconds of wall time."""
WAITING_MAX = 1_000
"""Maximum number of steps in memory for a slow desk; with more, the desk reads them from the store."""
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Numbered:
    """A step with its sequence in the leg's own order; 0 for a repeated offer. The message is shared and must not be changed."""

    sequence: int
    step: dispatch_pb2.Step


class _DeskQueue:
    """Queue of steps for one subscribed desk."""

    def __init__(self, others: bool, canaries: bool) -> None:
        self.others = others
        self.canaries = canaries
        self.waiting: deque[Numbered | dispatch_pb2.Assignment] = deque()
        self.reads_store = True
        self.wake = asyncio.Event()

    def shows(self, assignment: dispatch_pb2.Assignment) -> bool:
        return (assignment.exercise == exercise_pb2.CANARY) is self.canaries

    def add(self, steps: Iterable[Numbered | dispatch_pb2.Assignment]) -> None:
        if not self.reads_store:
            self.waiting.extend(step for step in steps if self.shows(_assignment(step)))
            if len(self.waiting) > WAITING_MAX:
                self.waiting.clear()
                self.reads_store = True
        self.wake.set()


def _assignment(numbered: Numbered | dispatch_pb2.Assignment) -> dispatch_pb2.Assignment:
    return numbered.step.assignment if isinstance(numbered, Numbered) else numbered


class Subscriptions:
    """Distributes the steps of one leg to the desks that subscribe to it."""

    def __init__(self, unanswered: Iterable[Numbered]) -> None:
        self._desks: set[_DeskQueue] = set()
        self._unanswered = {numbered.step.assignment.assignment_id: numbered.step for numbered in unanswered}
        self._closed = False

    def notify(self, steps: Iterable[Numbered]) -> None:
        """Sends committed steps to the desks, in their order."""
        steps = tuple(steps)
        for step in steps:
            assignment = step.step.assignment
            if AssignmentState(assignment.state) in UNANSWERED:
                self._unanswered[assignment.assignment_id] = step.step
            else:
                self._unanswered.pop(assignment.assignment_id, None)
        for desk in self._desks:
            desk.add(steps)

    def notify_others(self, rows: Iterable[PeerRow]) -> None:
        """Sends other legs' assignments to the desks that want them. A slow desk may miss some and finds them by ListIncidents."""
        desks = [desk for desk in self._desks if desk.others]
        if desks:
            assignments = [dispatch_pb2.Assignment.FromString(row.payload) for row in rows]
            for desk in desks:
                desk.add(assignments)

    def update_latencies(self, latency_ms: Mapping[str, float]) -> None:
        """Stores the latency of offers by assignment, milliseconds, for repeated offers."""
        for assignment_id, ms in latency_ms.items():
            if assignment_id in self._unanswered:
                step = dispatch_pb2.Step()
                step.CopyFrom(self._unanswered[assignment_id])
                step.assignment.report_to_published_ms = ms
                self._unanswered[assignment_id] = step

    def close(self) -> None:
        """Ends all streams because the process stops. The desks reconnect."""
        self._closed = True
        for desk in self._desks:
            desk.wake.set()

    async def follow(
        self, store: Store, after_sequence: int, others: bool = False, *, canaries: bool = False
    ) -> AsyncIterator[Numbered | dispatch_pb2.Assignment]:
        """All steps after a sequence, once and in order, and unanswered offers every 5 s; with `others`, other legs' assignments too.

        Yields either only canaries or everything else. Ends with Unavailable.
        """
        position = after_sequence
        sent_s: dict[str, float] = {}
        with self._desk(others, canaries) as desk:
            while not self._closed:
                if desk.reads_store:
                    desk.reads_store = False  # set before reading, so that steps committed meanwhile wait in memory
                    while rows := await store.steps_after(position):
                        for row in rows:
                            position = row.sequence
                            step = translate.stored_step(row)
                            if desk.shows(step.assignment):
                                sent_s[row.assignment_id] = time.monotonic()
                                yield Numbered(row.sequence, step)
                while desk.waiting:
                    item = desk.waiting.popleft()
                    if isinstance(item, dispatch_pb2.Assignment):
                        yield item
                    elif item.sequence > position:
                        position = item.sequence
                        sent_s[item.step.assignment.assignment_id] = time.monotonic()
                        yield item
                now_s = time.monotonic()
                sent_s = {id_: at_s for id_, at_s in sent_s.items() if id_ in self._unanswered}
                for id_ in [id_ for id_ in self._unanswered if now_s - sent_s.get(id_, -math.inf) >= REPEAT_S]:
                    # The desk may have answered this offer while another one was sent.
                    if id_ in self._unanswered and desk.shows(self._unanswered[id_].assignment):
                        sent_s[id_] = now_s
                        yield Numbered(0, self._unanswered[id_])
                await self._wait(desk)
        raise Unavailable("the leg stops: connect again")

    async def _wait(self, desk: _DeskQueue) -> None:
        if desk.reads_store or desk.waiting:
            return
        desk.wake.clear()
        with suppress(TimeoutError):  # on timeout the caller checks for offers to repeat
            async with asyncio.timeout(_TICK_S):
                await desk.wake.wait()

    @contextmanager
    def _desk(self, others: bool, canaries: bool = False) -> Iterator[_DeskQueue]:
        desk = _DeskQueue(others, canaries)
        self._desks.add(desk)
        try:
            yield desk
        finally:
            self._desks.discard(desk)
