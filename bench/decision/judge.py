"""Judges the decisions of a play by the truth: missed breaches, false dispatches and delays, for the fold and for each threshold.

- **Breach**: the true distance is at most 100 m for 30 s or more, and both sides have reported. Intervals less than a minute apart
  form one breach, whose duration is their sum. A breach is **missed** where no demand to respond is active at its start or made by the
  deadline. The deadline is the arrival of the tag's first report after the breach's end, or else of the play's last report. A breach
  without any later report of the tag isn't counted, because nobody can know of it. The **delay** is the time from the breach's start
  to that demand, or 0 where the demand was active before. A breach that began before both sides had reported has no delay.
- **False dispatch**: a unit is sent, and from 3 minutes before to 8 minutes after, the true distance was never at most 110 m (tracks
  themselves may be off by 10 m). The plain rule sends a unit when the distance falls to T or less. Sending again within 10 minutes
  after the distance cleared counts once, as the fold's incident does.
- **Close approach**: the true distance is at most 50 m for 30 s or more. A person must be notified of it, by a demand to respond or by
  UNKNOWN_NEAR with NOTIFY or more, by the arrival of the tag's first report after those 30 s, if there is one. UNKNOWN_NEAR with RECORD
  notifies nobody; approaches that have only such an alert are counted separately.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.decision.noise import TAG, Report, reports
from bench.decision.placement import Play
from bench.decision.play import HELP_MS, Decided, Demanded, Dispatch, Plain, decide, plain
from bench.decision.truth import Stretch, Truth
from services.geofence.domain.demands import AlertKind

THRESHOLDS_M = np.array([*range(20, 300, 5), *range(300, 1001, 25), *range(1100, 3001, 100)], np.float64)
RING_M, CLOSE_M, TOLERANCE_M = 100, 50, 10
MIN_DURATION_MS = 30_000
MAX_GAP_MS = 60_000
LOOKBACK_MS = 180_000
SAME_DISPATCH_MS = 600_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A missed breach, a false dispatch or an unnotified close approach, and its probable cause."""

    what: str
    """`missed`, `false`, `close`, or `close, recorded` where UNKNOWN_NEAR was in the record."""
    cause: str
    play: str
    every_ms: int
    at_ms: int
    true_m: float
    """Minimum true distance meanwhile."""
    draw: int = 1
    """Number of the draw of the noise."""


@dataclass(slots=True)
class Judged:
    """Judgement of one play at one report interval."""

    wearer: str
    kind: str
    every_ms: int
    hours: float
    """Duration of the play."""
    draw: int = 1
    """Number of the draw of the noise."""
    breaches: int = 0
    close: int = 0
    missed: int = 0
    missed_but_near: int = 0
    """Missed breaches for which UNKNOWN_NEAR notified a person."""
    missed_but_recorded: int = 0
    """Missed breaches for which UNKNOWN_NEAR was at least in the record."""
    delays_ms: list[int] = field(default_factory=list)
    """Delays of breaches that weren't missed and began while both sides were known; 0 where the demand was active before."""
    dispatches: int = 0
    false: int = 0
    responds_false: int = 0
    """False demands to respond, not only the first one of each incident."""
    unknown_near: int = 0
    touching: int = 0
    """Number of alerts that demand NOTIFY or more."""
    faults: list[Fault] = field(default_factory=list)
    plain_missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    """Missed breaches of the plain rule, by threshold."""
    plain_false: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    plain_false_raw: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    """Ungrouped false dispatches of the plain rule: each time that the distance falls to T or less."""
    plain_delays_ms: list[NDArray[np.float64]] = field(default_factory=list)
    """Delays of the plain rule for the breaches of `delays_ms`, by threshold; NaN where it misses the breach."""


def judge(play: Play, every_ms: int, draw: int = 1) -> Judged:
    """Plays a play with one draw of the noise and judges the decisions."""
    received = reports(play, every_ms, draw)
    hours = (play.way[-1].at_ms - play.way[0].at_ms) / 3_600_000
    judged = Judged(wearer=play.wearer, kind=play.kind, every_ms=every_ms, hours=hours, draw=draw)
    if len({report.device for report in received}) < (1 if play.is_place else 2):
        return judged  # one side never reported
    truth, decided, distances = Truth(play), decide(play, received), plain(play, received)
    judged.unknown_near = decided.unknown_near
    judged.touching = sum(n for (_, demand), n in decided.demands.items() if demand in {"NOTIFY", "RESPOND"})
    for stretches in _joined(truth.within(RING_M, decided.first_known_ms)):
        if sum(until_ms - from_ms for from_ms, until_ms in stretches) >= MIN_DURATION_MS:
            breach = stretches[0][0], stretches[-1][1]
            _breach(judged, play, truth, received=received, decided=decided, distances=distances, breach=breach)
    for breach in truth.within(CLOSE_M, decided.first_known_ms):
        if breach[1] - breach[0] >= MIN_DURATION_MS:
            _close(judged, play, truth, received=received, decided=decided, breach=breach)
    _dispatches(judged, play, truth, decided=decided)
    _plain_false(judged, truth, distances)
    return judged


def _breach(
    judged: Judged,
    play: Play,
    truth: Truth,
    *,
    received: list[Report],
    decided: Decided,
    distances: Plain,
    breach: Stretch,
) -> None:
    from_ms, until_ms = breach
    if _first_after(received, from_ms) is None:
        return
    deadline_ms = _first_after(received, until_ms) or received[-1].arrived_ms
    judged.breaches += 1
    demand = _first(decided.responds, from_ms, deadline_ms)
    if demand is not None:
        if from_ms > decided.first_known_ms:
            judged.delays_ms.append(max(0, demand.from_ms - from_ms))
    else:
        near = _first(decided.near, from_ms, deadline_ms) is not None
        judged.missed += 1
        recorded = near or _first(decided.recorded, from_ms, deadline_ms) is not None
        judged.missed_but_near += near
        judged.missed_but_recorded += recorded
        by = ", UNKNOWN_NEAR" if near else ", UNKNOWN_NEAR for the record" if recorded else ""
        cause = _cause_of_miss(truth, received, breach) + by
        min_m = truth.min_m(from_ms, until_ms)
        judged.faults.append(
            Fault(
                what="missed",
                cause=cause,
                play=play.name,
                every_ms=judged.every_ms,
                at_ms=from_ms,
                true_m=min_m,
                draw=judged.draw,
            )
        )
    first = max(0, int(np.searchsorted(distances.times_ms, from_ms)) - 1)
    last = int(np.searchsorted(distances.times_ms, deadline_ms, "right"))
    delays_ms = np.full(len(THRESHOLDS_M), np.nan)
    for at_ms, apart_m in zip(distances.times_ms[first:last], distances.apart_m[first:last], strict=True):
        delays_ms[np.isnan(delays_ms) & (apart_m <= THRESHOLDS_M)] = max(0, at_ms - from_ms)
    if from_ms > decided.first_known_ms:
        judged.plain_delays_ms.append(delays_ms)
    judged.plain_missed += np.isnan(delays_ms)


def _close(
    judged: Judged, play: Play, truth: Truth, *, received: list[Report], decided: Decided, breach: Stretch
) -> None:
    from_ms, until_ms = breach
    deadline_ms = _first_after(received, from_ms + MIN_DURATION_MS)
    if deadline_ms is None:
        return
    judged.close += 1
    if _first([*decided.responds, *decided.near], from_ms, deadline_ms) is None:
        demand = _first([*decided.responds, *decided.near], from_ms, 1 << 62)
        later = (
            "never notified"
            if demand is None
            else f"notified {(demand.from_ms - deadline_ms) // 60_000 + 1} min later or less"
        )
        cause = f"{_cause_of_miss(truth, received, (from_ms, deadline_ms))}, {later}"
        min_m = truth.min_m(from_ms, until_ms)
        what = "close" if _first(decided.recorded, from_ms, deadline_ms) is None else "close, recorded"
        judged.faults.append(
            Fault(
                what=what,
                cause=cause,
                play=play.name,
                every_ms=judged.every_ms,
                at_ms=from_ms,
                true_m=min_m,
                draw=judged.draw,
            )
        )


def _dispatches(judged: Judged, play: Play, truth: Truth, *, decided: Decided) -> None:
    judged.dispatches = len(decided.dispatches)
    for dispatch in decided.dispatches:
        min_m = truth.min_m(dispatch.at_ms - LOOKBACK_MS, dispatch.at_ms + HELP_MS)
        if min_m > RING_M + TOLERANCE_M:
            judged.false += 1
            cause = _cause_of_false(play, truth, dispatch=dispatch, min_m=min_m)
            judged.faults.append(
                Fault(
                    what="false",
                    cause=cause,
                    play=play.name,
                    every_ms=judged.every_ms,
                    at_ms=dispatch.at_ms,
                    true_m=min_m,
                    draw=judged.draw,
                )
            )
    for demand in decided.responds:
        apart_m = truth.min_m(demand.from_ms - LOOKBACK_MS, demand.from_ms + HELP_MS)
        judged.responds_false += demand.kind != AlertKind.UNKNOWN_NEAR.value and apart_m > RING_M + TOLERANCE_M


def _plain_false(judged: Judged, truth: Truth, distances: Plain) -> None:
    times_ms = distances.times_ms
    if not len(times_ms):
        return
    is_true = np.zeros(len(times_ms), bool)
    for from_ms, until_ms in truth.within(RING_M + TOLERANCE_M):
        is_true |= (times_ms + HELP_MS >= from_ms) & (times_ms - LOOKBACK_MS <= until_ms)
    for i, threshold_m in enumerate(THRESHOLDS_M):
        inside = distances.apart_m <= threshold_m
        changes = np.flatnonzero(np.diff(np.concatenate(([False], inside))))
        sent, cleared = changes[::2], changes[1::2]
        judged.plain_false_raw[i] = np.count_nonzero(~is_true[sent])
        is_new = np.ones(len(sent), bool)
        is_new[1:] = times_ms[sent[1:]] - times_ms[cleared[: len(sent) - 1]] >= SAME_DISPATCH_MS
        judged.plain_false[i] = np.count_nonzero(~is_true[sent[is_new]])


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


def _cause_of_miss(truth: Truth, received: list[Report], breach: Stretch) -> str:
    from_ms, until_ms = breach
    if not any(report.device == TAG and from_ms <= report.fix_ms <= until_ms for report in received):
        return "no report of the tag within it"
    if truth.min_m(from_ms, until_ms) > RING_M - 20:
        return "within 20 m of the ring's edge"
    return "under a minute" if until_ms - from_ms < 60_000 else "a minute or more"


def _cause_of_false(play: Play, truth: Truth, *, dispatch: Dispatch, min_m: float) -> str:
    nearest = next(f"{limit_m}" for limit_m in (150, 200, 300, 500, 1 << 40) if min_m <= limit_m)
    off_m = abs((dispatch.reported_m or 0.0) - truth.at_m(dispatch.at_ms))
    error = "off by 150 m or more" if dispatch.kind == AlertKind.RING_ENTERED.value and off_m >= 150 else ""
    side = "place" if play.is_place else "pair" if play.kind == "pair" else "person at home"
    nearest_text = f"came to {nearest} m or less" if min_m <= 500 else "never within 500 m"
    return ", ".join(filter(None, (dispatch.kind, side, nearest_text, error)))
