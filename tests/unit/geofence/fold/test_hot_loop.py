"""The hot loop gives the outputs and the state of a plain path: the same steps, one fix at a time and without shortcuts."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple
from unittest import mock

from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec, hot_loop
from services.geofence.domain.alerts import Alert, CausingReport, DeadLetter, SensingRequest
from services.geofence.domain.decisions import Decisions, Movement
from services.geofence.domain.detectors import anomalies
from services.geofence.domain.detectors.late_evidence import TooLate
from services.geofence.domain.entries import Body, Positions, PositionSource, Rules
from services.geofence.domain.geometry import ecef_mm
from services.geofence.domain.hot_loop import FIXES_PER_CLEANUP, BatchMoves
from services.geofence.domain.kinematics.fixes import Fix
from services.geofence.domain.kinematics.track import WINDOW_MS, Track, is_jump, repeats
from tandem.common.v1 import exercise_pb2, log_pb2, presence_pb2, tag_duty_pb2
from tests.support.geofence.stories import T0_MS, Story, circle, place_e7, unit

TOO_LATE = "older than 2 h"
OVERDUE = "from before the end of an order that is over"
OF_PREVIOUS_OWNER = "from before their device changed hands"
CONTRADICTING = "with the id and time of an earlier report but another content"


class Report(NamedTuple):
    """One position of a batch."""

    device_id: str
    report_id: str
    fix_time_ms: int
    lat_e7: int
    lon_e7: int
    accuracy_mm: int
    source: int


def fold_plainly(decisions: Decisions, batch: Positions) -> None:
    """The plain path: `Track.add` puts each fix in its place, and each is fully evaluated, whatever the safe regions say."""
    state, moves = decisions.state, BatchMoves(decisions)
    set_aside: Counter[str] = Counter()
    too_late: list[TooLate] = []
    columns = (batch.device_ids, batch.report_ids, batch.fix_times_ms, batch.lat_e7, batch.lon_e7, batch.accuracy_mm)
    for row in zip(*columns, hot_loop.sources_of(batch), strict=True):
        report = Report(*row)
        report = report._replace(accuracy_mm=max(report.accuracy_mm, hot_loop.MIN_ACCURACY_MM[report.source]))
        time_ms = min(report.fix_time_ms, state.now_ms)
        if time_ms < state.now_ms - WINDOW_MS:
            set_aside[TOO_LATE] += 1
            point = ecef_mm(report.lat_e7, report.lon_e7)
            too_late.append(TooLate(report.device_id, time_ms, point, accuracy_mm=report.accuracy_mm))
        elif time_ms < state.owned_since.get(report.device_id, time_ms):
            set_aside[OF_PREVIOUS_OWNER] += 1
        elif reason := _fold_one(decisions, moves, report, received_wall_us=batch.received_wall_us):
            set_aside[reason] += 1
    moves.finish()
    if too_late:
        hot_loop.fold_too_late(decisions, too_late)
    for reason in (TOO_LATE, OVERDUE, OF_PREVIOUS_OWNER, CONTRADICTING):
        if set_aside[reason]:
            decisions.dead_letter(f"{set_aside[reason]} positions {reason}")


def _fold_one(decisions: Decisions, moves: BatchMoves, report: Report, *, received_wall_us: int) -> str | None:
    """Folds one position. Returns why it is set aside, if it is: no case names its device and it is from before the end of an order,
    or its report was there before with another content."""
    state, device_id = decisions.state, report.device_id
    track = state.tracks.setdefault(device_id, Track())
    point = ecef_mm(report.lat_e7, report.lon_e7)
    time_ms = min(report.fix_time_ms, state.now_ms)
    fix = Fix(time_ms, report.fix_time_ms, report.report_id, *point, report.accuracy_mm, report.source)
    if repeats(track, fix):
        return None
    neighbours = track.add(fix)
    if neighbours is None:
        return CONTRADICTING if track.contradicts(fix) else None
    state.undated_ms.pop(device_id, None)
    case_ids = state.cases_of.get(device_id)
    if not case_ids:
        track.forget_before(state.now_ms)
        return OVERDUE if time_ms < state.order_ended_ms.get(device_id, 0) else None
    cause = CausingReport(device_id, report.report_id, received_wall_us)
    before, after = neighbours
    if before and is_jump(before, fix):
        anomalies.jumped(decisions, fix, case_ids, cause=cause)
    movement = Movement(device_id, (before or fix).time_ms, after.time_ms if after else None)
    moves.add(movement, case_ids, cause=cause)
    count = len(track.fixes)
    if count % FIXES_PER_CLEANUP == 0:
        hot_loop.forget_old(state, device_id, case_ids)
    if count % anomalies.FIXES_PER_CHECK == 0 and after is None:
        anomalies.check_track(decisions, track, case_ids, cause=cause)
    return None


class PlainStory(Story):
    """A story whose positions take the plain path."""

    def enter(self, at_s: float, body: Body) -> None:
        with mock.patch.object(hot_loop, "fold_positions", fold_plainly):
            super().enter(at_s, body)


class Leg(NamedTuple):
    """Some reports of a device that moves in a straight line, which arrive in the same batch."""

    device_id: str
    reports: int
    interval_s: int
    mps: float
    heading: float
    jump_m: float
    """How far the first of them is off."""
    late_s: int
    """How long before the arrival the last position was measured; negative for a clock that is ahead."""
    accuracy_m: int
    resent: bool
    copied: bool = False
    """Whether the last of them come once more under other ids."""
    source: PositionSource = PositionSource.UNSPECIFIED


class Batch(NamedTuple):
    """A batch of reports, and what enters the log before it."""

    after_s: int
    before: str
    legs: list[Leg]


DEVICES = ("tag", "phone", "tag2", "watch", "stranger")
CHANGES = ("other wearer", "other phone", "order ends", "rules", "heard", "presence", "presence", "removal", "strap")
BEFORE = ("", "", "", "", *CHANGES)
LEGS = st.builds(
    Leg,
    device_id=st.sampled_from(("tag", "phone", *DEVICES)),
    reports=st.sampled_from((1, 2, 5, 20, 35)),
    interval_s=st.sampled_from((1, 5, 15, 15, 60, 400)),
    mps=st.sampled_from((0.0, 0.3, 1.4, 14.0, 40.0)),
    heading=st.sampled_from((0.0, math.pi, 1.0, 4.0)),
    jump_m=st.sampled_from((0.0, 0.0, 0.0, 300.0, 9_000.0)),
    late_s=st.sampled_from((0, 0, 0, 1, 30, 500, 8_000, -2, -60)),
    accuracy_m=st.sampled_from((5, 5, 20, 400)),
    resent=st.booleans(),
    copied=st.booleans(),
    source=st.sampled_from(PositionSource),
)
BATCHES = st.builds(
    Batch,
    after_s=st.sampled_from((1, 15, 15, 60, 600, 7_500)),
    before=st.sampled_from(BEFORE),
    legs=st.lists(LEGS, min_size=1, max_size=3),
)


def play(story: Story, batches: list[Batch], asks: bool = True) -> Story:
    """Enters the batches into a story of two cases, the second of which ends during the log. With `asks` the fold asks for data."""
    at_s = 0.0
    north_m = dict(zip(DEVICES, (9_000.0, 0.0, -9_000.0, 50.0, 700.0), strict=True))
    east_m = dict.fromkeys(DEVICES, 0.0)
    beacon = unit("her-beacon", 0, kind=presence_pb2.PRESENCE_UNIT_KIND_BLUETOOTH_BEACON)
    person = log_pb2.ProtectedTarget(person_id="p", device_ids=["phone"], presence_units=[beacon])
    kind = exercise_pb2.EXERCISE_UNSPECIFIED if asks else exercise_pb2.DRILL
    story.case(persons=[person], presence_units=[unit("home-unit", 9_000)], exercise=kind)
    second: dict[str, object] = {
        "wearer_id": "w2",
        "tag_device_ids": ["tag2"],
        "places": [circle("home", -5_000, 0, radius_m=50)],
    }
    second["valid_until_ms"] = T0_MS + 3_600_000
    story.case(0, "2", exercise=kind, **second)
    for version, batch in enumerate(batches, 2):
        at_s += batch.after_s
        _enter_before(story, at_s, batch.before, version=version, exercise=kind)
        reports: list[Report] = []
        for leg in batch.legs:
            device_id, duration_s = leg.device_id, leg.interval_s * (leg.reports - 1)
            for number in range(leg.reports):
                moved_m = leg.mps * leg.interval_s
                north_m[device_id] += moved_m * math.cos(leg.heading)
                east_m[device_id] += moved_m * math.sin(leg.heading)
                off_m = leg.jump_m if number == 0 else 0.0
                fix_ms = T0_MS + round((at_s - leg.late_s - duration_s + number * leg.interval_s) * 1000)
                place = place_e7(north_m[device_id] + off_m, east_m[device_id])
                reports.append(Report(device_id, f"{fix_ms}", fix_ms, *place, leg.accuracy_m * 1000, leg.source))
            if leg.resent:
                reports += reports[-2:]
            if leg.copied:
                reports += [report._replace(report_id=f"{report.report_id}-copy") for report in reports[-2:]]
        story.enter(at_s, _batch_of(reports))
    return story


def _batch_of(reports: list[Report]) -> Positions:
    return Positions(
        device_ids=[report.device_id for report in reports],
        report_ids=[report.report_id for report in reports],
        fix_times_ms=[report.fix_time_ms for report in reports],
        lat_e7=[report.lat_e7 for report in reports],
        lon_e7=[report.lon_e7 for report in reports],
        accuracy_mm=[report.accuracy_mm for report in reports],
        received_wall_us=7,
        sources=[report.source for report in reports],
    )


def _enter_before(
    story: Story, at_s: float, what: str, *, version: int, exercise: exercise_pb2.Exercise.ValueType
) -> None:
    match what:
        case "other wearer":  # the tag changes hands
            story.case(at_s, case="3", wearer_id="w3", version=version, exercise=exercise)
        case "other phone":
            person = log_pb2.ProtectedTarget(person_id="p", device_ids=["watch", "phone"])
            story.case(
                at_s,
                version=version,
                exercise=exercise,
                persons=[person],
                places=[circle("work", 4_000, 0, radius_m=30)],
            )
        case "order ends":
            story.case(at_s, version=version, exercise=exercise, valid_until_ms=T0_MS + round(at_s * 1000) + 60_000)
        case "rules":
            story.enter(at_s, Rules(rules_id="next", reach_mps=5 + version, clear_after_ms=30_000))
        case "heard":
            story.heard(at_s, "tag", "phone")
        case "presence":
            story.present(at_s, "home-unit", since_s=at_s - 500)
            story.present(at_s, "her-beacon", "phone")
        case "removal":
            begun_ms = T0_MS + round(at_s * 1000) - 10_000
            allowed = tag_duty_pb2.TagRemoval(device_id="tag", from_ms=begun_ms, until_ms=begun_ms + 1_800_000)
            story.case(
                at_s,
                version=version,
                exercise=exercise,
                tag_duty=tag_duty_pb2.TagDuty(fit_by_ms=T0_MS),
                removals=[allowed],
            )
        case "strap":
            story.says(at_s, "tag", "STRAP_CLOSED" if version % 3 == 0 else "STRAP_OPEN")


@given(st.lists(BATCHES, min_size=1, max_size=8), st.sampled_from((True, True, False)))
@settings(max_examples=50, deadline=None)
def test_the_hot_loop_equals_the_plain_path(batches: list[Batch], asks: bool) -> None:
    hot, plain = play(Story(), batches, asks), play(PlainStory(), batches, asks)
    assert hot.outputs == plain.outputs
    assert codec.encode(hot.state) == codec.encode(plain.state)


def test_the_hot_loop_skips_reports_that_the_plain_path_evaluates() -> None:
    still = Leg("phone", 4, 15, mps=0.0, heading=0.0, jump_m=0.0, late_s=0, accuracy_m=5, resent=False)
    walk, other = still._replace(device_id="tag", mps=1.4), still._replace(device_id="tag2", mps=14.0)
    evaluated = []
    for story in (Story(), PlainStory()):
        add = mock.Mock(wraps=BatchMoves.add)
        with mock.patch.object(BatchMoves, "add", lambda *args, add=add, **names: add(*args, **names)):
            play(story, [Batch(60, "", [other, still, walk]) for _ in range(20)])
        evaluated.append(add.call_count)
    assert evaluated[1] == 240 and evaluated[0] < 180


def test_the_random_batches_reach_each_kind_of_output() -> None:
    """The drawn values at their extremes: rings are entered, jumps are emitted, and each reason of a dead letter occurs."""
    leg = Leg("tag", 10, 15, mps=14.0, heading=math.pi, jump_m=9_000.0, late_s=0, accuracy_m=5, resent=True)
    phone = leg._replace(device_id="phone", mps=0.0, jump_m=0.0)
    batches = [Batch(600, "", [leg, phone]) for _ in range(8)]
    batches += [Batch(15, "", [leg._replace(late_s=8_000)]), Batch(15, "other wearer", [leg._replace(late_s=500)])]
    batches += [Batch(15, "order ends", [phone._replace(device_id="tag2", late_s=1_500)])]
    outputs = play(Story(), batches).outputs
    assert any(isinstance(output, SensingRequest) for output in outputs)
    kinds = {output.kind.value for output in outputs if isinstance(output, Alert)}
    reasons = "; ".join(output.reason for output in outputs if isinstance(output, DeadLetter))
    assert kinds >= {"RING_ENTERED", "IMPLAUSIBLE"}
    assert all(reason in reasons for reason in (TOO_LATE, OVERDUE, OF_PREVIOUS_OWNER))
