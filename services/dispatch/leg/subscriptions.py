"""The desk's side of the steps: what is stored, then what happens, and again and again what waits for an answer."""

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
"""How often a waiting offer is sent again to each desk, wall time."""
WAITING_MAX = 1_000
"""Steps kept in memory for a slow desk; beyond it, the desk reads on from the store."""
_TICK_S = 0.5


@dataclass(frozen=True, slots=True)
class Numbered:
    """A step with its place in the leg's own order, 0 where it is sent again. The message is shared, never changed."""

    sequence: int
    step: dispatch_pb2.Step


class _DeskQueue:
    def __init__(self, others: bool, canaries: bool) -> None:
        self.others = others
        self.canaries = canaries
        self.waiting: deque[Numbered | dispatch_pb2.Assignment] = deque()
        self.reads_store = True
        self.wake = asyncio.Event()

    def shows(self, assignment: dispatch_pb2.Assignment) -> bool:
        return (assignment.exercise == exercise_pb2.CANARY) is self.canaries

    def tell(self, steps: Iterable[Numbered | dispatch_pb2.Assignment]) -> None:
        if not self.reads_store:
            self.waiting.extend(step for step in steps if self.shows(_assignment(step)))
            if len(self.waiting) > WAITING_MAX:
                self.waiting.clear()
                self.reads_store = True
        self.wake.set()


def _assignment(numbered: Numbered | dispatch_pb2.Assignment) -> dispatch_pb2.Assignment:
    return numbered.step.assignment if isinstance(numbered, Numbered) else numbered


class Subscriptions:
    """Hands the steps of one leg to the desks that follow it."""

    def __init__(self, unanswered: Iterable[Numbered]) -> None:
        self._desks: set[_DeskQueue] = set()
        self._unanswered = {one.step.assignment.assignment_id: one.step for one in unanswered}
        self._closed = False

    def tell(self, steps: Iterable[Numbered]) -> None:
        """Steps that are committed, in their order."""
        steps = tuple(steps)
        for step in steps:
            assignment = step.step.assignment
            if AssignmentState(assignment.state) in UNANSWERED:
                self._unanswered[assignment.assignment_id] = step.step
            else:
                self._unanswered.pop(assignment.assignment_id, None)
        for desk in self._desks:
            desk.tell(steps)

    def tell_others(self, rows: Iterable[PeerRow]) -> None:
        """What other legs' assignments became. A desk that is too slow for them finds them in the list of incidents."""
        desks = [desk for desk in self._desks if desk.others]
        if desks:
            told = [dispatch_pb2.Assignment.FromString(row.payload) for row in rows]
            for desk in desks:
                desk.tell(told)

    def tell_latencies(self, latency_ms: Mapping[str, float]) -> None:
        """How long offers took, by assignment; shown where they are sent again."""
        for assignment_id, ms in latency_ms.items():
            if assignment_id in self._unanswered:
                step = dispatch_pb2.Step()
                step.CopyFrom(self._unanswered[assignment_id])
                step.assignment.report_to_published_ms = ms
                self._unanswered[assignment_id] = step

    def close(self) -> None:
        """Ends all streams: the process stops, the desks connect again."""
        self._closed = True
        for desk in self._desks:
            desk.wake.set()

    async def follow(
        self, store: Store, after_sequence: int, others: bool = False, canaries: bool = False
    ) -> AsyncIterator[Numbered | dispatch_pb2.Assignment]:
        """All steps after a sequence, once and in order, and every 5 s what is unanswered; where it is asked for, also what other
        legs' assignments become. Either canaries or what isn't one. Ends with Unavailable."""
        position = after_sequence
        sent_s: dict[str, float] = {}
        with self._desk(others, canaries) as desk:
            while not self._closed:
                if desk.reads_store:
                    desk.reads_store = False  # before reading: what is committed from now on waits in memory as well
                    while rows := await store.steps_after(position):
                        for row in rows:
                            position = row.sequence
                            step = translate.stored_step(row)
                            if desk.shows(step.assignment):
                                sent_s[row.assignment_id] = time.monotonic()
                                yield Numbered(row.sequence, step)
                while desk.waiting:
                    one = desk.waiting.popleft()
                    if isinstance(one, dispatch_pb2.Assignment):
                        yield one
                    elif one.sequence > position:
                        position = one.sequence
                        sent_s[one.step.assignment.assignment_id] = time.monotonic()
                        yield one
                now_s = time.monotonic()
                sent_s = {id_: at_s for id_, at_s in sent_s.items() if id_ in self._unanswered}
                for id_ in [id_ for id_ in self._unanswered if now_s - sent_s.get(id_, -math.inf) >= REPEAT_S]:
                    # It may have been answered while another was sent.
                    if id_ in self._unanswered and desk.shows(self._unanswered[id_].assignment):
                        sent_s[id_] = now_s
                        yield Numbered(0, self._unanswered[id_])
                await self._wait(desk)
        raise Unavailable("the leg stops")

    async def _wait(self, desk: _DeskQueue) -> None:
        if desk.reads_store or desk.waiting:
            return
        desk.wake.clear()
        with suppress(TimeoutError):  # time to look for offers that are to be sent again
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
