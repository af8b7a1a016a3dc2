"""Judges what was decided of a play by the truth: missed breaches, false dispatches, delay; for the fold and for each threshold.

- **Breach**: the true distance is at most 100 m for 30 s or more, both sides having reported. Stretches that are less than a
  minute apart are one, and last as long as all of them together. It is **missed** where no demand to respond stands from before its
  end, or is made by the time at which the tag's first report after its end arrives, or the play's last one. One after whose beginning
  the tag never reports isn't counted: nobody can know of it. **Delay** is from its beginning to that demand, 0 where one stood before;
  of a breach that was there before both had reported none is told.
- **False dispatch**: somebody is sent, and from 3 minutes before to 8 minutes after the true distance never was at most 110 m
  (10 m are what the tracks themselves may be off). The plain rule sends when the distance comes to be at most T; sent again within 10
  minutes after it was cleared counts once, as the fold's incident does.
- **Close approach**: the true distance is at most 50 m for 30 s or more. A person is to be told of it, by a demand to respond or by
  UNKNOWN_NEAR that demands NOTIFY or more, once the tag's first report after those 30 s has arrived, if any does. UNKNOWN_NEAR for the
  record tells nobody; what it knew of is counted beside.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bench.decision.noise import TAG, Report, reports
from bench.decision.placement import Play
from bench.decision.play import HELP_MS, Decided, Dispatch, Plain, Told, decide, plain
from bench.decision.truth import Stretch, Truth
from services.geofence.domain.alerts import AlertKind

THRESHOLDS_M = np.array([*range(20, 300, 5), *range(300, 1001, 25), *range(1100, 3001, 100)], np.float64)
RING_M, CLOSE_M, TOLERANCE_M = 100, 50, 10
LASTS_MS = 30_000
JOINED_MS = 60_000
BEFORE_MS = 180_000
AGAIN_MS = 600_000


@dataclass(frozen=True, slots=True)
class Fault:
    """A miss or a false dispatch, and what can be said of its cause."""

    what: str
    """`missed`, `false`, `close`, or `close, recorded` where UNKNOWN_NEAR was in the record."""
    cause: str
    play: str
    every_ms: int
    at_ms: int
    true_m: float
    """The least true distance meanwhile."""
    draw: int = 1
    """Which draw of the noise."""


@dataclass(slots=True)
class Judged:
    """One play at one interval."""

    wearer: str
    kind: str
    every_ms: int
    hours: float
    """How long it was played."""
    draw: int = 1
    """Which draw of the noise."""
    breaches: int = 0
    close: int = 0
    missed: int = 0
    missed_but_near: int = 0
    """Missed breaches of which UNKNOWN_NEAR told a person."""
    missed_but_recorded: int = 0
    """... of which it was at least in the record."""
    delays_ms: list[int] = field(default_factory=list)
    """Of breaches that began while both were known and weren't missed; 0 where the demand was made before."""
    dispatches: int = 0
    false: int = 0
    responds_false: int = 0
    """All demands to respond, not only the first in an incident."""
    unknown_near: int = 0
    touching: int = 0
    """Alerts that demand NOTIFY or more."""
    faults: list[Fault] = field(default_factory=list)
    plain_missed: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    """By threshold."""
    plain_false: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    plain_false_raw: NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(THRESHOLDS_M), np.int64))
    """Each time that the distance comes to be at most T."""
    plain_delays_ms: list[NDArray[np.float64]] = field(default_factory=list)
    """Of the same breaches, by threshold; NaN where it is missed."""


def judge(play: Play, every_ms: int, draw: int = 1) -> Judged:
    """Plays it with one draw of the noise and judges."""
    said = reports(play, every_ms, draw)
    hours = (play.way[-1].at_ms - play.way[0].at_ms) / 3_600_000
    judged = Judged(play.wearer, play.kind, every_ms, hours, draw)
    if len({one.device for one in said}) < (1 if play.is_place else 2):
        return judged  # one of them never reported within it
    truth, decided, distances = Truth(play), decide(play, said), plain(play, said)
    judged.unknown_near = decided.unknown_near
    judged.touching = sum(n for (_, demand), n in decided.demands.items() if demand in {"NOTIFY", "RESPOND"})
    for stretches in _joined(truth.within(RING_M, decided.first_known_ms)):
        if sum(until_ms - from_ms for from_ms, until_ms in stretches) >= LASTS_MS:
            breach = stretches[0][0], stretches[-1][1]
            _breach(judged, play, truth, said, decided, distances, breach)
    for breach in truth.within(CLOSE_M, decided.first_known_ms):
        if breach[1] - breach[0] >= LASTS_MS:
            _close(judged, play, truth, said, decided, breach)
    _dispatches(judged, play, truth, said, decided)
    _plain_false(judged, truth, distances)
    return judged


def _breach(
    judged: Judged, play: Play, truth: Truth, said: list[Report], decided: Decided, distances: Plain, breach: Stretch
) -> None:
    from_ms, until_ms = breach
    if _first_after(said, from_ms) is None:
        return
    deadline_ms = _first_after(said, until_ms) or said[-1].arrived_ms
    judged.breaches += 1
    told = _first(decided.responds, from_ms, deadline_ms)
    if told is not None:
        if from_ms > decided.first_known_ms:
            judged.delays_ms.append(max(0, told.from_ms - from_ms))
    else:
        near = _first(decided.near, from_ms, deadline_ms) is not None
        judged.missed += 1
        recorded = near or _first(decided.recorded, from_ms, deadline_ms) is not None
        judged.missed_but_near += near
        judged.missed_but_recorded += recorded
        by = ", UNKNOWN_NEAR" if near else ", UNKNOWN_NEAR for the record" if recorded else ""
        cause = _cause_of_miss(truth, said, breach) + by
        least_m = truth.least_m(from_ms, until_ms)
        judged.faults.append(Fault("missed", cause, play.name, judged.every_ms, from_ms, least_m, judged.draw))
    first = max(0, int(np.searchsorted(distances.times_ms, from_ms)) - 1)
    last = int(np.searchsorted(distances.times_ms, deadline_ms, "right"))
    delays_ms = np.full(len(THRESHOLDS_M), np.nan)
    for at_ms, apart_m in zip(distances.times_ms[first:last], distances.apart_m[first:last], strict=True):
        delays_ms[np.isnan(delays_ms) & (apart_m <= THRESHOLDS_M)] = max(0, at_ms - from_ms)
    if from_ms > decided.first_known_ms:
        judged.plain_delays_ms.append(delays_ms)
    judged.plain_missed += np.isnan(delays_ms)


def _close(judged: Judged, play: Play, truth: Truth, said: list[Report], decided: Decided, breach: Stretch) -> None:
    from_ms, until_ms = breach
    deadline_ms = _first_after(said, from_ms + LASTS_MS)
    if deadline_ms is None:
        return
    judged.close += 1
    if _first([*decided.responds, *decided.near], from_ms, deadline_ms) is None:
        told = _first([*decided.responds, *decided.near], from_ms, 1 << 62)
        later = "never told" if told is None else f"told {(told.from_ms - deadline_ms) // 60_000 + 1} min later or less"
        cause = f"{_cause_of_miss(truth, said, (from_ms, deadline_ms))}, {later}"
        least_m = truth.least_m(from_ms, until_ms)
        what = "close" if _first(decided.recorded, from_ms, deadline_ms) is None else "close, recorded"
        judged.faults.append(Fault(what, cause, play.name, judged.every_ms, from_ms, least_m, judged.draw))


def _dispatches(judged: Judged, play: Play, truth: Truth, said: list[Report], decided: Decided) -> None:
    judged.dispatches = len(decided.dispatches)
    for dispatch in decided.dispatches:
        least_m = truth.least_m(dispatch.at_ms - BEFORE_MS, dispatch.at_ms + HELP_MS)
        if least_m > RING_M + TOLERANCE_M:
            judged.false += 1
            cause = _cause_of_false(play, truth, said, dispatch, least_m)
            judged.faults.append(
                Fault("false", cause, play.name, judged.every_ms, dispatch.at_ms, least_m, judged.draw)
            )
    for told in decided.responds:
        apart_m = truth.least_m(told.from_ms - BEFORE_MS, told.from_ms + HELP_MS)
        judged.responds_false += told.kind != AlertKind.UNKNOWN_NEAR.value and apart_m > RING_M + TOLERANCE_M


def _plain_false(judged: Judged, truth: Truth, distances: Plain) -> None:
    times_ms = distances.times_ms
    if not len(times_ms):
        return
    is_true = np.zeros(len(times_ms), bool)
    for from_ms, until_ms in truth.within(RING_M + TOLERANCE_M):
        is_true |= (times_ms + HELP_MS >= from_ms) & (times_ms - BEFORE_MS <= until_ms)
    for i, threshold_m in enumerate(THRESHOLDS_M):
        inside = distances.apart_m <= threshold_m
        changes = np.flatnonzero(np.diff(np.concatenate(([False], inside))))
        sent, cleared = changes[::2], changes[1::2]
        judged.plain_false_raw[i] = np.count_nonzero(~is_true[sent])
        anew = np.ones(len(sent), bool)
        anew[1:] = times_ms[sent[1:]] - times_ms[cleared[: len(sent) - 1]] >= AGAIN_MS
        judged.plain_false[i] = np.count_nonzero(~is_true[sent[anew]])


def _joined(stretches: list[Stretch]) -> list[list[Stretch]]:
    """Those that are one breach together."""
    found: list[list[Stretch]] = []
    for stretch in stretches:
        if found and stretch[0] - found[-1][-1][1] < JOINED_MS:
            found[-1].append(stretch)
        else:
            found.append([stretch])
    return found


def _first(told: list[Told], from_ms: int, deadline_ms: int) -> Told | None:
    """The first that stood at the beginning or came by the deadline."""
    return min((one for one in told if one.from_ms <= deadline_ms and one.until_ms >= from_ms), default=None)


def _first_after(said: list[Report], at_ms: int) -> int | None:
    """When the tag's first report of a moment or later arrives; None where the play ends without one."""
    return min((one.arrived_ms for one in said if one.device == TAG and one.fix_ms >= at_ms), default=None)


def _cause_of_miss(truth: Truth, said: list[Report], breach: Stretch) -> str:
    from_ms, until_ms = breach
    if not any(one.device == TAG and from_ms <= one.fix_ms <= until_ms for one in said):
        return "no report of the tag within it"
    if truth.least_m(from_ms, until_ms) > RING_M - 20:
        return "within 20 m of the ring's edge"
    return "under a minute" if until_ms - from_ms < 60_000 else "a minute or more"


def _cause_of_false(play: Play, truth: Truth, said: list[Report], dispatch: Dispatch, least_m: float) -> str:
    nearest = next(f"{most_m}" for most_m in (150, 200, 300, 500, 1 << 40) if least_m <= most_m)
    off_m = abs((dispatch.reported_m or 0.0) - truth.at_m(dispatch.at_ms))
    error = "off by 150 m or more" if dispatch.kind == AlertKind.RING_ENTERED.value and off_m >= 150 else ""
    side = "place" if play.is_place else "pair" if play.kind == "pair" else "person at home"
    came = f"came to {nearest} m or less" if least_m <= 500 else "never within 500 m"
    return ", ".join(filter(None, (dispatch.kind, side, came, error)))
