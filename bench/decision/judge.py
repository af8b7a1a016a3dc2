"""Judges the decisions of a play by the truth: missed breaches and dispatches for nothing, for the fold and for each threshold.

- **Breach**: the true distance is at most 100 m for 30 s or more, after both sides have reported. Intervals less than a minute
  apart form one breach, whose duration is their sum. It counts where the play goes on for 90 s after its start. Whether it counts
  doesn't depend on what is reported, so all arms have the same breaches. A breach is **missed** where no demand to respond is
  active at its start or made by 60 s after its end, or by the end of the play if that is earlier. The deadline of earlier versions
  is counted beside: the arrival of the tag's first report after the breach's end, or else of the play's last report. It gives a tag
  that reports seldom more time. The **delay** is the time from the breach's start to that demand, or 0 where the demand was active
  before. A breach that began before both sides had reported has no delay.
- **Close approach**: the true distance is at most 50 m for 30 s or more, and the play goes on for 90 s after its start. It is
  **notified late** where no person was notified by 60 s after its end, or by the end of the play: by a demand to respond or by
  UNKNOWN_NEAR with NOTIFY or more. Two more deadlines are counted beside: 90 s after its start, so that a long stay excuses
  nothing; and, as earlier versions did, the arrival of the tag's first report after its first 30 s, if there is one.
- **Dispatch**: any demand to respond, of whatever kind. Demands within 10 minutes after the end of another one are one dispatch. It
  is **for nothing** where from 3 minutes before to 8 minutes after, the true distance was never at most 110 m (tracks themselves
  may be off by 10 m). The plain rule sends a unit when the distance falls to T or less; its dispatches are grouped and judged in
  the same way.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.decision.arms import Arm
from bench.decision.closed_loop import Step
from bench.decision.decided import HELP_MS, SAME_DISPATCH_MS, Demanded, Sent
from bench.decision.judged import THRESHOLDS_M, Fault, Judged
from bench.decision.noise import TAG, Gaps, Report, World
from bench.decision.placement import Play
from bench.decision.play import Plain, Played, perform, plain
from bench.decision.truth import Stretch, Truth
from services.geofence.domain import fold
from services.geofence.domain.demands import AlertKind

RING_M = 100
CLOSE_M = 50
TOLERANCE_M = 10
MIN_DURATION_MS = 30_000
DEADLINE_MS = 60_000
MAX_GAP_MS = 60_000
LOOKBACK_MS = 180_000


def judge_all(
    play: Play, arms: Sequence[Arm], *, draws: Iterable[int] = (1,), regimes: Sequence[Gaps] = tuple(Gaps)
) -> list[Judged]:
    """Judgements of a play with each draw of the noise, each regime of gaps and each arm. They share the truth and the noise."""
    truth = Truth(play)
    return [
        judge(world, arm, truth)
        for draw in draws
        for world in (World(play, draw, gaps) for gaps in regimes)
        for arm in arms
    ]


def judge(world: World, arm: Arm, truth: Truth, *, step: Step = fold.step) -> Judged:
    """Plays a play with one arm and judges the decisions."""
    play, begin_s = world.play, time.process_time()
    judged = Judged(
        wearer=play.wearer,
        is_far=play.kind == "far",
        arm=arm.name,
        gaps=world.gaps.name,
        draw=world.draw,
        hours=(play.way[-1].at_ms - play.way[0].at_ms) / 3_600_000,
    )
    if world.known_ms is None:
        return judged  # one side never reported
    _Judge(judged, world, truth, perform(world, arm, step)).judge()
    judged.cpu_s = time.process_time() - begin_s
    return judged


@dataclass(frozen=True, slots=True)
class _Judge:
    judged: Judged
    world: World
    truth: Truth
    played: Played

    def judge(self) -> None:
        judged = self.judged
        played = self.played
        play = self.world.play
        judged.sent = played.sent
        judged.commands = played.commands
        judged.locates = played.locates
        judged.located = played.located
        demands = played.decided.demands.items()
        judged.touching = sum(count for (_, demand), count in demands if demand in {"NOTIFY", "RESPOND"})
        known_ms, distances = self.world.known_ms or 0, plain(play, played.received)
        for stretches in _joined(self.truth.within(RING_M, known_ms)):
            breach = stretches[0][0], stretches[-1][1]
            if sum(until_ms - from_ms for from_ms, until_ms in stretches) >= MIN_DURATION_MS and self._counts(breach):
                self._breach(breach, distances)
        for approach in self.truth.within(CLOSE_M, known_ms):
            if approach[1] - approach[0] >= MIN_DURATION_MS and self._counts(approach):
                self._close(approach)
        self._dispatches()
        self._plain_nothing(distances)

    @property
    def _end_ms(self) -> int:
        return self.world.play.way[-1].at_ms

    def _counts(self, stretch: Stretch) -> bool:
        return stretch[0] + MIN_DURATION_MS + DEADLINE_MS <= self._end_ms

    def _breach(self, breach: Stretch, distances: Plain) -> None:
        judged, decided = self.judged, self.played.decided
        from_ms, until_ms = breach
        deadline_ms = min(until_ms + DEADLINE_MS, self._end_ms)
        judged.breaches += 1
        demand = _first(decided.responds, from_ms, deadline_ms)
        if demand is None:
            self._missed(breach, deadline_ms)
        elif from_ms > (self.world.known_ms or 0):
            judged.delays_ms.append(max(0, demand.from_ms - from_ms))
        judged.missed_by_report += _first(decided.responds, from_ms, self._report_ms(until_ms)) is None
        first = max(0, int(np.searchsorted(distances.times_ms, from_ms)) - 1)
        last = int(np.searchsorted(distances.times_ms, deadline_ms, "right"))
        nearest_m = distances.apart_m[first:last].min(initial=np.inf)
        judged.plain_missed += nearest_m > THRESHOLDS_M

    def _missed(self, breach: Stretch, deadline_ms: int) -> None:
        judged, decided = self.judged, self.played.decided
        near = _first(decided.near, breach[0], deadline_ms) is not None
        recorded = near or _first(decided.recorded, breach[0], deadline_ms) is not None
        judged.missed += 1
        judged.missed_but_near += near
        judged.missed_but_recorded += recorded
        by = ", UNKNOWN_NEAR" if near else ", UNKNOWN_NEAR for the record" if recorded else ""
        self._fault("missed", self._cause_of_miss(breach) + by, at_ms=breach[0], true_m=self.truth.min_m(*breach))

    def _close(self, approach: Stretch) -> None:
        from_ms, until_ms = approach
        demands = [*self.played.decided.responds, *self.played.decided.near]
        deadline_ms = min(until_ms + DEADLINE_MS, self._end_ms)
        report_ms = _first_after(self.played.received, from_ms + MIN_DURATION_MS)
        judged = self.judged
        judged.close += 1
        judged.late_by_start += _first(demands, from_ms, from_ms + MIN_DURATION_MS + DEADLINE_MS) is None
        judged.late_by_report += report_ms is not None and _first(demands, from_ms, report_ms) is None
        if _first(demands, from_ms, deadline_ms) is not None:
            return
        judged.late += 1
        demand = _first(demands, from_ms, self._end_ms)
        later = (
            "never notified"
            if demand is None
            else f"notified {(demand.from_ms - deadline_ms) // 60_000 + 1} min later or less"
        )
        cause = f"{self._cause_of_miss((from_ms, deadline_ms))}, {later}"
        recorded = _first(self.played.decided.recorded, from_ms, deadline_ms) is not None
        true_m = self.truth.min_m(*approach)
        self._fault("close, recorded" if recorded else "close", cause, at_ms=from_ms, true_m=true_m)

    def _report_ms(self, until_ms: int) -> int:
        """The deadline of earlier versions for something that ended at a moment."""
        after_ms = _first_after(self.played.received, until_ms)
        return self.played.received[-1].arrived_ms if after_ms is None else after_ms

    def _dispatches(self) -> None:
        judged, decided = self.judged, self.played.decided
        dispatches = decided.dispatches
        judged.dispatches = len(dispatches)
        for dispatch in dispatches:
            min_m = self._min_m(dispatch.from_ms)
            if min_m > RING_M + TOLERANCE_M:
                judged.nothing[dispatch.kind] += 1
                self._fault(
                    "for nothing", self._cause_of_nothing(dispatch, min_m), at_ms=dispatch.from_ms, true_m=min_m
                )
        judged.single_nothing = sum(self._min_m(demand.from_ms) > RING_M + TOLERANCE_M for demand in decided.responds)

    def _min_m(self, sent_ms: int) -> float:
        """Minimum true distance in the time in which a unit that is sent at a moment isn't sent for nothing."""
        return self.truth.min_m(sent_ms - LOOKBACK_MS, sent_ms + HELP_MS)

    def _plain_nothing(self, distances: Plain) -> None:
        judged, times_ms = self.judged, distances.times_ms
        if not len(times_ms):
            return
        is_true = np.zeros(len(times_ms), bool)
        for from_ms, until_ms in self.truth.within(RING_M + TOLERANCE_M):
            is_true |= (times_ms + HELP_MS >= from_ms) & (times_ms - LOOKBACK_MS <= until_ms)
        for i, threshold_m in enumerate(THRESHOLDS_M):
            inside = distances.apart_m <= threshold_m
            changes = np.flatnonzero(np.diff(np.concatenate(([False], inside))))
            sent, cleared = changes[::2], changes[1::2]
            judged.plain_single_nothing[i] = np.count_nonzero(~is_true[sent])
            is_new = np.ones(len(sent), bool)
            is_new[1:] = times_ms[sent[1:]] - times_ms[cleared[: len(sent) - 1]] >= SAME_DISPATCH_MS
            judged.plain_nothing[i] = np.count_nonzero(~is_true[sent[is_new]])

    def _fault(self, what: str, cause: str, *, at_ms: int, true_m: float) -> None:
        judged, play = self.judged, self.world.play
        judged.faults.append(
            Fault(
                what=what,
                cause=cause,
                play=play.name,
                arm=judged.arm,
                gaps=judged.gaps,
                draw=judged.draw,
                at_ms=at_ms,
                true_m=true_m,
            )
        )

    def _cause_of_miss(self, breach: Stretch) -> str:
        from_ms, until_ms = breach
        received = self.played.received
        if not any(report.device == TAG and from_ms <= report.fix_ms <= until_ms for report in received):
            return "no report of the tag within it"
        if self.truth.min_m(from_ms, until_ms) > RING_M - 20:
            return "within 20 m of the ring's edge"
        return "under a minute" if until_ms - from_ms < 60_000 else "a minute or more"

    def _cause_of_nothing(self, dispatch: Sent, min_m: float) -> str:
        play = self.world.play
        nearest = next(f"{limit_m}" for limit_m in (150, 200, 300, 500, 1 << 40) if min_m <= limit_m)
        off_m = abs((dispatch.reported_m or 0.0) - self.truth.at_m(dispatch.from_ms))
        error = "off by 150 m or more" if dispatch.kind == AlertKind.RING_ENTERED.value and off_m >= 150 else ""
        side = "place" if play.is_place else "pair" if play.kind == "pair" else "person at home"
        nearest_text = f"came to {nearest} m or less" if min_m <= 500 else "never within 500 m"
        return ", ".join(filter(None, (dispatch.kind, side, nearest_text, error)))


def _joined(stretches: list[Stretch]) -> list[list[Stretch]]:
    """Groups of intervals that form one breach."""
    groups: list[list[Stretch]] = []
    for stretch in stretches:
        if groups and stretch[0] - groups[-1][-1][1] < MAX_GAP_MS:
            groups[-1].append(stretch)
        else:
            groups.append([stretch])
    return groups


def _first(demands: list[Demanded], from_ms: int, deadline_ms: int) -> Demanded | None:
    """The first demand that was active at `from_ms` or came by the deadline."""
    active = (demand for demand in demands if demand.from_ms <= deadline_ms and demand.until_ms >= from_ms)
    return min(active, default=None)


def _first_after(received: list[Report], at_ms: int) -> int | None:
    """Arrival of the tag's first report with a fix at a moment or later; None where the play ends without one."""
    later = (report.arrived_ms for report in received if report.device == TAG and report.fix_ms >= at_ms)
    return min(later, default=None)
