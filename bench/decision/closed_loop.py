"""The closed loop of a simulation: the tag and her phone report, the fold decides, and the tag obeys the fold's requests.

A simulation overrides what it notes of the reports and alerts, and what else happens in its world.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

from bench.decision.arms import Arm
from bench.decision.noise import TAG, Receiver, Report
from bench.decision.tag import Tag
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest, Output, SensingRequest
from services.geofence.domain.entries import FOLD_VERSION, Body, Case, Entry, FoldVersion, Positions, Tick
from services.geofence.domain.state import State

Step = Callable[[State, Entry], list[Output]]
"""The fold's function, or a stand-in of a test."""


class ClosedLoop:
    """A simulated stretch of time with one case. Ticks come where time alone decides something."""

    def __init__(
        self, receiver: Receiver, arm: Arm, phone: Iterable[Report], *, log_id: str, until_ms: int, step: Step
    ) -> None:
        self._tag = Tag(receiver, arm, until_ms)
        self._until_ms, self._fold = until_ms, step
        self._arriving = [*phone]
        """Heap of the reports by arrival."""
        heapq.heapify(self._arriving)
        self._state = State(0, log_id=log_id)

    def play(self, case: Case, from_ms: int) -> None:
        """Plays the case from a moment to the end."""
        self._step(from_ms, FoldVersion(FOLD_VERSION))
        self._step(from_ms, case)
        while (now_ms := self._next_ms()) < self._until_ms:
            if self._tag.next_ms() == now_ms:
                for report in self._tag.advance():
                    heapq.heappush(self._arriving, report)
            elif self._arriving and self._arriving[0].arrived_ms == now_ms:
                self._arrive(heapq.heappop(self._arriving))
            elif self._next_happening_ms() == now_ms:
                self._step(now_ms, self._happening())
            else:
                self._step(now_ms, Tick())

    # ── what a simulation adds ───────────────────────────────────────────────────────────────────────────────────────

    def _note_report(self, report: Report) -> None:
        """Notes a report that arrives."""

    def _note_alert(self, alert: Alert, stamp_ms: int) -> None:
        """Notes an alert of the fold."""

    def _note_contact(self, request: ContactRequest) -> None:
        """Notes a message to the wearer."""

    def _note_step(self, stamp_ms: int) -> None:
        """Notes that an entry was folded."""

    def _next_happening_ms(self) -> int | None:
        """When something else than a position arrives next; None if nothing does."""
        return None

    def _happening(self) -> Body:
        """The entry that `_next_happening_ms` announced. Called once for each."""
        raise NotImplementedError

    # ── the loop ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _next_ms(self) -> int:
        """When something happens next: the tag acts, something arrives, or time alone decides something."""
        times_ms = [self._tag.next_ms()]
        if self._arriving:
            times_ms.append(self._arriving[0].arrived_ms)
        times_ms += [at_ms for at_ms in (self._next_happening_ms(), fold.next_due_ms(self._state)) if at_ms is not None]
        return min(times_ms)

    def _arrive(self, report: Report) -> None:
        self._note_report(report)
        if report.device == TAG:
            self._tag.answered(report.arrived_ms)
        columns = (
            [report.device],
            [str(report.number)],
            [report.fix_ms],
            [report.lat_e7],
            [report.lon_e7],
            [report.accuracy_mm],
        )
        self._step(report.arrived_ms, Positions(*columns, 0))

    def _step(self, stamp_ms: int, body: Body) -> None:
        for output in self._fold(self._state, Entry(self._state.sequence + 1, stamp_ms, body)):
            if isinstance(output, Alert):
                self._note_alert(output, stamp_ms)
            elif isinstance(output, SensingRequest) and output.device_id == TAG:
                self._tag.request(output, stamp_ms)
            elif isinstance(output, ContactRequest):
                self._note_contact(output)
        self._note_step(stamp_ms)
