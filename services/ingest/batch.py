"""A batch of reports, from its receipt until its answer: one object with named states.

```
GATHERING ──check()──▶ CHECKING ──write()──▶ WRITING ──last entry stored()──▶ DURABLE
    └──────────────────────┴────────fail()──────┴─────── an entry failed ─────▶ FAILED
```

The endpoints gather requests into a batch, the intake checks and writes its reports, and the log writers note in the batch whether each
entry was stored. A batch that may be answered wakes the streams and calls that wait for it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, assert_never

from services.common.errors import InvalidField
from services.ingest.domain import (
    ContactReport,
    EquipmentEvent,
    Position,
    Positions,
    Reason,
    Refusal,
    Report,
    ReportedCharge,
    UnitPresence,
)

Contexts: TypeAlias = Sequence[tuple[int, str]]
"""Runs of consecutive positions with the same W3C trace context: the number of positions and the context of each run."""


@dataclass(slots=True)
class Reports:
    """Reports of a batch as an endpoint has read them."""

    count: int
    """Number of reports in the batch, including the unreadable ones."""
    positions: Positions
    position_indexes: Sequence[int]
    """Index of each position in the batch."""
    events: Sequence[EquipmentEvent] = ()
    event_indexes: Sequence[int] = ()
    presences: Sequence[UnitPresence] = ()
    presence_indexes: Sequence[int] = ()
    contacts: Sequence[ContactReport] = ()
    contact_indexes: Sequence[int] = ()
    unreadable: Sequence[Refusal] = ()
    charges: Sequence[ReportedCharge] = ()
    """Battery charges that came with positions, of devices that aren't checked yet."""
    claimed: Mapping[int, str] = field(default_factory=dict)
    """Device id in each unreadable report, by the report's index in the batch. Empty if the report has none."""
    contexts: Contexts = ()
    """Trace contexts of the positions, if these came with different contexts. Empty if all have the context of the current task."""
    is_backfill: bool = False
    """Whether the sender declares that the reports were buffered, so that they may use the backfill lane whatever their age."""

    @classmethod
    def of(cls, read: Sequence[Report | InvalidField], claimed: Sequence[str]) -> Reports:
        """Makes a batch's reports from items that were read one by one.

        Each item of `read` is a report, or the error in it. `claimed` holds the device id of each item.
        """
        positions: dict[int, Position] = {}
        events: dict[int, EquipmentEvent] = {}
        presences: dict[int, UnitPresence] = {}
        contacts: dict[int, ContactReport] = {}
        unreadable: dict[int, Refusal] = {}
        for i, report in enumerate(read):
            match report:
                case Position():
                    positions[i] = report
                case EquipmentEvent():
                    events[i] = report
                case UnitPresence():
                    presences[i] = report
                case ContactReport():
                    contacts[i] = report
                case InvalidField(field=field_name, reason=reason):
                    unreadable[i] = Refusal(index=i, field=field_name, reason=reason, code=Reason.INVALID)
                case _:
                    assert_never(report)
        return cls(
            count=len(read),
            positions=Positions.of(list(positions.values())),
            position_indexes=list(positions),
            events=list(events.values()),
            event_indexes=list(events),
            presences=list(presences.values()),
            presence_indexes=list(presences),
            contacts=list(contacts.values()),
            contact_indexes=list(contacts),
            unreadable=list(unreadable.values()),
            claimed={i: claimed[i] for i in unreadable},
        )


class BatchState(enum.Enum):
    """State of a batch on its way from the endpoint into the log."""

    GATHERING = "gathering"
    """Requests may still join the batch."""
    CHECKING = "checking"
    """The batch waits for its share of the reports in flight, and then its reports are checked."""
    WRITING = "writing"
    """The accepted reports are on their way into the log."""
    DURABLE = "durable"
    """All accepted reports are in the log."""
    FAILED = "failed"
    """Accepted reports may be missing in the log, so the sender must send the whole batch again."""


_ENDED = (BatchState.DURABLE, BatchState.FAILED)


class Batch:
    """Reports of a sender that are checked, written and answered together."""

    __slots__ = ("_entries", "_is_delayed", "_on_written", "_state", "_waiting", "device_ids", "error", "refusals")

    def __init__(self) -> None:
        self.refusals: Sequence[Refusal] = ()
        """Refused reports, in the order of the reports; known from WRITING on."""
        self.device_ids: Sequence[str] = ()
        """Devices of the accepted reports; known from WRITING on."""
        self.error: Exception | None = None
        """Error that made the batch fail, or None."""
        self._state = BatchState.GATHERING
        self._entries = 0
        """Number of the batch's log entries that aren't stored yet."""
        self._on_written: Callable[[bool], None] | None = None
        self._is_delayed = False
        self._waiting: list[asyncio.Event] = []
        """Events to set once the batch may be answered."""

    @property
    def state(self) -> BatchState:
        """State of the batch."""
        return self._state

    @property
    def may_be_answered(self) -> bool:
        """Whether the batch is DURABLE or FAILED, and the penalty delay for its refused reports is over."""
        return self._state in _ENDED and not self._is_delayed

    # ── transitions ──────────────────────────────────────────────────────────────────────────────────────────────────

    def join(self, changed: asyncio.Event) -> None:
        """Adds a request. `changed` is set once the batch may be answered."""
        self._require(BatchState.GATHERING)
        self._waiting.append(changed)

    def check(self) -> None:
        """Begins the checks; from now on no request may join."""
        self._require(BatchState.GATHERING)
        self._state = BatchState.CHECKING

    def add_entry(self) -> None:
        """Counts an entry that a log writer has queued. The writer calls `stored` for the entry later, never at once."""
        self._require(BatchState.CHECKING)
        self._entries += 1

    def write(
        self,
        refusals: Sequence[Refusal] = (),
        device_ids: Sequence[str] = (),
        on_written: Callable[[bool], None] | None = None,
    ) -> None:
        """Ends the checks: all entries are added.

        `on_written` is called once, when no entry is on its way any more. Its argument is whether all entries are stored.
        """
        self._require(BatchState.CHECKING)
        self.refusals = refusals
        self.device_ids = device_ids
        self._on_written = on_written
        self._state = BatchState.WRITING
        if not self._entries:
            self._end_writing()

    def stored(self, error: Exception | None = None) -> None:
        """Notes that an entry is stored. With an `error`, the entry may be missing in the log."""
        self._require(BatchState.WRITING, BatchState.FAILED)
        self._entries -= 1
        self.error = self.error or error
        if not self._entries:
            self._end_writing()

    def fail(self, error: Exception) -> None:
        """Fails the whole batch. Entries on their way may still be stored; a report that is sent again counts only once."""
        self.error, self._state = self.error or error, BatchState.FAILED
        self._wake()

    @contextmanager
    def delayed(self) -> Iterator[None]:
        """Delays the answer until the end of the block."""
        self._is_delayed = True
        try:
            yield
        finally:
            self._is_delayed = False
            self._wake()

    async def ended(self) -> None:
        """Returns once all accepted reports are durable. Raises the error of a failed batch: StoreFull or Unavailable."""
        if not self.may_be_answered:
            changed = asyncio.Event()
            self._waiting.append(changed)
            await changed.wait()
        if self.error is not None:
            raise self.error

    def _end_writing(self) -> None:
        on_written, self._on_written = self._on_written, None
        self._state = BatchState.FAILED if self.error else BatchState.DURABLE
        if on_written is not None:
            on_written(self.error is None)
        self._wake()

    def _wake(self) -> None:
        if self.may_be_answered:
            for changed in self._waiting:
                changed.set()
            self._waiting.clear()

    def _require(self, *states: BatchState) -> None:
        if self._state not in states:
            raise RuntimeError(f"a batch that is {self._state.value} can't do this; it must be {states[0].value}")
