"""Plays a week of the burden study: the tag and her phone report, the fold decides, and the tag obeys the fold's requests.

What the fold demands and emits is counted; the wearer violates nothing in these weeks, so each dispatch is for nothing.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import replace

from bench.burden.counts import Counts
from bench.burden.lives import DAYS, START_MS
from bench.burden.pushes import Pushes
from bench.burden.world import LifeWorld
from bench.decision.arms import Arm
from bench.decision.closed_loop import ClosedLoop, Step
from bench.decision.noise import TAG, Report
from bench.decision.play import case_of
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest
from services.geofence.domain.entries import Body, Case, EquipmentReport

_EVENT_DELAY_MS = 1_000


def perform(world: LifeWorld, arm: Arm, *, is_place: bool, step: Step = fold.step) -> Counts:
    """Counts of a week with default rules, for an order that protects her home (`is_place`) or her with her phone."""
    begin_s = time.process_time()
    counts = Week(world, arm, is_place=is_place, step=step).run()
    return replace(counts, cpu_s=time.process_time() - begin_s)


class Week(ClosedLoop):
    """A week of both sides with one arm."""

    def __init__(self, world: LifeWorld, arm: Arm, *, is_place: bool, step: Step) -> None:
        life = world.life
        phone = () if is_place else world.phone_reports
        super().__init__(world.tag, arm, phone, log_id=life.name, until_ms=life.wearer[-1].at_ms, step=step)
        self._world, self._is_place = world, is_place
        self._events = [
            (world.tag.reachable_ms(event.at_ms, _EVENT_DELAY_MS), number, event)
            for number, event in enumerate(life.events)
        ]
        """Heap of the tag's events by arrival."""
        heapq.heapify(self._events)
        self._numbers: set[int] = set()
        """Numbers of the tag's reports that arrived."""
        self._pushes = Pushes()
        self._counts = Counts(
            home_m=life.home_m, seed=life.seed, protects="place" if is_place else "person", arm=arm.name, days=DAYS
        )

    def run(self) -> Counts:
        """Plays the week and returns its counts."""
        self.play(self._case(), START_MS)
        counts, tag = self._counts, self._tag
        counts.pushes = self._pushes.sent(self._world.life.wearer[-1].at_ms)
        counts.reports, counts.commands = len(self._numbers), tag.commands
        counts.locates, counts.located = tag.locates, tag.located
        return counts

    def _case(self) -> Case:
        return case_of(self._world.life.play(is_place=self._is_place))

    def _note_report(self, report: Report) -> None:
        if report.device == TAG:
            self._numbers.add(report.number)

    def _note_alert(self, alert: Alert, stamp_ms: int) -> None:
        self._counts.note(alert, stamp_ms, self._causes(stamp_ms))
        self._pushes.note(alert, stamp_ms)

    def _note_contact(self, request: ContactRequest) -> None:
        self._counts.contacts += 1

    def _next_happening_ms(self) -> int | None:
        return self._events[0][0] if self._events else None

    def _happening(self) -> Body:
        _, number, event = heapq.heappop(self._events)
        return EquipmentReport(
            device_id=TAG,
            report_id=f"event {number}",
            event=event.kind,
            event_time_ms=event.at_ms,
            received_wall_us=0,
        )

    def _causes(self, at_ms: int) -> tuple[str, str]:
        """What the wearer does at a moment, and the noise that a decision can follow from."""
        world = self._world
        noise = world.tag.trouble(at_ms)
        if noise is None and not self._is_place:
            hers = world.phone.trouble(at_ms)
            noise = hers and f"{hers} of her phone"
        return world.life.doing_at(at_ms), noise or "no gap or jump"
