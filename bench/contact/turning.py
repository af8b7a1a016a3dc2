"""Approaches in which turning back is possible: a wearer goes towards a named home without a lawful reason. Pure.

The wearer starts 1.8 to 3 km away, on foot or by car, and goes towards her home. In three of five approaches he stops 130 to 400 m from
its edge, in the others at her door. He stays for 2 to 10 minutes and goes away. A wearer who obeys turns round 15 to 45 s after his tag
told him, and goes back by the way that he came. Noise is that of the decision-quality study; the tag obeys the fold's requests.

Each approach is played with a wearer who ignores the message and with one who obeys. The noise is a function of time, so both begin
alike. The log of the first is folded once more for an order that doesn't name the home: the response must fall due at the same
instants.
"""

from __future__ import annotations

import cmath
import math
import random
from dataclasses import dataclass, field
from itertools import pairwise

from bench.burden.counts import SAME_MOMENT_MS
from bench.burden.journeys import Diary, Pace
from bench.burden.lives import HER_HOME, START_MS
from bench.decision.arms import ARMS
from bench.decision.closed_loop import ClosedLoop
from bench.decision.noise import TAG, Gaps, Receiver
from bench.decision.placement import Spot, Way, moved
from bench.geolife import RINGS
from services.geofence.domain import fold
from services.geofence.domain.alerts import Alert, ContactRequest
from services.geofence.domain.entries import Body, Case, Demand, Entry, Target
from services.geofence.domain.geometry import Disc, ecef_mm
from services.geofence.domain.state import State

SEED = "turning-1"
"""Part of the seed of each random choice."""
HOME_M = 30.0
RESPONSE_M = 100.0
"""Within this distance of the home's edge, an approach is a breach."""
LASTS_S = 5_400.0
REACTION_S = (15.0, 45.0)
STREAM_MS = 2_000


@dataclass
class Outcome:
    """What one play of an approach brought."""

    min_m: float
    """Least true distance from the home's edge."""
    responds_ms: list[int] = field(default_factory=list)
    """When the response fell due: the demands to respond, mesh time."""
    messages_ms: list[int] = field(default_factory=list)
    """When messages to the wearer were decided, mesh time."""
    decided: list[tuple[str, int, int]] = field(default_factory=list)
    """Kind, demand and time of each alert."""

    @property
    def is_breach(self) -> bool:
        """Whether the wearer came within the ring that demands a response."""
        return self.min_m <= RESPONSE_M

    @property
    def dispatches(self) -> int:
        """Number of dispatch moments: demands within 10 minutes after another one belong to it."""
        moments, last_ms = 0, -math.inf
        for at_ms in self.responds_ms:
            moments += at_ms - last_ms >= SAME_MOMENT_MS
            last_ms = at_ms
        return moments


@dataclass
class Approach:
    """One approach, with a wearer who ignores the message and with one who obeys it."""

    same_instants: bool
    """Whether the logs of both plays give the same alerts at the same instants where the order doesn't name the home."""
    ignored: Outcome
    obeyed: Outcome
    """The same as `ignored` if no message reached the wearer."""
    draw: float
    """The wearer obeys if this is below the probability of obeying."""

    def with_p(self, p: float) -> Outcome:
        """What happens if the wearer obeys with a probability."""
        return self.obeyed if self.draw < p else self.ignored


def approach(seed: int) -> Approach:
    """The approach with this seed."""
    name = f"{SEED} {seed}"
    rng = random.Random(name)
    way = _way(rng)
    play = _Play(name, way)
    ignored = obeyed = play.run()
    is_same = True
    if ignored.messages_ms:
        reached_ms = Receiver(name, TAG, way, draw=1, gaps=Gaps.SHORT).reachable_ms(ignored.messages_ms[0], STREAM_MS)
        turns_ms = reached_ms + round(1000 * rng.uniform(*REACTION_S))
        turned = _Play(name, _turned(way, turns_ms))
        obeyed, is_same = turned.run(), turned.is_same_without()
    return Approach(play.is_same_without() and is_same, ignored, obeyed, random.Random(f"{name} obeys").random())


class _Play(ClosedLoop):
    def __init__(self, name: str, way: Way) -> None:
        receiver = Receiver(name, TAG, way, draw=1, gaps=Gaps.SHORT)
        super().__init__(receiver, ARMS["asked"], (), log_id=name, until_ms=way[-1].at_ms, step=fold.step)
        self._name, self._outcome = name, Outcome(_min_m(way))
        self._entries: list[tuple[int, Body]] = []

    def run(self) -> Outcome:
        self.play(_case(is_named=True), START_MS)
        return self._outcome

    def is_same_without(self) -> bool:
        """Whether the same log gives the same alerts at the same instants where the order doesn't name the home."""
        state, alerts = State(0, log_id=self._name), list[tuple[str, int, int]]()
        for stamp_ms, body in self._entries:
            unnamed = _case(is_named=False) if isinstance(body, Case) else body
            outputs = fold.step(state, Entry(state.sequence + 1, stamp_ms, unnamed))
            alerts += [_summary(output, stamp_ms) for output in outputs if isinstance(output, Alert)]
        return alerts == self._outcome.decided

    def _step(self, stamp_ms: int, body: Body) -> None:
        self._entries.append((stamp_ms, body))
        super()._step(stamp_ms, body)

    def _note_alert(self, alert: Alert, stamp_ms: int) -> None:
        if alert.demand is Demand.RESPOND:
            self._outcome.responds_ms.append(stamp_ms)
        self._outcome.decided.append(_summary(alert, stamp_ms))

    def _note_contact(self, request: ContactRequest) -> None:
        self._outcome.messages_ms.append(request.decided_at_ms)


def _case(*, is_named: bool) -> Case:
    home = Disc(ecef_mm(HER_HOME.lat_e7, HER_HOME.lon_e7), round(HOME_M * 1000))
    return Case(
        case_id="case",
        version=1,
        order_id="order",
        wearer_id="w",
        tag_device_ids=(TAG,),
        targets=(Target("home", False, (), home, is_named=is_named),),
        rings=RINGS,
        valid_from_ms=START_MS - 1_000,
        valid_until_ms=START_MS + 86_400_000,
    )


def _summary(alert: Alert, stamp_ms: int) -> tuple[str, int, int]:
    return alert.kind.value, alert.demand.value, stamp_ms


def _way(rng: random.Random) -> Way:
    start = cmath.rect(rng.uniform(1_800, 3_000), rng.uniform(0, 2 * math.pi))
    is_breach = rng.random() < 0.4
    least_m, most_m = (0.0, 60.0) if is_breach else (130.0, 400.0)
    towards = start / abs(start)
    goal = towards * cmath.rect(HOME_M * (not is_breach) + rng.uniform(least_m, most_m), rng.uniform(-0.6, 0.6))
    corner = (start + goal) / 2 + towards * 1j * rng.uniform(-400, 400)
    pace = Pace.WALK if rng.random() < 0.6 else Pace.CAR
    diary = Diary(start, rng, "waiting")
    diary.stay(rng.uniform(300, 600), "waiting")
    diary.go([corner, goal], pace, "approaching")
    diary.stay(diary.now_s + rng.uniform(120, 600), "staying")
    diary.go([goal + towards * 1j * 300, cmath.rect(2_600, rng.uniform(0, 2 * math.pi))], pace, "leaving")
    diary.stay(max(LASTS_S, diary.now_s + 60), "away")
    return _spots(diary.points, LASTS_S)


def _turned(way: Way, turns_ms: int) -> Way:
    """The way of a wearer who turns round at a moment and goes back as he came, some metres beside."""
    gone = [spot for spot in way if spot.at_ms < turns_ms]
    after = next((spot for spot in way if spot.at_ms >= turns_ms), None)
    if after is None:
        return way
    before = gone[-1]
    share = (turns_ms - before.at_ms) / (after.at_ms - before.at_ms)
    here = Spot(
        turns_ms,
        round(before.lat_e7 + share * (after.lat_e7 - before.lat_e7)),
        round(before.lon_e7 + share * (after.lon_e7 - before.lon_e7)),
    )
    back, at_ms = [here], turns_ms
    for later, earlier in pairwise([here, *reversed(gone)]):
        at_ms += later.at_ms - earlier.at_ms
        if at_ms >= way[-1].at_ms:
            break
        shifted = moved(earlier, 12.0, 9.0)
        back.append(Spot(at_ms, shifted.lat_e7, shifted.lon_e7))
    return (*gone, *back, back[-1]._replace(at_ms=way[-1].at_ms))


def _spots(points: list[tuple[float, complex]], until_s: float) -> Way:
    spots: list[Spot] = []
    for at_s, point in points:
        at_ms = START_MS + round(1000 * min(at_s, until_s))
        if not spots or at_ms > spots[-1].at_ms:
            spots.append(moved(HER_HOME, point.imag, point.real)._replace(at_ms=at_ms))
    return tuple(spots)


def _min_m(way: Way) -> float:
    """Least distance of a way from the home's edge, by steps of a second at most."""
    least_mm = math.inf
    home = ecef_mm(HER_HOME.lat_e7, HER_HOME.lon_e7)
    for before, after in pairwise(way):
        steps = max(1, (after.at_ms - before.at_ms) // 1000)
        for n in range(steps + 1):
            lat_e7 = round(before.lat_e7 + n / steps * (after.lat_e7 - before.lat_e7))
            lon_e7 = round(before.lon_e7 + n / steps * (after.lon_e7 - before.lon_e7))
            least_mm = min(least_mm, math.dist(home, ecef_mm(lat_e7, lon_e7)))
    return max(0.0, least_mm / 1000 - HOME_M)
