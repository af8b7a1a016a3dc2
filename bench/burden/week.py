"""Plays a week of the burden study: the tag and her phone report, the fold decides, and the tag obeys the fold's requests.

What the fold demands and emits is counted; the wearer violates nothing in these weeks, so each dispatch is for nothing.
"""

from __future__ import annotations

import heapq
import time
from dataclasses import replace

from bench.burden.counts import Counts
from bench.burden.lives import DAYS, START_MS, Event
from bench.burden.world import LifeWorld
from bench.decision.arms import Arm
from bench.decision.noise import TAG, Report
from bench.decision.play import Step, case_of
from bench.decision.tag import Tag
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, SensingRequest
from services.geofence.domain.entries import Body, Entry, EquipmentReport, FoldVersion, Positions, Tick
from services.geofence.domain.state import State
from services.geofence.domain.version import VERSION

_EVENT_DELAY_MS = 1_000


def perform(world: LifeWorld, arm: Arm, *, is_place: bool, step: Step = fold.step) -> Counts:
    """Counts of a week with default rules, for an order that protects her home (`is_place`) or her with her phone."""
    begin_s = time.process_time()
    counts = _Week(world, arm, is_place=is_place, step=step).run()
    return replace(counts, cpu_s=time.process_time() - begin_s)


class _Week:
    def __init__(self, world: LifeWorld, arm: Arm, *, is_place: bool, step: Step) -> None:
        life = world.life
        self._world, self._fold, self._is_place = world, step, is_place
        self._asks = arm.delivery is not None
        self._until_ms = life.wearer[-1].at_ms
        self._tag = Tag(world.tag, arm, self._until_ms)
        self._case = case_of(life.play(is_place=is_place))
        self._reports = [] if is_place else [*world.phone_reports]
        """Heap of the reports by arrival."""
        heapq.heapify(self._reports)
        self._events = [
            (world.tag.reachable_ms(event.at_ms, _EVENT_DELAY_MS), number, event)
            for number, event in enumerate(life.events)
        ]
        """Heap of the tag's events by arrival."""
        heapq.heapify(self._events)
        self._state = State(0, log_id=life.name)
        self._numbers: set[int] = set()
        """Numbers of the tag's reports that arrived."""
        self._counts = Counts(
            home_m=life.home_m, seed=life.seed, protects="place" if is_place else "person", arm=arm.name, days=DAYS
        )

    def run(self) -> Counts:
        if self._asks:
            self._step(START_MS, FoldVersion(VERSION))
        self._step(START_MS, self._case)
        while (now_ms := self._next_ms()) < self._until_ms:
            if self._tag.next_ms() == now_ms:
                for report in self._tag.advance():
                    heapq.heappush(self._reports, report)
            elif self._reports and self._reports[0].arrived_ms == now_ms:
                self._arrive(heapq.heappop(self._reports))
            elif self._events and self._events[0][0] == now_ms:
                self._happen(*heapq.heappop(self._events))
            else:
                self._step(now_ms, Tick())
        counts, tag = self._counts, self._tag
        counts.reports, counts.commands = len(self._numbers), tag.commands
        counts.locates, counts.located = tag.locates, tag.located
        return counts

    def _next_ms(self) -> int:
        """When something happens next: the tag acts, something arrives, or time alone decides something."""
        now_ms = self._tag.next_ms()
        if self._reports:
            now_ms = min(now_ms, self._reports[0].arrived_ms)
        if self._events:
            now_ms = min(now_ms, self._events[0][0])
        due_ms = fold.next_due_ms(self._state)
        return now_ms if due_ms is None else min(now_ms, due_ms)

    def _arrive(self, report: Report) -> None:
        if report.device == TAG:
            self._numbers.add(report.number)
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

    def _happen(self, arrived_ms: int, number: int, event: Event) -> None:
        body = EquipmentReport(
            device_id=TAG,
            report_id=f"event {number}",
            event=event.kind,
            event_time_ms=event.at_ms,
            received_wall_us=0,
        )
        self._step(arrived_ms, body)

    def _step(self, stamp_ms: int, body: Body) -> None:
        for output in self._fold(self._state, Entry(self._state.sequence + 1, stamp_ms, body)):
            if isinstance(output, Alert):
                self._counts.note(output, stamp_ms, self._causes(stamp_ms))
            elif isinstance(output, SensingRequest) and output.device_id == TAG:
                self._tag.request(output, stamp_ms)

    def _causes(self, at_ms: int) -> tuple[str, str]:
        """What the wearer does at a moment, and the noise that a decision can follow from."""
        world = self._world
        noise = world.tag.trouble(at_ms)
        if noise is None and not self._is_place:
            hers = world.phone.trouble(at_ms)
            noise = hers and f"{hers} of her phone"
        return world.life.doing_at(at_ms), noise or "no gap or jump"
