"""Three distances and a track give an address away: an attacker on probation's side tries, with all that this side gets.

The bound is what the rings tell, since probation has to be told of them at once: that the wearer was within a ring at one report and
not at the one before. Who has the wearer's track too can intersect those, and comes to some tens of metres; no delay that officers
could live with changes that. Nothing that following, the race, or the other leg's steps add may lead any closer. The police's figures,
given to the same attacker, show that it can locate.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest

from services.dispatch.domain.areas import LatLon
from services.dispatch.domain.enums import Estimate
from services.dispatch.domain.events import Event
from services.dispatch.domain.following import Follow, TargetUpdate
from services.dispatch.domain.incident import Assignment
from services.dispatch.domain.race import Approach, Sighting, approach, approach_by_ring, pace_mps
from services.dispatch.domain.roster import NO_ROSTER, Travel
from services.dispatch.leg import translate
from services.geofence import translate as of_fold
from services.geofence.domain.alerts import Alert, AlertKind
from tandem.common.v1 import alert_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch import incidents
from tests.support.dispatch.incidents import DEADLINES
from tests.support.dispatch.roster import TWO_OFFICES, board, unit
from tests.support.geofence.stories import T0_MS, Story, place_e7

EVERY_S = 15
WALKS = 14
TRUSTS = (1.0, 0.001)
CLEAR_AFTER_S = 60
CLEARED_M = 2_200.0
"""So far away and for so long the widest ring is cleared, as the rules say; the attacker knows them."""
Xy = tuple[float, float]
"""Metres to the north and the east."""


@dataclass
class Got:
    """What an attacker knows: places of the wearer, each with how far she is from there."""

    within: list[tuple[Xy, float]] = field(default_factory=list)
    beyond: list[tuple[Xy, float]] = field(default_factory=list)
    paced: dict[int, list[tuple[Xy, float]]] = field(default_factory=dict)
    """By leg: where something happened, perhaps because the race turned there, and the wearer's pace: the distance would be the pace
    times a time that is the same for all of a leg's, and isn't known."""
    trust: float = 1.0
    """How much the attacker makes of that, against the rings."""
    exact: list[tuple[Xy, float]] = field(default_factory=list)


def walk(seed: int) -> list[Xy]:
    """A wearer comes from 2.6 km away, strolls by within 100 m of (0, 0), and goes off elsewhere; a point every 15 s."""
    rng = random.Random(seed)
    come, go = rng.uniform(0, math.tau), rng.uniform(0, math.tau)
    corners = [
        (2600 * math.cos(come), 2600 * math.sin(come)),
        (1400 * math.cos(come + 0.2), 1400 * math.sin(come + 0.2)),
        (rng.uniform(-60, 60), rng.uniform(-60, 60)),
        (500 * math.cos(go), 500 * math.sin(go)),
        (3200 * math.cos(go + 0.3), 3200 * math.sin(go + 0.3)),
    ]
    mps = rng.uniform(1.2, 9.0)
    points = [corners[0]]
    for to in corners[1:]:
        steps = max(1, round(math.dist(points[-1], to) / (mps * EVERY_S)))
        before = points[-1]
        points += [
            (before[0] + (to[0] - before[0]) * n / steps, before[1] + (to[1] - before[1]) * n / steps)
            for n in range(1, steps + 1)
        ]
    return points


class World:
    """The fold, and both legs behind it."""

    def __init__(self, track: Sequence[Xy], home: Xy) -> None:
        self.track, self.home = track, home
        self.fold = Story(clear_after_s=CLEAR_AFTER_S)
        self.fold.case()
        self.probation, self.police = incidents.Story("probation"), incidents.Story("police", NO_ROSTER)
        travel = {(id_, "p"): Travel(s, Estimate.ROAD) for id_, s in (("a1", 200), ("a2", 260), ("b1", 320))}
        self.police.board = board(TWO_OFFICES, [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")], travel=travel)
        self.steps: list[tuple[int, dispatch_pb2.Step]] = []
        """What probation's desk gets: its own steps, and the police's as they leave; each with the number of the report."""
        self.alerts: list[Alert] = []
        """With figures: the police's."""

    def run(self) -> None:
        for n, (north_m, east_m) in enumerate(self.track):
            known = len(self.fold.alerts)
            self.fold.at(n * EVERY_S, "phone", *self.home)
            self.fold.at(n * EVERY_S, "tag", north_m, east_m)
            self.alerts = self.fold.alerts
            for leg in (self.probation, self.police):
                leg.now_ms = T0_MS + n * EVERY_S * 1000
            for alert in self.alerts[known:]:
                message = of_fold.alert_to_proto(alert, 0)
                for leg in (self.probation, self.police):
                    told = translate.alert(message.SerializeToString(), leg.incident.leg)
                    assert (
                        told is None
                        or leg is self.police
                        or alert.kind is not AlertKind.DISTANCE_CHANGED
                        or not told.subject_ids
                    )
                    if told:
                        self._after(n, leg, leg.fold(told))
            for leg, subject in ((self.probation, "w"), (self.police, "p")):
                id_ = leg.id_of(subject)
                if id_ in leg.incident.assignments:
                    self._after(n, leg, leg.pass_time(0))
                    look = TargetUpdate("incident-1", id_, subject, self._approach(n, leg, id_), 0)
                    self._after(n, leg, leg.do(Follow(look, leg.now_ms, DEADLINES, leg.board)))

    def _approach(self, n: int, leg: incidents.Story, id_: str) -> Approach:
        seen = [Sighting(m * EVERY_S * 1000, at(self.track[m])) for m in range(max(0, n - 4), n + 1)]
        if leg is self.police:
            return approach(seen, at(self.home), 0)
        return approach_by_ring(seen, leg.incident.ring_m(id_))

    def _after(self, n: int, leg: incidents.Story, events: Sequence[Event]) -> None:
        for event in events:
            assignment: Assignment | None = leg.incident.assignments.get(getattr(event, "assignment_id", ""))
            if assignment is None:
                continue
            kept = type(event).__name__ in ("Raced", "Retargeted", "SceneShared", "SpoofingSuspected")
            step = translate.step(leg.incident, assignment, leg.now_ms, None, kept)
            if leg is self.police:
                if kept:
                    continue
                step = dispatch_pb2.Step.FromString(translate.outward(step))
            self.steps.append((n, step))

    # ── what the attackers make of it ──

    def pace(self, n: int) -> float:
        return pace_mps([Sighting(m * EVERY_S * 1000, at(self.track[m])) for m in range(max(0, n - 4), n + 1)])

    def rings(self) -> Got:
        """Rings alone: each was entered between two reports; the widest was left a known time before the incident ended."""
        got = Got()
        for n, step in self.steps:
            told = step.assignment
            if told.leg != alert_pb2.PROBATION:
                continue
            radius_m = 0.0
            if told.state == dispatch_pb2.NOTIFIED and told.kind == alert_pb2.RING_ENTERED:
                radius_m = 1_000.0
            elif step.kept and told.one_scene_at == step.at:
                radius_m = 100.0
            elif told.state == dispatch_pb2.STOOD_DOWN:
                left = n - CLEAR_AFTER_S // EVERY_S
                got.beyond.append((self.track[left], CLEARED_M))
                got.within.append((self.track[left - 2], CLEARED_M))
            if radius_m:
                got.within.append((self.track[n], radius_m))
                got.beyond.append((self.track[n - 1], radius_m))
        return got

    def everything(self, trust: float) -> Got:
        """The rings, and each moment at which something else came."""
        got = self.rings()
        got.trust = trust
        for n, step in self.steps:
            told = step.assignment
            if (told.leg == 1 and step.kept and told.HasField("race")) or (told.leg == 2 and told.state in (2, 3)):
                got.paced.setdefault(told.leg, []).append((self.track[n], self.pace(n)))
        return got

    def with_figures(self) -> Got:
        """What the police have."""
        got = self.rings()
        for alert in self.alerts:
            if alert.distance_mm is not None:
                n = round((alert.at_ms - T0_MS) / 1000 / EVERY_S)
                got.exact.append((self.track[n], math.dist(self.track[n], self.home)))
        return got


def at(xy: Xy) -> LatLon:
    lat_e7, lon_e7 = place_e7(*xy)
    return LatLon(lat_e7 / 1e7, lon_e7 / 1e7)


def located(got: Got) -> Xy:
    """The least-squares place: the middle of all that fit equally well, on a grid that is refined twice."""
    middle, half_m = (0.0, 0.0), 3_500.0
    centre = np.mean([place for place, _ in got.within], axis=0) if got.within else np.zeros(2)
    middle = (float(centre[0]), float(centre[1]))
    for cells in (100, 60, 60):
        side = np.linspace(-half_m, half_m, cells)
        north, east = np.meshgrid(middle[0] + side, middle[1] + side, indexing="ij")
        cost = misfit(got, north, east)
        best = cost <= cost.min() + 25.0
        middle = (float(north[best].mean()), float(east[best].mean()))
        half_m = max(half_m / 12, 3 * float(max(north[best].std(), east[best].std())))
    return middle


def misfit(got: Got, north: np.ndarray, east: np.ndarray) -> np.ndarray:
    """Sum of squares, m2, at each cell."""

    def away(place: Xy) -> np.ndarray:
        return np.hypot(north - place[0], east - place[1])

    cost = np.zeros_like(north)
    for place, radius_m in got.within:
        cost += np.maximum(0, away(place) - radius_m) ** 2
    for place, radius_m in got.beyond:
        cost += np.maximum(0, radius_m - away(place)) ** 2
    for place, distance_m in got.exact:
        cost += (away(place) - distance_m) ** 2
    for told in got.paced.values():
        fits = [np.sum([(away(place) - pace * t) ** 2 for place, pace in told], axis=0) for t in range(60, 601, 60)]
        cost += got.trust * np.min(fits, axis=0)
    return cost


def worlds() -> Iterator[World]:
    for seed in range(WALKS):
        rng = random.Random(1000 + seed)
        world = World(walk(seed), (rng.uniform(-40, 40), rng.uniform(-40, 40)))
        world.run()
        if any(alert.kind is AlertKind.RING_ENTERED and alert.ring_mm == 100_000 for alert in world.alerts):
            yield world


def test_nothing_that_probation_gets_locates_her_better_than_the_rings_do(capsys: pytest.CaptureFixture[str]) -> None:
    errors: dict[str, list[float]] = {}
    paced = 0
    for world in worlds():
        got = {"rings": world.rings(), "figures": world.with_figures()}
        got |= {f"everything, trusted {trust:g}": world.everything(trust) for trust in TRUSTS}
        paced += sum(map(len, world.everything(1).paced.values()))
        for name, one in got.items():
            errors.setdefault(name, []).append(math.dist(located(one), world.home))
    found = {name: median(values) for name, values in errors.items()}
    with capsys.disabled():
        print("\nmedian error of an attacker, metres:", {name: round(metres, 1) for name, metres in found.items()})
    assert len(errors["rings"]) >= WALKS // 2 and paced
    assert found["figures"] < 1, "the attacker can locate whom it has distances of"
    best = min(metres for name, metres in found.items() if name.startswith("everything"))
    assert best > 0.9 * found["rings"], "the tenth is for luck: medians of so few walks differ"


def test_probation_gets_the_same_to_the_byte_wherever_she_is_within_what_the_rings_tell() -> None:
    """Of two homes on either side of a straight way the rings tell the same, and so does all else that is probation's own."""
    track: list[Xy] = [(2_600.0 - 20 * n, 0.0) for n in range(180)]
    told = []
    for east_m in (-70.0, 70.0):
        world = World(track, (0.0, east_m))
        world.run()
        own = [(n, step.SerializeToString(deterministic=True)) for n, step in world.steps if step.assignment.leg == 1]
        assert any(step.assignment.HasField("race") for _, step in world.steps)
        told.append(own)
    assert told[0] == told[1] and told[0]
