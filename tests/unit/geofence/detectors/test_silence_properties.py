"""Silence is decided by time, but not by when it is checked: ticks and restarts anywhere give the same alerts."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from services.geofence.domain import codec, fold
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import silence
from services.geofence.domain.entries import Body, Entry, EquipmentKind, Rules, Tick
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle

REPORTS = 80


@dataclass
class Ticked(Story):
    """A story without the ticks of a running evaluator, but with ticks at these seconds."""

    ticks_s: list[float] = field(default_factory=list)

    def enter(self, at_s: float, body: Body) -> None:
        while self.ticks_s and self.ticks_s[0] <= at_s:
            self._step(self.ticks_s.pop(0), Tick())
        self._step(at_s, body)

    def _step(self, at_s: float, body: Body) -> None:
        stamp_ms = T0_MS + round(at_s * 1000)
        self.outputs += fold.step(self.state, Entry(self.state.sequence + 1, stamp_ms, body))


def live(story: Story, seed: int, splits: frozenset[int] = frozenset(), *, cells: bool = False) -> Story:
    """Two hours and more of two orders, with a restart before each split.

    It holds reports with gaps of up to half an hour, events and amendments. With `cells`, everybody stays near, and many positions are
    as vague as a radio cell.
    """
    rng, vague = random.Random(seed), random.Random(seed)
    reach_m = 1500 if cells else 6000
    at_s = 0.0
    story.case(at_s, valid_until_ms=T0_MS + 20_000_000)
    for i in range(REPORTS):
        if i in splits:
            story.state = codec.decode(codec.encode(story.state))
        at_s += rng.choice((5, 20, 60, 170, 200, 600, 1900))
        device_id = rng.choice(("tag", "tag", "phone"))
        match rng.randrange(10):
            case 0:
                persons = [log_pb2.ProtectedTarget(person_id="p", device_ids=rng.choice((["phone"], [], ["watch"])))]
                places = [circle(rng.choice(("home", "work")), rng.uniform(-9000, 9000), 0, radius_m=20)]
                tags = rng.choice((["tag"], ["tag", "spare"], []))
                begins_ms = T0_MS + round(at_s * 1000) + rng.choice((-900_000, 400_000))
                case = {"persons": persons, "places": places, "tag_device_ids": tags, "valid_from_ms": begins_ms}
                story.case(at_s, version=i + 2, case=rng.choice("12"), **case)
            case 1:
                story.heard(at_s, device_id)
            case 2:
                event = rng.choice([kind.value for kind in sorted(EquipmentKind, key=lambda kind: kind.value)])
                story.says(at_s, device_id, event)
            case 3:
                story.enter(at_s, Rules(silent_notify_after_ms=rng.choice((400_000, 1_800_000))))
            case _:
                fix_s = at_s - rng.choice((0, 0, 0, 90, 400))
                accuracy_m = 900 if cells and vague.random() < 0.4 else 5
                story.at(at_s, device_id, rng.uniform(-reach_m, reach_m), fix_s=fix_s, accuracy_m=accuracy_m)
    story.tick(at_s + 4000)
    return story


def jumping(story: Story, seed: int, splits: frozenset[int] = frozenset()) -> Story:
    """An hour or two near her, in which the tag jumps to a town 30 km away and back, with gaps and late reports."""
    rng = random.Random(seed)
    at_s = 0.0
    is_away = False
    story.case(at_s, places=[circle("home", 0, 0, radius_m=20)], valid_until_ms=T0_MS + 20_000_000)
    for i in range(REPORTS):
        if i in splits:
            story.state = codec.decode(codec.encode(story.state))
        at_s += rng.choice((5, 20, 30, 30, 60, 60, 90, 200, 600))
        if rng.random() < 0.25:
            story.at(at_s, "phone", rng.uniform(-300, 300), fix_s=at_s - rng.choice((0, 0, 90)))
            continue
        is_away ^= rng.random() < 0.12
        fix_s = at_s - rng.choice((0, 0, 0, 20, 200))
        east_m = 30_000 + rng.uniform(-400, 400) if is_away else rng.uniform(-300, 300)
        accuracy_m = rng.choice((5, 5, 5, 40, 900))
        story.at(at_s, "tag", rng.choice((150, 400, 850, 1500)), east_m, fix_s=fix_s, accuracy_m=accuracy_m)
    story.tick(at_s + 4000)
    return story


def essence(story: Story) -> list[tuple[object, ...]]:
    """What a story decided, but for when each decision was made."""
    return [
        (a.kind, a.demand, a.at_ms, a.case_id, a.target_id, a.ring_mm, a.incident_opens, a.incident_ends)
        for a in story.alerts
    ]


@given(st.integers(0, 100_000), st.sets(st.integers(0, REPORTS - 1), max_size=12))
@settings(max_examples=60, deadline=None)
def test_restarts_anywhere_change_nothing(seed: int, splits: set[int]) -> None:
    whole, story = live(Story(), seed), live(Story(), seed, frozenset(splits))
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


@given(st.integers(0, 100_000), st.lists(st.floats(0, 60_000), max_size=40))
@example(5034, []).via("a ring that time alone entered was open from the tick on instead of from its own moment")
@example(5050, []).via("a ring that time alone entered counted as entered by a late report")
@example(4068, []).via("the same, with a second approach")
@example(9887, []).via(
    "a position that no case named was destroyed as of the next entry instead of as of the full hour"
)
@settings(max_examples=60, deadline=None)
def test_extra_ticks_change_only_the_moment_of_decisions(seed: int, ticks_s: list[float]) -> None:
    whole = live(Story(), seed)
    assert essence(live(Ticked(), seed)) == essence(whole)
    assert essence(live(Ticked(ticks_s=sorted(ticks_s)), seed)) == essence(whole)


@given(st.integers(0, 100_000), st.sets(st.integers(0, REPORTS - 1), max_size=12))
@settings(max_examples=60, deadline=None)
def test_ticks_and_restarts_change_nothing_of_vague_positions(seed: int, splits: set[int]) -> None:
    whole = live(Story(), seed, cells=True)
    assert live(Story(), seed, frozenset(splits), cells=True).outputs == whole.outputs
    assert essence(live(Ticked(), seed, cells=True)) == essence(whole)


@given(st.integers(0, 100_000), st.sets(st.integers(0, REPORTS - 1), max_size=12))
@settings(max_examples=60, deadline=None)
def test_ticks_and_restarts_change_nothing_of_jumps(seed: int, splits: set[int]) -> None:
    whole = jumping(Story(), seed)
    assert jumping(Story(), seed, frozenset(splits)).outputs == whole.outputs
    assert essence(jumping(Ticked(), seed)) == essence(whole)


def test_random_lives_cover_all_alerts_of_silence() -> None:
    kinds = {(alert.kind, alert.demand.name) for seed in range(30) for alert in live(Story(), seed).alerts}
    assert kinds >= {
        (AlertKind.SILENT, "RECORD"),
        (AlertKind.SILENT, "NOTIFY"),
        (AlertKind.HEARD_AGAIN, "RECORD"),
        (AlertKind.UNKNOWN_NEAR, "RECORD"),
        (AlertKind.UNKNOWN_NEAR, "NOTIFY"),
        (AlertKind.UNKNOWN_NEAR, "RESPOND"),
        (AlertKind.PROTECTED_DEVICE_LOST, "NOTIFY"),
        (AlertKind.PROTECTED_DEVICE_LOST, "RECORD"),
    }


@given(st.integers(0, 100_000))
@settings(max_examples=30, deadline=None)
def test_silence_leaves_no_more_behind_than_cases_and_devices(seed: int) -> None:
    story = live(Story(), seed)
    assert len(story.state.due) <= 4 + REPORTS
    assert story.state.silent_devices <= {"tag", "spare", "phone", "watch"}
    story.tick(10_000_000)
    assert not any(
        case.near or case.silent or case.lost or case.unseen for case in story.state.cases.values() if case.ended
    )


@given(st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_the_short_check_of_a_quiet_case_gives_the_result_of_the_full_check(seed: int) -> None:
    short = live(Story(), seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(silence, "quiet_until_ms", lambda *_: None)
        whole = live(Story(), seed)
    assert short.outputs == whole.outputs
    assert codec.encode(short.state) == codec.encode(whole.state)
