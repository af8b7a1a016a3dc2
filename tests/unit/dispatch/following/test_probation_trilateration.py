"""Trilateration attack on a protected person's address, with all data that probation gets: three distances and a track suffice.

The bound is the attack on the rings alone. Probation must learn of rings at once: the wearer was within a ring at one report and
not at the previous one. An attacker with the wearer's track can intersect the rings to some tens of metres, and no delay that
officers could accept changes that. Following, the race and the other leg's steps must not lead any closer. With the police's
distances the same attacker succeeds, which shows that the attack works. Nor do the Ministry's notices to her, and the checks that they
demand of probation, lead any closer.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from statistics import median

import numpy as np
import pytest

from services.common.geometry import LatLon
from services.dispatch.domain.assignment import Assignment, assignment_id
from services.dispatch.domain.enums import Estimate, Task
from services.dispatch.domain.events import Event, PrivateStep
from services.dispatch.domain.following import (
    Approach,
    Follow,
    Sighting,
    TargetUpdate,
    approach,
    approach_by_ring,
    pace_mps,
)
from services.dispatch.domain.roster import NO_ROSTER, Travel
from services.dispatch.leg import translate
from services.geofence import translate as of_fold
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from tandem.common.v1 import alert_pb2, notice_pb2
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.dispatch import incidents
from tests.support.dispatch.roster import TWO_OFFICES, board, unit
from tests.support.geofence.stories import T0_MS, Story, place_e7

REPORT_INTERVAL_S = 15
BEGIN_S = 13 * 3_600
"""The walks begin at noon in Korea, seconds of the story."""
BEGIN_MS = T0_MS + BEGIN_S * 1_000
WALKS = 14
TRUSTS = (1.0, 0.001)
CLEAR_AFTER_S = 60
CLEARED_M = 2_200.0
"""Distance, metres, at which the widest ring is cleared after CLEAR_AFTER_S. The attacker knows these rules."""
Xy = tuple[float, float]
"""Metres to the north and the east."""
NO_GROUND, JUDGMENT = notice_pb2.NOTICE_GROUND_UNSPECIFIED, notice_pb2.TAG_15_2
CHECKS = 11
"""Key of the steps of probation's checks among the steps by leg."""


@dataclass
class Knowledge:
    """Knowledge of an attacker: positions of the wearer, each with a bound or value of the distance to the protected person."""

    within: list[tuple[Xy, float]] = field(default_factory=list)
    beyond: list[tuple[Xy, float]] = field(default_factory=list)
    paced: dict[int, list[tuple[Xy, float]]] = field(default_factory=dict)
    """Positions of steps by leg, with the wearer's pace. The race may have turned there: then the distance is the pace times a time
    that is the same for all steps of the leg, and unknown."""
    trust: float = 1.0
    """Weight of `paced` against the rings."""
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
        steps = max(1, round(math.dist(points[-1], to) / (mps * REPORT_INTERVAL_S)))
        before = points[-1]
        points += [
            (before[0] + (to[0] - before[0]) * n / steps, before[1] + (to[1] - before[1]) * n / steps)
            for n in range(1, steps + 1)
        ]
    return points


class World:
    """A fold with both legs that follow its alerts. The order names no place, so there is no first contact with the wearer.

    With a ground, the Ministry notifies her, and probation gets checks.
    """

    def __init__(self, track: Sequence[Xy], home: Xy, ground: notice_pb2.NoticeGround.ValueType = NO_GROUND) -> None:
        self.track, self.home = track, home
        self.fold = Story(clear_after_s=CLEAR_AFTER_S)
        self.fold.case(BEGIN_S - 1, "1", notice_ground=ground)
        self.probation, self.police = incidents.Story("probation"), incidents.Story("police", NO_ROSTER)
        travel = {(id_, "p"): Travel(s, Estimate.ROAD) for id_, s in (("a1", 200), ("a2", 260), ("b1", 320))}
        self.police.board = board(TWO_OFFICES, [unit("a1", "a"), unit("a2", "a"), unit("b1", "b")], travel=travel)
        self.steps: list[tuple[int, dispatch_pb2.Step]] = []
        """Steps that probation's desk gets, each with the number of the report: its own, and the police's as published."""
        self.alerts: list[Alert] = []
        """Alerts of the fold, with the distances that only the police get."""

    def run(self) -> None:
        for n, (north_m, east_m) in enumerate(self.track):
            known = len(self.fold.alerts)
            self.fold.at(BEGIN_S + n * REPORT_INTERVAL_S, "phone", *self.home)
            self.fold.at(BEGIN_S + n * REPORT_INTERVAL_S, "tag", north_m, east_m)
            self.alerts = self.fold.alerts
            for leg in (self.probation, self.police):
                leg.now_ms = BEGIN_MS + n * REPORT_INTERVAL_S * 1000
            for alert in self.alerts[known:]:
                message = of_fold.alert_to_proto(alert, 0)
                for leg in (self.probation, self.police):
                    parsed = translate.alert(message.SerializeToString(), leg.incident.leg)
                    assert (
                        parsed is None
                        or leg is self.police
                        or alert.kind is not AlertKind.DISTANCE_CHANGED
                        or not parsed.subject_ids
                    )
                    if parsed:
                        self._after(n, leg, leg.fold(parsed))
            check_id = assignment_id("incident-1", self.probation.incident.leg, "w", task=Task.CHECK)
            for leg, subject, id_ in (
                (self.probation, "w", self.probation.id_of("w")),
                (self.probation, "w", check_id),
                (self.police, "p", self.police.id_of("p")),
            ):
                if id_ in leg.incident.assignments:
                    self._after(n, leg, leg.pass_time(0))
                    update = TargetUpdate("incident-1", id_, subject, self._approach(n, leg, id_), 0)
                    self._after(n, leg, leg.do(Follow(update)))

    def _approach(self, n: int, leg: incidents.Story, id_: str) -> Approach:
        recent = [Sighting(m * REPORT_INTERVAL_S * 1000, at(self.track[m])) for m in range(max(0, n - 4), n + 1)]
        if leg is self.police:
            return approach(recent, at(self.home), 0)
        return approach_by_ring(recent, leg.incident.ring_m(id_))

    def _after(self, n: int, leg: incidents.Story, events: Sequence[Event]) -> None:
        for event in events:
            assignment: Assignment | None = leg.incident.assignments.get(getattr(event, "assignment_id", ""))
            if assignment is None:
                continue
            kept = isinstance(event, PrivateStep)
            step = translate.step(leg.incident, assignment, leg.now_ms, latency_ms=None, kept=kept)
            if leg is self.police:
                if kept:
                    continue
                step = dispatch_pb2.Step.FromString(translate.outward(step))
            self.steps.append((n, step))

    # ── knowledge of the attackers ──

    def pace(self, n: int) -> float:
        return pace_mps(
            [Sighting(m * REPORT_INTERVAL_S * 1000, at(self.track[m])) for m in range(max(0, n - 4), n + 1)]
        )

    def rings(self) -> Knowledge:
        """Knowledge from rings alone: each was entered between two reports, and the widest was left a known time before the end."""
        got = Knowledge()
        for n, step in self.steps:
            assignment = step.assignment
            if assignment.leg != alert_pb2.PROBATION:
                continue
            radius_m = 0.0
            if assignment.state == dispatch_pb2.NOTIFIED and assignment.kind == alert_pb2.RING_ENTERED:
                radius_m = 1_000.0
            elif step.kept and assignment.one_scene_at == step.at:
                radius_m = 100.0
            elif assignment.state == dispatch_pb2.STOOD_DOWN:
                left = n - CLEAR_AFTER_S // REPORT_INTERVAL_S
                got.beyond.append((self.track[left], CLEARED_M))
                got.within.append((self.track[left - 2], CLEARED_M))
            if radius_m:
                got.within.append((self.track[n], radius_m))
                got.beyond.append((self.track[n - 1], radius_m))
        return got

    def everything(self, trust: float) -> Knowledge:
        """Knowledge from the rings, and from the position of the wearer at each other step."""
        got = self.rings()
        got.trust = trust
        for n, step in self.steps:
            leg, state = step.assignment.leg, step.assignment.state
            if step.assignment.task == notice_pb2.CHECK and state in (2, 3):
                got.paced.setdefault(CHECKS, []).append((self.track[n], self.pace(n)))
            elif (leg == 1 and step.kept and step.assignment.HasField("race")) or (leg == 2 and state in (2, 3)):
                got.paced.setdefault(leg, []).append((self.track[n], self.pace(n)))
        return got

    def with_figures(self) -> Knowledge:
        """Knowledge from the distances that the police have."""
        got = self.rings()
        for alert in self.alerts:
            if alert.distance_mm is not None:
                n = round((alert.at_ms - BEGIN_MS) / 1000 / REPORT_INTERVAL_S)
                got.exact.append((self.track[n], math.dist(self.track[n], self.home)))
        return got


def at(xy: Xy) -> LatLon:
    lat_e7, lon_e7 = place_e7(*xy)
    return LatLon(lat_e7 / 1e7, lon_e7 / 1e7)


def located(got: Knowledge) -> Xy:
    """The least-squares position: the middle of all cells that fit equally well, on a grid that is refined twice."""
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


def misfit(got: Knowledge, north: np.ndarray, east: np.ndarray) -> np.ndarray:
    """Sum of squared misfits, m², at each cell."""

    def away(place: Xy) -> np.ndarray:
        return np.hypot(north - place[0], east - place[1])

    cost = np.zeros_like(north)
    for place, radius_m in got.within:
        cost += np.maximum(0, away(place) - radius_m) ** 2
    for place, radius_m in got.beyond:
        cost += np.maximum(0, radius_m - away(place)) ** 2
    for place, distance_m in got.exact:
        cost += (away(place) - distance_m) ** 2
    for paced in got.paced.values():
        fits = [np.sum([(away(place) - pace * t) ** 2 for place, pace in paced], axis=0) for t in range(60, 601, 60)]
        cost += got.trust * np.min(fits, axis=0)
    return cost


def worlds(ground: notice_pb2.NoticeGround.ValueType = NO_GROUND) -> Iterator[World]:
    for seed in range(WALKS):
        rng = random.Random(1000 + seed)
        world = World(walk(seed), (rng.uniform(-40, 40), rng.uniform(-40, 40)), ground)
        world.run()
        if any(alert.kind is AlertKind.RING_ENTERED and alert.ring_mm == 100_000 for alert in world.alerts):
            yield world


def test_the_data_of_probation_locates_her_no_better_than_the_rings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    errors: dict[str, list[float]] = {}
    paced = 0
    for world in worlds():
        got = {"rings": world.rings(), "figures": world.with_figures()}
        got |= {f"everything, trusted {trust:g}": world.everything(trust) for trust in TRUSTS}
        assert not any(step.assignment.HasField("contact") for _, step in world.steps)
        paced += sum(map(len, world.everything(1).paced.values()))
        for name, knowledge in got.items():
            errors.setdefault(name, []).append(math.dist(located(knowledge), world.home))
    medians_m = {name: median(values) for name, values in errors.items()}
    with capsys.disabled():
        print("\nmedian error of an attacker, metres:", {name: round(metres, 1) for name, metres in medians_m.items()})
    assert len(errors["rings"]) >= WALKS // 2 and paced
    assert medians_m["figures"] < 1, "with distances the attacker locates her"
    best = min(metres for name, metres in medians_m.items() if name.startswith("everything"))
    assert best > 0.9 * medians_m["rings"], "10 % for chance: medians of few walks vary"


def test_notices_and_checks_locate_her_no_better_than_the_rings_alone(capsys: pytest.CaptureFixture[str]) -> None:
    errors: dict[str, list[float]] = {}
    checks = notices = 0
    for world in worlds(JUDGMENT):
        got = {"rings": world.rings()}
        got |= {f"everything, trusted {trust:g}": world.everything(trust) for trust in TRUSTS}
        checks += len(world.everything(1).paced.get(CHECKS, ()))
        notices += sum(alert.notice is not None for alert in world.alerts)
        for name, knowledge in got.items():
            errors.setdefault(name, []).append(math.dist(located(knowledge), world.home))
    medians_m = {name: median(values) for name, values in errors.items()}
    with capsys.disabled():
        print("\nwith notices and checks, metres:", {name: round(metres, 1) for name, metres in medians_m.items()})
    assert len(errors["rings"]) >= WALKS // 2 and checks and notices
    best = min(metres for name, metres in medians_m.items() if name.startswith("everything"))
    assert best > 0.9 * medians_m["rings"], "10 % for chance: medians of few walks vary"


def test_a_notice_gives_probation_no_moment_that_it_would_not_have_without_one() -> None:
    """A check begins with an alert that reaches probation's desk anyway, and nothing else that the desk gets changes."""
    for bare, with_notices in zip(worlds(), worlds(JUDGMENT), strict=True):
        before = [(n, step.SerializeToString()) for n, step in bare.steps if step.assignment.leg == 1]
        after = [(n, step) for n, step in with_notices.steps if step.assignment.leg == 1]
        response = [(n, step.SerializeToString()) for n, step in after if step.assignment.task != notice_pb2.CHECK]
        assert response == before
        offered = [n for n, step in after if step.assignment.task == notice_pb2.CHECK and step.assignment.state == 2]
        alerted = {
            round((alert.decided_at_ms - BEGIN_MS) / 1000 / REPORT_INTERVAL_S)
            for alert in bare.alerts
            if any(leg is Leg.PROBATION for leg, _ in alert.destinations)
        }
        assert offered and set(offered) <= alerted
        ends = [alert for alert in with_notices.alerts if alert.kind is AlertKind.NOTICE_ENDED]
        assert ends and all(leg is Leg.WARNING for alert in ends for leg, _ in alert.destinations)


@pytest.mark.parametrize("ground", [NO_GROUND, JUDGMENT])
def test_probation_gets_the_same_bytes_for_two_homes_that_the_rings_do_not_distinguish(
    ground: notice_pb2.NoticeGround.ValueType,
) -> None:
    """Two homes on either side of a straight track give the same rings, so all of probation's own steps must be the same too."""
    track: list[Xy] = [(2_600.0 - 20 * n, 0.0) for n in range(180)]
    steps_by_home = []
    for east_m in (-70.0, 70.0):
        world = World(track, (0.0, east_m), ground)
        world.run()
        own = [(n, step.SerializeToString(deterministic=True)) for n, step in world.steps if step.assignment.leg == 1]
        assert any(step.assignment.HasField("race") for _, step in world.steps)
        assert not any(step.assignment.HasField("contact") for _, step in world.steps)
        steps_by_home.append(own)
    assert steps_by_home[0] == steps_by_home[1] and steps_by_home[0]
