"""Accounts of episodes: whatever a report proves is in an account, in whatever order reports arrive within the window (I9)."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.geofence import translate
from services.geofence.domain import codec
from services.geofence.domain.alerts import Alert
from services.geofence.domain.demands import AlertKind, Leg
from services.geofence.domain.detectors import accounts
from services.geofence.domain.entries import Demand
from services.geofence.domain.kinematics.rings import Stretch, add_stretch
from services.ingest.domain import Position, Positions
from services.ingest.translate import positions_entry
from tandem.common.v1 import log_pb2
from tests.support.geofence.stories import T0_MS, Story, circle, place_e7

Fix = tuple[float, str, float]
"""Second of the fix, device, metres north of her door."""


def seconds(alert: Alert) -> float:
    """Time inside by an alert's account, seconds."""
    return sum(to_ms - from_ms for from_ms, to_ms in alert.inside) / 1000


def visit(from_s: float, stays_s: float, near_m: float = 30) -> list[Fix]:
    """The wearer comes from 1 km within 2 minutes, stays and goes again, with a fix every 15 s."""
    fixes: list[Fix] = []
    for i in range(int(stays_s / 15) + 17):
        t = i * 15
        away_s = max(0.0, 120 - t, t - 120 - stays_s)
        fixes.append((from_s + t, "tag", near_m + 9 * away_s))
    return fixes


def away(from_s: float, began_m: float = 3000.0) -> list[Fix]:
    """The wearer drives to 3 km at 20 m/s, and stays there until 5 minutes have passed."""
    return [(from_s + i * 15, "tag", min(3000.0, began_m + 300 * i)) for i in range(20)]


def away_and_back(from_s: float) -> list[Fix]:
    """The wearer drives from 1.1 km to 2.5 km and back within 3.5 minutes, at 20 m/s."""
    return [(from_s + t, "tag", min(2500.0, 1110 + 20 * t, 1110 + 20 * (210 - t))) for t in range(0, 211, 15)]


def at_home(until_s: float, phone_s: float = 60) -> list[Fix]:
    """The protected person at home, with a fix each minute."""
    return [(i * phone_s, "phone", 0.0) for i in range(int(until_s / phone_s) + 1)]


def play(story: Story, fixes: list[Fix], arrive_s: float | None = None) -> None:
    """Delivers each fix by itself, at its time or all at one moment."""
    for fix_s, device, north_m in sorted(fixes) if arrive_s is None else fixes:
        story.at(fix_s if arrive_s is None else arrive_s, device, north_m, fix_s=fix_s)


def final(story: Story, ring_m: int) -> tuple[list[Stretch], int | None]:
    """Time inside and least distance (mm) by the final accounts of a ring, including its open account."""
    case_state = story.state.cases["case-1"]
    published: dict[str, Alert] = {}
    for alert in story.of(AlertKind.RING_CLEARED, AlertKind.ACCOUNT_AMENDED):
        if alert.ring_mm == ring_m * 1000:
            published[alert.amends or alert.alert_id] = alert
    found = [(list(alert.inside), alert.min_distance_mm) for alert in published.values()]
    [target], ring = case_state.case.targets, next(r for r in case_state.case.rings if r.radius_mm == ring_m * 1000)
    if case_state.ring(target, ring).open:
        open_ = accounts.account(story.state, case_state, target, ring=ring, upto_ms=story.state.now_ms)
        found.append((open_.inside, open_.min_mm))
    inside: list[Stretch] = []
    for from_ms, to_ms in (stretch for stretches, _ in found for stretch in stretches):
        add_stretch(inside, from_ms, to_ms)
    return inside, min((round(mm) for stretches, mm in found if stretches and mm is not None), default=None)


def test_reports_after_the_clearing_amend_the_account_and_send_nobody() -> None:
    story = Story()
    story.case()
    came = visit(0, 900)
    known = [fix for fix in came if fix[0] <= 150 or fix[0] > 1080]
    play(story, known + at_home(1500) + away(1200))
    cleared = next(a for a in story.of(AlertKind.RING_CLEARED) if a.ring_mm == 100_000)
    assert seconds(cleared) < 60
    demanded = [a for a in story.alerts if a.demand > Demand.RECORD]
    play(story, [fix for fix in came if fix not in known], arrive_s=1510)
    story.tick(1600)
    [amended] = [a for a in story.of(AlertKind.ACCOUNT_AMENDED) if a.ring_mm == 100_000]
    assert seconds(amended) > 900 and amended.min_distance_mm == pytest.approx(30_000, abs=20)
    assert amended.amends == cleared.alert_id
    assert (amended.episode_id, amended.incident_id) == (cleared.episode_id, cleared.incident_id)
    assert amended.demand is Demand.RECORD and {leg for leg, _ in amended.destinations} == {Leg.PROBATION, Leg.POLICE}
    assert [a for a in story.alerts if a.demand > Demand.RECORD] == demanded


def test_an_unnotified_presence_sends_somebody_even_after_a_later_clearing() -> None:
    story = Story()
    story.case()
    unknown, known = visit(300, 600), visit(3000, 60, near_m=50)
    far = [(i * 15.0, "tag", 4000.0) for i in range(300) if not 290 < i * 15 < 1200 and not 2800 < i * 15 < 3400]
    play(story, known + far + at_home(4500))
    assert story.entered().count(100) == 1 and not story.state.cases["case-1"].episode_id
    before = list(story.alerts)
    play(story, unknown, arrive_s=4510)
    late = [a for a in story.of(AlertKind.RING_ENTERED) if a.ring_mm == 100_000][-1]
    assert late.demand is Demand.RESPOND and late.late and late.incident_id not in {a.incident_id for a in before}
    play(story, [(4515 + i * 15.0, "tag", 4000.0) for i in range(8)])
    first, second = [a for a in story.of(AlertKind.RING_CLEARED) if a.ring_mm == 100_000]
    assert seconds(second) > 600 and second.min_distance_mm == pytest.approx(30_000, abs=20)
    assert first.episode_id != second.episode_id and not story.state.incidents
    assert not any(from_ms < first.inside[0][0] < to_ms for from_ms, to_ms in second.inside)


def test_a_late_report_removes_disproved_time_from_the_account() -> None:
    story = Story()
    story.case()
    straight = [(0.0, "tag", 1500.0), (60.0, "tag", 900.0), (120.0, "tag", -900.0), (180.0, "tag", -1500.0)]
    play(story, [*straight, *((240.0 + i * 60, "tag", -2500.0) for i in range(4)), *at_home(420)])
    assert any(a.inside and a.ring_mm == 100_000 for a in story.of(AlertKind.RING_CLEARED))
    story.at(430, "tag", 0, 900, fix_s=90)  # he took a detour
    story.tick(500)
    [amended] = [a for a in story.of(AlertKind.ACCOUNT_AMENDED) if a.ring_mm == 100_000]
    assert amended.inside == () and amended.min_distance_mm is not None and amended.min_distance_mm > 100_000


def phone_off(story: Story) -> None:
    """Her phone is off while he comes within 20 m of its last position; it is on again when he is 2 km away."""
    play(story, [(i * 60.0, "phone", 0.0) for i in range(5)])
    play(story, [(600 + i * 15.0, "tag", max(20.0, 3000 - 30.0 * i)) for i in range(110)])
    play(story, [(2250 + i * 15.0, "tag", 20 + 140.0 * i) for i in range(14)])
    play(
        story,
        [(2460 + i * 15.0, "tag", 2000 + 100.0 * i) for i in range(30)]
        + [(2460 + i * 60.0, "phone", 0.0) for i in range(8)],
    )


def test_an_account_of_an_assumed_presence_says_so() -> None:
    story = Story()
    story.case()
    phone_off(story)
    for alert in story.of(AlertKind.RING_CLEARED)[:2]:
        assert alert.inside == () and alert.min_distance_assumed
        assert alert.min_distance_mm == pytest.approx(alert.ring_mm, abs=1000)
        assert translate.measure_to_proto(alert).min_distance_assumed
    assert [alert.ring_mm for alert in story.of(AlertKind.RING_CLEARED)[:2]] == [100_000, 1_000_000]


def test_late_reports_of_her_phone_replace_what_was_assumed() -> None:
    story = Story()
    story.case()
    phone_off(story)
    for i in range(40):
        story.at(2950 + i, "phone", 0, fix_s=300 + 60 * i)
    story.tick(3100)
    [amended] = [alert for alert in story.of(AlertKind.ACCOUNT_AMENDED) if alert.ring_mm == 100_000]
    assert amended.inside and not amended.min_distance_assumed
    assert amended.min_distance_mm == pytest.approx(20_000, abs=100)


def test_a_known_movement_outside_replaces_what_was_assumed_at_the_entry() -> None:
    story = Story()
    story.case()
    phone_off(story)
    for i in range(40):
        story.at(2950 + i, "phone", -400, fix_s=300 + 60 * i)  # she had gone for a walk
    story.tick(3100)
    [amended] = [alert for alert in story.of(AlertKind.ACCOUNT_AMENDED) if alert.ring_mm == 100_000]
    assert amended.inside == () and not amended.min_distance_assumed
    assert amended.min_distance_mm is not None and amended.min_distance_mm > 300_000


def test_a_ring_is_not_cleared_while_a_backlog_shows_a_presence_inside() -> None:
    story = Story()
    story.case()
    play(story, [(i * 15.0, "tag", 3000.0) for i in range(7)] + at_home(1000))
    play(story, away(900)[:6])
    for fix_s, _, north_m in visit(200, 300):
        story.at(1001 + (fix_s - 200) / 5, "tag", north_m, fix_s=fix_s)
        story.at(1002 + (fix_s - 200) / 5, "tag", 3000)
    assert story.entered() == [2000, 1000, 100] and not story.of(AlertKind.RING_CLEARED)
    play(story, away(1120) + [(1120.0 + i * 60, "phone", 0.0) for i in range(5)])
    assert len(story.of(AlertKind.RING_CLEARED)) == 3 and not story.of(AlertKind.ACCOUNT_AMENDED)
    assert seconds(story.of(AlertKind.RING_CLEARED)[0]) > 300


@pytest.mark.parametrize("phone_s", [60, 47, 61])
def test_a_ring_open_for_hours_keeps_its_whole_account(phone_s: float) -> None:
    story = Story()
    story.case()
    near = {3: 8.0, 100: 4.0}
    tag = [(i * 47.0, "tag", near.get(i, 30.0 + i % 7)) for i in range(400)]
    play(story, tag + at_home(400 * 47 + 300, phone_s) + away(400 * 47, 30))
    [cleared] = [a for a in story.of(AlertKind.RING_CLEARED) if a.ring_mm == 100_000]
    assert len(cleared.inside) == 1 and seconds(cleared) > 399 * 47
    assert cleared.min_distance_mm == pytest.approx(4_000, abs=20)
    assert len(story.state.tracks["tag"].fixes) < 260


def batch(story: Story, at_s: float, fixes: list[Fix]) -> None:
    """Delivers all fixes in one entry."""
    positions = [
        Position(device, f"{device}-{fix_s}", T0_MS + round(fix_s * 1000), *place_e7(north_m), 5000)
        for fix_s, device, north_m in fixes
    ]
    story.enter(at_s, translate.entry_body(positions_entry(Positions.of(positions), 0).SerializeToString()))


@given(st.randoms(use_true_random=False))
@settings(max_examples=15, deadline=None)
def test_the_order_within_a_batch_changes_no_account(rng: random.Random) -> None:
    fixes = visit(0, 120) + visit(600, 60, near_m=80) + [(i * 60.0, "phone", 0.0) for i in range(16)]
    found = []
    for order in (sorted(fixes), rng.sample(fixes, len(fixes))):
        story = Story()
        story.case()
        batch(story, 900, order)
        play(story, away(910) + [(910.0 + i * 60, "phone", 0.0) for i in range(6)])
        found.append([final(story, ring_m) for ring_m in (100, 1000, 2000)])
    assert found[0] == found[1] and found[0][0][0]


@given(st.integers(0, 10_000), st.integers(1, 20))
@settings(max_examples=15, deadline=None)
def test_delays_change_no_account_and_restarts_change_nothing(seed: int, every: int) -> None:
    """Visits minutes apart, with each report delayed by up to 90 minutes."""
    rng = random.Random(seed)
    fixes = [fix for i in range(4) for fix in visit(i * 900, rng.choice((0, 60, 200)), rng.uniform(5, 120))]
    fixes += [(i * 60.0, "phone", 0.0) for i in range(70)]
    delayed = [(fix[0] + rng.choice((0.0, rng.uniform(0, 5400))), fix) for fix in fixes]
    after = away(9200) + [(9200.0 + i * 60, "phone", 0.0) for i in range(6)]
    ordered = Story()
    late = Story()
    restarted = Story()
    for story in (ordered, late, restarted):
        story.case()
    play(ordered, fixes + after)
    for story in (late, restarted):
        for i, (arrives_s, (fix_s, device, north_m)) in enumerate(sorted(delayed)):
            if story is restarted and i % every == 0:
                story.state = codec.decode(codec.encode(story.state))
            story.at(arrives_s, device, north_m, fix_s=fix_s)
        play(story, after)
        story.tick(9600)
    ordered.tick(9500)
    for ring_m in (100, 1000, 2000):
        assert final(late, ring_m) == final(ordered, ring_m)
    assert restarted.outputs == late.outputs
    assert codec.encode(restarted.state) == codec.encode(late.state)


def test_pending_amendments_are_published_when_the_order_ends() -> None:
    story = Story()
    story.case(valid_until_ms=T0_MS + 1_530_000)
    came = visit(0, 900)
    known = [fix for fix in came if fix[0] <= 150 or fix[0] > 1080]
    play(story, known + at_home(1500) + away(1200))
    play(story, [fix for fix in came if fix not in known], arrive_s=1510)
    story.tick(1531)
    assert [a.decided_at_ms for a in story.of(AlertKind.ACCOUNT_AMENDED) if a.ring_mm == 100_000] == [T0_MS + 1_530_000]
    assert not any(ring_state.closed for ring_state in story.state.cases["case-1"].rings.values())


def test_pending_amendments_are_published_when_the_order_changes() -> None:
    """Both places of the order move. Their rings are gone, so late reports can't change their accounts any more."""
    story = Story()
    places = [circle("home", 0, 0, radius_m=10), circle("work", 0, 50, radius_m=10)]
    story.case(persons=[], places=places)
    came = visit(0, 900)
    known = [fix for fix in came if fix[0] <= 150 or fix[0] > 1080]
    play(story, known + away(1200))
    play(story, [fix for fix in came if fix not in known], arrive_s=1510)
    moved = [circle("home", 9000, 0, radius_m=10), circle("work", 9000, 50, radius_m=10)]
    story.case(1520, version=2, persons=[], places=moved)
    amended = [a for a in story.of(AlertKind.ACCOUNT_AMENDED) if a.ring_mm == 100_000]
    assert [(a.target_id, a.decided_at_ms - T0_MS) for a in amended] == [("home", 1_520_000), ("work", 1_520_000)]
    assert all(seconds(a) > 900 for a in amended) and story.state.cases["case-1"].amend_ms is None


def test_a_new_phone_keeps_the_time_that_the_old_one_proved() -> None:
    story = Story()
    story.case()
    play(story, visit(0, 600)[:-8] + at_home(720))
    story.case(730, version=2, persons=[log_pb2.ProtectedTarget(person_id="p", device_ids=["phone2"])])
    for i in range(30):
        story.at(740 + i * 15, "phone2", 0)
        story.at(741 + i * 15, "tag", 3000)
    [cleared] = [a for a in story.of(AlertKind.RING_CLEARED) if a.ring_mm == 100_000]
    assert seconds(cleared) > 600


def test_the_number_of_kept_accounts_is_bounded() -> None:
    """One visit every 8 minutes for 6 hours: only the accounts of the window are kept."""
    story = Story()
    story.case()
    fixes = [fix for i in range(45) for fix in [*visit(i * 480, 0), *away_and_back(i * 480 + 250)]]
    most = 0
    for fix_s, device, north_m in sorted(fixes + at_home(45 * 480)):
        story.at(fix_s, device, north_m)
        most = max(most, *(len(ring.closed) for ring in story.state.cases["case-1"].rings.values()))
    assert 10 < most <= 24
    assert len(codec.encode(story.state)) < 120_000


def test_ids_follow_from_the_log_alone() -> None:
    found = []
    for _ in range(2):
        story = Story()
        story.case()
        known, unknown = visit(3000, 60), visit(300, 600)
        play(story, known + at_home(4000))
        play(story, unknown, arrive_s=4010)
        story.tick(4200)
        found.append(story.outputs)
    assert found[0] == found[1]
    ids = [a.alert_id for a in found[0] if isinstance(a, Alert)]
    assert len(set(ids)) == len(ids)
    assert all(a.sequence <= b.sequence for a, b in pairwise(a for a in found[0] if isinstance(a, Alert)))
