"""Safe regions: they save the evaluation of nearly all reports and change no decision."""

from __future__ import annotations

import math
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind, SensingRequest
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import FOLD_VERSION, FoldVersion, Rules
from tandem.common.v1 import geometry_pb2
from tests.support.geofence.stories import Story, circle
from tests.support.geofence.travels import Counting, Reports, Restored, Whole, deliver, regions_of, travels


@given(st.integers(0, 100_000))
@settings(max_examples=80, deadline=None)
def test_safe_regions_change_no_decision(seed: int) -> None:
    reports = travels(seed)
    story, whole = deliver(Story(), reports), deliver(Whole(), reports)
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


def jump(story: Story, seed: int) -> Story:
    """A wearer who moves round her home and a place, with a tag and a phone that are kilometres off for a few reports at a time."""
    rng = random.Random(seed)
    rings = [geometry_pb2.Ring(radius_m=100, action=geometry_pb2.RESPOND)]
    changes: dict[str, object] = {"rings": rings} if rng.random() < 0.5 else {}
    story.case(0, "1", places=[circle("home", -4000, 0, radius_m=50)], **changes)
    at_s = 0.0
    mps = rng.choice((0.0, 0.3, 0.5, 1.5, 12))
    heading = rng.uniform(0, math.tau)
    away_m = rng.uniform(120, rng.choice((250, 1000, 4000)))
    his = [away_m * math.cos(heading), away_m * math.sin(heading)]
    off: dict[str, tuple[float, float]] = {}
    left = dict.fromkeys(("tag", "phone"), 0)

    def report(device: str, north_m: float, east_m: float) -> None:
        left[device] -= 1
        if left[device] < 0:
            off[device] = (0.0, 0.0)
            if rng.random() < 0.08:
                left[device] = rng.randint(0, 4)
                off[device] = (rng.uniform(-15_000, 15_000), rng.uniform(-15_000, 15_000))
        north_m, east_m = north_m + off[device][0], east_m + off[device][1]
        story.at(at_s, device, north_m, east_m, accuracy_m=rng.choice((5, 5, 20)))

    for i in range(100):
        if i == 5:
            story.enter(at_s, FoldVersion(FOLD_VERSION))  # from here on the fold asks for data
        step_s = rng.choice((15, 15, 60, 600 if rng.random() < 0.1 else 15))
        at_s += step_s
        heading = rng.uniform(0, math.tau) if rng.random() < 0.1 else heading
        his[0] += mps * step_s * math.cos(heading)
        his[1] += mps * step_s * math.sin(heading)
        if i % 4 == 0:
            report("phone", 0, 0)
        report("tag", *his)
        if i == 40:
            story.enter(at_s, Rules(rules_id="next", reach_mps=rng.choice((5, 14, 40))))
    return story


@given(st.integers(0, 100_000))
@settings(max_examples=60, deadline=None)
def test_a_position_jump_is_notified_with_or_without_safe_regions_and_checkpoints(seed: int) -> None:
    story = jump(Story(), seed)
    whole = jump(Whole(), seed)
    restored = jump(Restored(seed=seed), seed)
    assert story.outputs == whole.outputs
    assert story.outputs == restored.outputs
    assert codec.encode(story.state) == codec.encode(whole.state) == codec.encode(restored.state)


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_an_evaluator_restored_from_a_checkpoint_decides_the_same(seed: int) -> None:
    reports = travels(seed)
    story, restored = deliver(Story(), reports), deliver(Restored(seed=seed), reports)
    assert story.outputs == restored.outputs
    assert codec.encode(story.state) == codec.encode(restored.state)


def test_the_random_jumps_are_notified_and_use_safe_regions() -> None:
    emitted = held = 0
    for seed in range(20):
        story = Counting()
        jump(story, seed)
        emitted += len([alert for alert in story.of(AlertKind.UNKNOWN_NEAR) if alert.anomaly is AnomalyKind.JUMP])
        held += story.held
    assert emitted > 5 and held > 50


def test_the_random_travels_enter_rings_and_use_safe_regions() -> None:
    entered = held = requests = 0
    for seed in range(10):
        story = Counting()
        deliver(story, travels(seed))
        entered += len(story.of(AlertKind.RING_ENTERED))
        held += story.held
        requests += sum(isinstance(output, SensingRequest) for output in story.outputs)
    assert entered > 20 and held > 50 and requests > 50


def test_a_distant_device_keeps_one_safe_region_and_a_near_one_has_none() -> None:
    story = Story()
    story.case()
    for i in range(20):
        story.at(i * 15, "phone", 0, 20 * (i % 3))
        story.at(i * 15 + 1, "tag", 20_000, 20 * (i % 3))
    regions = regions_of(story.state)
    assert regions.keys() == {"tag", "phone"}
    apart_m = 20_000 - sum(region.free_mm for region in regions.values()) / 1000
    assert apart_m > 2000 + 1800  # the widest ring, and how far a movement is predicted
    story.at(301, "tag", 20_000)
    assert regions_of(story.state) == regions
    story.at(600, "tag", 3000)
    assert not regions_of(story.state)


def both(reports: Reports) -> list[int]:
    """Rings entered; they must be the same with and without safe regions."""
    found = []
    for story in (Story(), Whole()):
        story.case()
        for at_s, device, north_m, east_m, fix_s, accuracy_m in reports:
            story.at(at_s, device, north_m, east_m, fix_s=fix_s, accuracy_m=accuracy_m)
        found.append(story)
    assert found[0].outputs == found[1].outputs
    return found[0].entered()


def test_a_late_report_counts_for_the_other_sides_next_position() -> None:
    """He was 1.5 km from her way between two of her reports, and 3.8 km from each end of it."""
    here = [(0.0, "phone", 0.0, 0.0, 0.0, 5.0), (1.0, "tag", 20_000.0, 0.0, 1.0, 5.0)]
    late = [(160.0, "tag", 20_000.0, 0.0, 160.0, 5.0), (165.0, "tag", 1500.0, 3500.0, 85.0, 5.0)]
    assert both([*here, (2.0, "phone", 0, 0, 2, 5), *late, (171.0, "phone", 0, 7000, 171, 5)]) == [2000]


def test_her_positions_before_a_late_safe_region_count() -> None:
    """She was far out and back again before his reports of that time arrived."""
    hers = [(1.0, "phone", 0.0, 0.0, 1.0, 5.0), (201.0, "phone", 500.0, 0.0, 170.0, 5.0)]
    hers += [(202.0, "phone", 13_500.0, 0.0, 200.0, 5.0), (260.0, "phone", 0.0, 0.0, 260.0, 5.0)]
    his = [(261.0, "tag", 20_000.0, 0.0, 170.0, 5.0), (265.0, "tag", 12_200.0, 0.0, 215.0, 5.0)]
    assert both([hers[0], (100.0, "tag", 20_000.0, 0.0, 100.0, 5.0), *hers[1:], *his])[:1] == [2000]


def test_a_step_past_a_safe_region_is_evaluated_for_both_sides() -> None:
    """He passes 5 km from her last position, and 2 km from her true position at that time."""
    before = [(0.0, "tag", 30_000.0, 5000.0, 0.0, 5.0), (1.0, "phone", 0.0, 0.0, 1.0, 5.0)]
    before += [(5.0, "tag", 30_000.0, 5000.0, 5.0, 5.0), (10.0, "phone", 0.0, 0.0, 10.0, 5.0)]
    assert both([*before, (170.0, "tag", -30_000, 5000, 170, 5), (175.0, "phone", 0, 7000, 175, 5)]) == [2000]


def test_a_vague_position_has_no_safe_region() -> None:
    story = Story()
    story.case()
    held = []
    for at_s, accuracy_m in ((0, 5), (20, 1000), (40, 4000), (60, 5), (80, 5)):
        story.at(at_s, "phone", 0)
        story.at(at_s + 1, "tag", 20_000, accuracy_m=accuracy_m)
        held.append("tag" in regions_of(story.state))
    # He was unseen until his first report. After a vague report the next may join two earlier ones, and so may the step after it.
    assert held == [False, False, False, False, True]
