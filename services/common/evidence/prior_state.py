"""State from before a window of the log. A replay of the window starts from this state.

The state is the newest snapshot of each of the wearer's cases, the newest rules, and the newest minimum fold version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from services.common.evidence.incidents import FoundIncident
from services.common.evidence.redaction import Holders, Window, entry_of
from services.common.evidence.streams import RangeReader, first_at
from services.common.messaging import flow, pull
from services.common.messaging.bus import Bounds
from services.common.messaging.streams import LogMetadata
from tandem.common.v1 import log_pb2

STATE_BACK_MS = 26 * 3_600_000
"""How far before the window to search for cases and rules, milliseconds of mesh time. Both are logged at least once a mesh day."""


@dataclass(frozen=True, slots=True)
class IncidentWindow:
    """The window of an incident in the log."""

    incident: FoundIncident
    entries: Window
    """First and last log entry of the incident, and the redacted log that goes into the evidence."""
    from_wall_ms: int
    """Start of the window, wall clock, milliseconds since 1970 UTC; 0 for the start of the log."""
    opened: bool
    """Whether the log still has the entry that caused the first alert."""


class _StateKey(NamedTuple):
    """A part of the state: the rules, the version of the fold, or one case."""

    kind: str
    case_id: str = ""


class PriorState:
    """Collects the state from before one window."""

    def __init__(self, of: IncidentWindow) -> None:
        self.from_wall_ms, self.window = of.from_wall_ms, of.entries
        self._newest: dict[_StateKey, pull.Delivered] = {}

    def see_case(self, message: pull.Delivered, case: log_pb2.CaseSnapshot) -> None:
        """Reads the next case snapshot of the wearer, from before the window or inside it."""
        if message.sequence < self.window.first:
            self._newest[_StateKey("case", case.case_id)] = message
        elif message.sequence <= self.window.last:
            self.window.share.see_case(case)

    def see(self, kind: str, message: pull.Delivered) -> None:
        """Reads the next entry with the rules or the version of the fold."""
        if message.sequence < self.window.first:
            self._newest[_StateKey(kind)] = message

    def add_to_window(self) -> None:
        """Adds the collected entries to the window's redacted log, in the order of the log."""
        state = sorted(self._newest.values(), key=lambda message: message.sequence)
        for message in state:
            entry = entry_of(message.data)
            if entry.HasField("case"):
                self.window.share.see_case(entry.case)
        for message in state:
            self.window.share.add_premise(message)


class PriorStateReader:
    """Reads the state from before the windows of one partition, and who held each device. All windows share one pass."""

    def __init__(
        self, reader: RangeReader, log_meta: LogMetadata, partition: int, *, bounds: Bounds, holders: Holders
    ) -> None:
        self._reader = reader
        self._log_meta = log_meta
        self._bounds = bounds
        self._holders = holders
        self._partition, self._stream = partition, flow.log_stream(partition)

    async def add_to(self, windows: Sequence[IncidentWindow]) -> None:
        """Adds the prior state to each window that doesn't begin with the log's first entry."""
        states = [PriorState(window) for window in windows]
        later = [state for state in states if state.window.first > self._bounds.first]
        if not later:
            await self._read_cases(states, min(state.window.first for state in states))
            return
        first = await self._search_from(later)
        before = max(state.window.first for state in later) - 1
        await self._read_cases(states, first)
        await self._read_kind("rules", later, first, last=before)
        await self._read_kind("fold", later, 1, last=before)
        for state in later:
            state.add_to_window()

    async def _search_from(self, states: Iterable[PriorState]) -> int:
        back_ms = STATE_BACK_MS // self._log_meta.clock.rate
        bus = self._reader.bus
        return min([await first_at(bus, self._stream, state.from_wall_ms - back_ms) for state in states])

    async def _read_cases(self, states: Sequence[PriorState], first: int) -> None:
        of_wearer: dict[str, list[PriorState]] = {}
        for state in states:
            of_wearer.setdefault(state.window.share.wearer_id, []).append(state)
        last, subject = max(state.window.last for state in states), flow.log_subject(self._partition, "case")
        async for message in self._reader.between(self._stream, first, last, subject=subject):
            case = entry_of(message.data).case
            self._holders.see_case(message, case)
            for state in of_wearer.get(case.wearer_id, ()):
                state.see_case(message, case)

    async def _read_kind(self, kind: str, states: Sequence[PriorState], first: int, *, last: int) -> None:
        subject = flow.log_subject(self._partition, kind)
        async for message in self._reader.between(self._stream, first, last, subject=subject):
            for state in states:
                state.see(kind, message)
