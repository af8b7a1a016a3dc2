"""Reports that arrive late, twice, out of order or with a wrong clock."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence import translate
from services.geofence.domain import codec
from services.geofence.domain.alerts import AnomalyKind, DeadLetter
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.detectors import accounts, approach
from services.geofence.domain.entries import Demand
from services.ingest.domain import Position, Positions
from services.ingest.translate import positions_entry
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, place_e7


def seconds(ms: int) -> float:
    return (ms - T0_MS) / 1000


def test_a_late_report_is_folded_and_its_alert_is_marked_late() -> None:
    story = Story()
    story.case()
    for t in (0, 60, 120, 180, 240):
        story.at(t, "phone", 0)
        story.at(t, "tag", 5000)
    story.at(300, "tag", 50, fix_s=100)
    # No movement leads there and back, so the desks check until another position agrees.
    [wild] = [a for a in story.of(AlertKind.IMPLAUSIBLE) if a.demand is Demand.NOTIFY]
    assert wild.late and wild.anomaly is AnomalyKind.JUMP and 100 not in story.entered()
    story.at(301, "tag", 50, fix_s=101)
    late = next(a for a in story.alerts if a.ring_mm == 100_000)
    assert late.late and seconds(late.at_ms) == 100


def test_a_report_older_than_two_hours_is_a_dead_letter_with_a_reason() -> None:
    story = Story()
    story.case()
    story.at(8000, "phone", 0)
    story.at(8000, "tag", 50, fix_s=700)
    assert story.outputs[-1] == DeadLetter(story.state.sequence, "1 positions older than 2 h")
    assert not story.entered()


CONTRADICTING = "1 positions with the id and time of an earlier report but another content"


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("newer", [False, True])
@pytest.mark.parametrize("ahead_s", [0, 30])
@pytest.mark.parametrize("east_m", [-5000, 5000])
def test_of_two_contents_of_a_report_the_first_in_the_log_counts(
    east_m: float, ahead_s: float, *, newer: bool, restart: bool
) -> None:
    """Whichever place is first, whether newer reports arrived between them, and whether the device's clock is ahead."""
    for first_m, second_m in ((east_m, 20.0), (20.0, east_m)):
        story = Story()
        story.case()
        story.at(0, "phone", 0)
        story.at(10, "tag", 0, first_m, fix_s=10 + ahead_s, report_id="x")
        if newer:
            story.at(70, "tag", 0, first_m)
        if restart:
            story.state = codec.decode(codec.encode(story.state))
        story.at(80, "tag", 0, second_m, fix_s=10 + ahead_s, report_id="x")
        assert story.outputs[-1] == DeadLetter(story.state.sequence, CONTRADICTING)
        assert (100 in story.entered()) is (first_m == 20)
        assert len(story.state.tracks["tag"].fixes) == 1 + newer


def test_a_resent_report_is_no_dead_letter_but_another_accuracy_is() -> None:
    story = Story()
    story.case()
    for _ in range(2):
        story.at(10, "tag", 50, report_id="x")
    assert not [output for output in story.outputs if isinstance(output, DeadLetter)]
    story.at(10, "tag", 50, report_id="x", accuracy_m=300)
    assert story.outputs[-1] == DeadLetter(story.state.sequence, CONTRADICTING)
    assert story.state.tracks["tag"].fixes[0].accuracy_mm == 5000


def test_a_fix_from_the_future_counts_as_of_its_arrival() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(10, "tag", 50, fix_s=100)
    assert {seconds(a.at_ms) for a in story.alerts} == {10}


def test_time_never_runs_backwards() -> None:
    story = Story()
    story.case()
    story.tick(100)
    story.tick(50)
    assert story.state.now_ms == T0_MS + 100_000


def test_no_line_joins_fixes_that_are_more_than_three_minutes_apart() -> None:
    story = Story()
    story.case()
    for t in (0, 200):
        story.at(t, "phone", 0)
    story.at(0, "tag", -3000)
    story.at(200, "tag", 3000)
    assert not story.entered()


def walk(seed: int) -> list[tuple[float, str, float, float]]:
    rng = random.Random(seed)
    north = {"tag": 2500.0, "phone": 0.0}
    east = {"tag": 0.0, "phone": 0.0}
    found = []
    for i in range(120):
        device = rng.choice(("tag", "phone"))
        north[device] += rng.uniform(-120, 80 if device == "tag" else 120)
        east[device] += rng.uniform(-80, 80)
        found.append((i * 4.0, device, north[device], east[device]))
    return found


def deliver(
    reports: list[tuple[float, str, float, float]], arrive_s: list[float] | None = None, clear_after_s: int = 60
) -> Story:
    story = Story(clear_after_s=clear_after_s)
    story.case()
    for i, (fix_s, device, north_m, east_m) in enumerate(reports):
        story.at(fix_s if arrive_s is None else arrive_s[i], device, north_m, east_m, fix_s=fix_s)
    return story


@given(st.integers(0, 10_000), st.integers(1, 40))
@settings(max_examples=40, deadline=None)
def test_a_restored_state_continues_unchanged(seed: int, every: int) -> None:
    whole = deliver(walk(seed))
    story = Story()
    story.case()
    for i, (fix_s, device, north_m, east_m) in enumerate(walk(seed)):
        if i % every == 0:
            story.state = codec.decode(codec.encode(story.state))
        story.at(fix_s, device, north_m, east_m)
    assert story.outputs == whole.outputs
    assert codec.encode(story.state) == codec.encode(whole.state)


@given(st.integers(0, 10_000), st.floats(1, 12))
@settings(max_examples=60, deadline=None)
def test_skipping_unreachable_pairs_changes_no_decision(seed: int, scale: float) -> None:
    reports = [(t, device, north_m * scale, east_m * scale) for t, device, north_m, east_m in walk(seed)]
    quick = deliver(reports)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(approach, "_is_unreachable", lambda *_, **__: False)
        assert deliver(reports).outputs == quick.outputs


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_resent_reports_change_nothing(seed: int) -> None:
    once, twice = deliver(walk(seed)), Story()
    twice.case()
    for fix_s, device, north_m, east_m in walk(seed):
        twice.at(fix_s, device, north_m, east_m)
        twice.at(fix_s, device, north_m, east_m)
    assert [(a.kind, a.at_ms, a.inside) for a in twice.alerts] == [(a.kind, a.at_ms, a.inside) for a in once.alerts]
    assert twice.state.tracks["tag"].fixes == once.state.tracks["tag"].fixes


@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_arrival_before_a_clearing_changes_no_account(seed: int, rng: random.Random) -> None:
    reports = walk(seed)
    shuffled = list(reports)
    rng.shuffle(shuffled)
    orders = []
    for order in (reports, shuffled):
        # No clearing in between: a published clearing stays published, whatever arrives late.
        story = deliver(order, arrive_s=[600.0] * len(order), clear_after_s=3600)
        case_state = story.state.cases["case-1"]
        found = []
        for ring in case_state.case.rings:
            target = case_state.case.targets[0]
            ring_state = case_state.ring(target, ring)
            account = accounts.account(story.state, case_state, target, ring=ring, upto_ms=story.state.now_ms)
            # What was assumed at the entry depends on what had arrived by then.
            known_mm = None if account.is_assumed else account.min_mm
            found.append((account.inside, known_mm) if ring_state.open else None)
        orders.append(found)
    for first, other in zip(*orders, strict=True):
        if first is not None and other is not None:
            assert first[0] == other[0] and (None in (first[1], other[1]) or first[1] == other[1])


def test_an_end_that_is_older_than_the_beginning_ends_nothing() -> None:
    story = Story()
    story.case()
    story.says(100, "tag", "STRAP_OPEN")
    story.says(110, "tag", "STRAP_CLOSED", event_s=50)
    assert not story.alerts[-1].incident_ends
    story.says(120, "tag", "STRAP_CLOSED")
    assert story.alerts[-1].incident_ends


def test_events_of_one_moment_end_in_the_same_order_after_a_restart() -> None:
    ends = []
    for restart in (False, True):
        story = Story()
        story.case(valid_until_ms=T0_MS + 100_000)
        story.says(5, "tag", "STRAP_OPEN")
        story.says(6, "phone", "PANIC_BUTTON")
        story.says(7, "tag", "CASE_OPEN")
        if restart:
            story.state = codec.decode(codec.encode(story.state))
        story.tick(200)
        ends.append(story.alerts)
    assert ends[0] == ends[1]


def test_a_resent_report_counts_once_with_a_clock_that_is_ahead() -> None:
    story = Story()
    story.case()
    story.at(0, "phone", 0)
    story.at(10, "tag", 5000, fix_s=40, report_id="9")
    story.at(20, "tag", 5100, fix_s=50, report_id="10")
    story.at(60, "tag", 5000, fix_s=40, report_id="9")
    assert [fix.report_id for fix in story.state.tracks["tag"].fixes] == ["9", "10"]


def test_one_batch_gives_one_dead_letter_with_all_reasons() -> None:
    """DEAD_LETTERS accepts one message per entry."""
    story = Story()
    other = log_pb2.ProtectedTarget(person_id="q", device_ids=["phone2"])
    story.case(7100, case="2", wearer_id="w2", persons=[other])
    story.case(7200, version=2)  # the tag now belongs to another wearer
    batch = Positions.of([Position("tag", f"{at_s}", T0_MS + at_s * 1000, *place_e7(0), 5000) for at_s in (1, 7150)])
    story.enter(7210, translate.entry_body(positions_entry(batch, 0).SerializeToString()))
    reasons = ("1 positions older than 2 h", "1 positions from before their device changed hands")
    assert [output for output in story.outputs if isinstance(output, DeadLetter)] == [
        DeadLetter(story.state.sequence, "; ".join(reasons))
    ]
