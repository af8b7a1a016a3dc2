"""What changed in a leg: steps for the desks that subscribe, changed incidents for the leg's own readers, and points of the list.

A subscribed desk gets the stored steps first, then new ones, and unanswered offers every 5 s. A reader of changes works for each
change, and not for each open incident. The points of the list number its changes, so that a reader gets what
changed since its last answer, and not all again. They are kept in memory: after a restart, and after MAX_CHANGED other incidents have
changed, a reader has to read the whole list.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from itertools import takewhile
from operator import itemgetter
from typing import NamedTuple, TypeAlias, assert_never

from services.common.errors import InvalidField, TooMuchInProgress, Unavailable
from services.dispatch.domain.assignment import UNANSWERED, AssignmentState
from services.dispatch.domain.incident import Incident
from services.dispatch.leg.tables import PeerRow, StepRow
from services.dispatch.leg.translate import NumberedStep, numbered
from tandem.common.v1 import exercise_pb2
from tandem.dispatch.v1 import dispatch_pb2

REPEAT_S = 5.0
"""Interval at which an unanswered offer is repeated to each desk, seconds of wall time."""
REPEAT_TOGETHER_S = 0.5
"""Time by which an offer may be repeated sooner, together with another one, seconds: a desk is woken for many at once."""
OFFERS_AFTER_S = 0.5
"""Time after which a desk that waits for earlier steps gets the unanswered offers, seconds, although their own steps come later."""
MAX_OF_DESK = 64
"""Maximum number of subscriptions of one desk. A further one ends the oldest: a program that forgets its streams keeps its newest
one, and takes no memory and no reading of the store from others."""
WAITING_MAX = 1_000
"""Maximum number of steps in memory for a slow desk. Beyond it, the steps for the desk are read from the store."""


DeskItem: TypeAlias = NumberedStep | dispatch_pb2.Assignment
"""A step of this leg, or another leg's assignment."""
Wants: TypeAlias = Callable[[dispatch_pb2.Assignment], bool]
"""Whether a desk wants an assignment. It isn't woken for others."""


def is_canary(assignment: dispatch_pb2.Assignment) -> bool:
    """Whether an assignment is for the watch."""
    return assignment.exercise == exercise_pb2.CANARY


def is_no_canary(assignment: dispatch_pb2.Assignment) -> bool:
    """Whether an assignment is for the desks."""
    return not is_canary(assignment)


class _DeskQueue:
    """Queue of steps for one subscribed desk."""

    def __init__(self, after_sequence: int, others: bool, wants: Wants) -> None:
        self.position = after_sequence
        """Sequence of the last step that was sent to the desk or skipped for it."""
        self.is_displaced = False
        """Whether a newer subscription of the same desk has taken this one's place."""
        self.others = others
        self.wants = wants
        self.waiting: deque[DeskItem] = deque()
        self.reads_store = True
        self.sent_s: dict[str, float] = {}
        """Time, on the monotonic clock, at which a step of each assignment was last sent, by assignment id, the earliest first."""
        self.wake = asyncio.Event()

    def note_sent(self, assignment_id: str, at_s: float) -> None:
        self.sent_s.pop(assignment_id, None)
        self.sent_s[assignment_id] = at_s

    def add(self, items: Iterable[DeskItem]) -> None:
        if not self.reads_store:
            self.waiting.extend(item for item in items if self.wants(_assignment(item)))
            if len(self.waiting) > WAITING_MAX:
                self.waiting.clear()
                self.reads_store = True
        if self.reads_store or self.waiting:
            self.wake.set()

    def stored(self, rows: Iterable[StepRow]) -> Iterator[NumberedStep]:
        """Yields the stored steps that the desk may see. They count as sent."""
        for step in numbered(rows):
            self.position = step.sequence
            if self.wants(step.step.assignment):
                self.note_sent(step.step.assignment.assignment_id, time.monotonic())
                yield step

    def in_memory(self) -> Iterator[DeskItem]:
        """Steps in memory that the desk hasn't got yet, and other legs' assignments. They count as sent."""
        while self.waiting:
            match self.waiting.popleft():
                case NumberedStep() as step:
                    if step.sequence > self.position:
                        self.position = step.sequence
                        self.note_sent(step.step.assignment.assignment_id, time.monotonic())
                        yield step
                case dispatch_pb2.Assignment() as other:
                    yield other
                case _ as never:
                    assert_never(never)

    async def wait(self) -> None:
        """Returns when there may be something to send: new steps, or an offer to repeat."""
        if self.reads_store or self.waiting:
            return
        earliest_s = next(iter(self.sent_s.values()), None)
        with suppress(TimeoutError):
            async with asyncio.timeout(None if earliest_s is None else earliest_s + REPEAT_S - time.monotonic()):
                await self.wake.wait()


def _assignment(item: DeskItem) -> dispatch_pb2.Assignment:
    match item:
        case NumberedStep():
            return item.step.assignment
        case dispatch_pb2.Assignment():
            return item
        case _:
            assert_never(item)


class Subscriptions:
    """Distributes the steps of one leg to the desks that subscribe to it."""

    def __init__(self, unanswered: Iterable[NumberedStep]) -> None:
        self._desks: dict[_DeskQueue, str] = {}
        """SPIFFE id of each subscription's desk, in the order in which they came."""
        self._unanswered = {step.step.assignment.assignment_id: step.step for step in unanswered}
        self._closed = False

    def notify(self, steps: Iterable[NumberedStep]) -> None:
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
        """Sends other legs' assignments to the desks that want them. A slow desk may miss some, and gets these from ListIncidents."""
        desks = [desk for desk in self._desks if desk.others]
        if desks:
            assignments = [dispatch_pb2.Assignment.FromString(row.payload) for row in rows]
            for desk in desks:
                desk.add(assignments)

    def update_latencies(self, latency_ms: Mapping[str, float]) -> None:
        """Adds latencies to the offers that will be repeated. `latency_ms` is in milliseconds, by assignment id."""
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
        self,
        page_after: Callable[[int], Awaitable[Sequence[StepRow]]],
        after_sequence: int,
        others: bool = False,
        *,
        who: str,
        wants: Wants = is_no_canary,
    ) -> AsyncGenerator[DeskItem, None]:
        """Yields all steps after a sequence, once and in order, and unanswered offers every 5 s.

        `page_after` reads a page of stored steps after a sequence, empty at the end. It may wait for other readers, so unanswered
        offers are yielded before each page. With `others`, yields other legs' assignments too. Omits the assignments that the
        desk doesn't want. `who` is the SPIFFE id of the desk. Raises Unavailable when the process stops, and TooMuchInProgress if the
        desk has opened MAX_OF_DESK newer subscriptions.
        """
        with self._desk(after_sequence, others, wants, who=who) as desk:
            async with aclosing(self._items(desk, page_after)) as items:
                async for item in items:
                    if desk.is_displaced:
                        break
                    yield item
        if desk.is_displaced:
            raise TooMuchInProgress(
                f"this desk has opened {MAX_OF_DESK} newer subscriptions: close those that aren't needed"
            )
        raise Unavailable("the leg stops: connect again")

    def _is_over(self, desk: _DeskQueue) -> bool:
        return self._closed or desk.is_displaced

    async def _items(
        self, desk: _DeskQueue, page_after: Callable[[int], Awaitable[Sequence[StepRow]]]
    ) -> AsyncGenerator[DeskItem, None]:
        """What is sent to a desk, until its subscription is over."""
        while not self._is_over(desk):
            desk.wake.clear()  # before anything is sent, so that no change meanwhile is missed
            if desk.reads_store:
                desk.reads_store = False  # set before reading, so that steps committed meanwhile wait in memory
                async with aclosing(self._catch_up(desk, page_after)) as steps:
                    async for step in steps:
                        yield step
            for item in desk.in_memory():
                yield item
            for step in self._repeated(desk):
                yield step
            await desk.wait()

    async def _catch_up(
        self, desk: _DeskQueue, page_after: Callable[[int], Awaitable[Sequence[StepRow]]]
    ) -> AsyncGenerator[NumberedStep, None]:
        """The stored steps after the desk's position. While a page isn't read within OFFERS_AFTER_S, unanswered offers go first."""
        while True:
            reading = asyncio.ensure_future(page_after(desk.position))
            try:
                await asyncio.wait({reading}, timeout=OFFERS_AFTER_S)
                while not reading.done() and not self._is_over(desk):
                    desk.wake.clear()
                    # Offers that were committed meanwhile wait in memory behind the page. They are as urgent as the earlier ones.
                    unsent = dict.fromkeys(self._unanswered, -math.inf) | desk.sent_s
                    desk.sent_s = dict(sorted(unsent.items(), key=itemgetter(1)))
                    for step in self._repeated(desk):
                        yield step
                    woken = asyncio.ensure_future(desk.wake.wait())
                    await asyncio.wait({reading, woken}, timeout=REPEAT_S, return_when=asyncio.FIRST_COMPLETED)
                    woken.cancel()
                if self._is_over(desk):
                    return
            finally:
                reading.cancel()
            rows = reading.result()
            if not rows:
                return
            for step in desk.stored(rows):
                yield step

    def _repeated(self, desk: _DeskQueue) -> Iterator[NumberedStep]:
        """Unanswered offers that weren't sent to the desk within about the last REPEAT_S. They count as sent."""
        now_s = time.monotonic()
        due_s = now_s - max(REPEAT_S - REPEAT_TOGETHER_S, REPEAT_S / 2)
        for id_ in list(takewhile(lambda id_: desk.sent_s[id_] <= due_s, desk.sent_s)):
            # The desk may have answered this offer while another offer was sent.
            if id_ in self._unanswered and desk.wants(self._unanswered[id_].assignment):
                desk.note_sent(id_, now_s)
                yield NumberedStep(0, self._unanswered[id_])
            else:
                desk.sent_s.pop(id_, None)

    @contextmanager
    def _desk(self, after_sequence: int, others: bool, wants: Wants, *, who: str) -> Iterator[_DeskQueue]:
        same = [desk for desk, other in self._desks.items() if other == who]
        for oldest in same[: max(0, len(same) + 1 - MAX_OF_DESK)]:
            del self._desks[oldest]
            oldest.is_displaced = True
            oldest.wake.set()
        desk = _DeskQueue(after_sequence, others, wants)
        desk.sent_s = dict.fromkeys(self._unanswered, -math.inf)
        self._desks[desk] = who
        try:
            yield desk
        finally:
            self._desks.pop(desk, None)


class Changes(NamedTuple):
    """Changes since the reader last asked."""

    incidents: dict[str, Incident]
    """Changed incidents by id, each as it is now. At first, all open incidents."""
    units: set[str]
    """Units that reported, or whose registration changed."""


class ChangedIncidents:
    """Changes for one reader. Only the newest state of each incident is kept."""

    def __init__(self) -> None:
        self._changes = Changes({}, set())
        self._event = asyncio.Event()

    def put(self, incidents: Iterable[Incident], units: Iterable[str] = ()) -> None:
        """Notes changes."""
        self._changes.incidents.update((incident.incident_id, incident) for incident in incidents)
        self._changes.units.update(units)
        if self._changes.incidents or self._changes.units:
            self._event.set()

    def reset(self, incidents: Iterable[Incident]) -> None:
        """Replaces the noted incidents by all that were read later."""
        self._changes.incidents.clear()
        self.put(incidents)

    async def next(self) -> Changes:
        """Returns the changes, once there are any."""
        await self._event.wait()
        self._event.clear()
        changes, self._changes = self._changes, Changes({}, set())
        return changes


class ChangeReaders:
    """The readers of one record's changes."""

    def __init__(self) -> None:
        self._readers: list[ChangedIncidents] = []

    @asynccontextmanager
    async def reading(
        self, open_incidents: Callable[[], Awaitable[Iterable[Incident]]]
    ) -> AsyncIterator[ChangedIncidents]:
        """A reader that gets the result of `open_incidents`, and then each change."""
        reader = ChangedIncidents()
        # First the reader, so that no change between the two is missed.
        self._readers.append(reader)
        try:
            reader.reset(await open_incidents())
            yield reader
        finally:
            self._readers.remove(reader)

    def notify(self, incidents: Iterable[Incident], units: Iterable[str]) -> None:
        """Tells all readers of changes."""
        if self._readers:
            incidents, units = list(incidents), list(units)
            for reader in self._readers:
                reader.put(incidents, units)


MAX_CHANGED = 20_000
"""Maximum number of changed incidents that are remembered. The incident that changed longest ago is forgotten first."""
_MAX_DIGITS = 18


class ChangedPage(NamedTuple):
    """Incidents that changed after a point."""

    incident_ids: list[str]
    """The incident that changed longest ago comes first."""
    point: str
    """Point up to which the changes are known with this page."""
    has_more: bool
    """Whether other incidents changed after `point`."""


class ListingChanges:
    """Numbered changes of the incidents that one process of a leg lists."""

    def __init__(self) -> None:
        self._start = secrets.token_hex(4)
        """Tells the points of this start from those of other processes and earlier starts."""
        self._number = self._forgotten = 0
        self._changed: OrderedDict[str, int] = OrderedDict()
        """Number of the last change of each incident, ascending."""

    @property
    def point(self) -> str:
        """The present point. Read it before the store, so that no change falls between the two."""
        return self._point(self._number)

    def note(self, incident_ids: Iterable[str]) -> None:
        """Notes that these incidents are listed differently from now on. Call it after the commit."""
        for incident_id in incident_ids:
            self._number += 1
            self._changed[incident_id] = self._number
            self._changed.move_to_end(incident_id)
        while len(self._changed) > MAX_CHANGED:
            self._forgotten = self._changed.popitem(last=False)[1]

    def since(self, point: str, limit: int) -> ChangedPage | None:
        """At most `limit` incidents that changed after a point; None if this process doesn't know the changes since then.

        Raises InvalidField if the text is no point.
        """
        start, _, digits = point.partition("-")
        if not (start.isalnum() and digits.isascii() and digits.isdigit() and len(digits) <= _MAX_DIGITS):
            raise InvalidField(
                "changed_after", f'isn\'t a point of a list: use `changes` of an answer, such as "{self.point}"'
            )
        seen = int(digits)
        if start != self._start or not self._forgotten <= seen <= self._number:
            return None
        changed: list[str] = []
        for incident_id, number in reversed(self._changed.items()):
            if number <= seen:
                break
            changed.append(incident_id)
        page = changed[::-1][:limit]
        if len(page) == len(changed):
            return ChangedPage(page, self.point, has_more=False)
        return ChangedPage(page, self._point(self._changed[page[-1]]), has_more=True)

    def _point(self, number: int) -> str:
        return f"{self._start}-{number}"
