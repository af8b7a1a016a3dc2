"""How the decision-quality study counts breaches, deadlines and dispatches."""

from __future__ import annotations

import json

from bench.decision.arms import ARMS
from bench.decision.decided import Listener
from bench.decision.judge import judge, judge_all
from bench.decision.judged import THRESHOLDS_M, Judged, from_json, merged, to_json
from bench.decision.noise import Gaps, World
from bench.decision.placement import Play
from bench.decision.truth import Truth
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Case, Demand, Ring
from services.geofence.domain.state import CaseState
from tests.support.decision_quality import ScriptedFold, alert, play

ARM = ARMS["15 s"]
# At 1 m/s to the door and back: within 100 m of the place's edge from 1,370 to 1,630 s, within 50 m from 1,420 to 1,580 s.
VISIT = play((0, 1500), (1500, 0), (3000, 1500))


def _judged(played: Play, *demands: tuple[int, AlertKind, Demand]) -> Judged:
    """Judgement of a play in which the fold demands this: pairs of a time, s, and a kind of alert with its demand."""
    scripted = ScriptedFold({at_s: alert(kind, demand, at_s * 1000) for at_s, kind, demand in demands})
    return judge(World(played), ARM, Truth(played), step=scripted.step)


def test_a_walk_to_the_home_is_a_breach_and_a_walk_past_is_not() -> None:
    to_her = play((0, 1500), (1000, 0), (1500, 0), is_place=False)
    for judged in judge_all(to_her, [ARM]):
        assert (judged.breaches, judged.close, judged.missed, judged.late, judged.all_nothing) == (1, 1, 0, 0, 0)
    past = play((0, 1500), (1000, 600), (1500, 1500))
    judged = judge(World(past), ARM, Truth(past))
    assert (judged.breaches, judged.missed, judged.plain_missed.sum()) == (0, 0, 0)
    by_threshold = dict(zip(THRESHOLDS_M, judged.plain_nothing, strict=True))
    assert (by_threshold[100], by_threshold[900]) == (0, 1)


def test_a_demand_counts_until_a_minute_after_the_breach_whenever_the_tag_reports() -> None:
    in_time = _judged(VISIT, (1_689, AlertKind.CONTACT_PREDICTED, Demand.RESPOND))
    assert (in_time.breaches, in_time.missed, in_time.missed_by_report) == (1, 0, 1)
    too_late = _judged(VISIT, (1_691, AlertKind.CONTACT_PREDICTED, Demand.RESPOND))
    assert (too_late.missed, too_late.missed_by_report, too_late.late) == (1, 1, 1)
    assert _judged(VISIT, (1_600, AlertKind.RING_ENTERED, Demand.RESPOND)).delays_ms == [230_000]


def test_a_long_stay_excuses_no_late_notice_by_the_deadline_from_the_start() -> None:
    judged = _judged(VISIT, (1_600, AlertKind.UNKNOWN_NEAR, Demand.NOTIFY))
    assert (judged.close, judged.late, judged.late_by_start, judged.late_by_report) == (1, 0, 1, 1)
    judged = _judged(VISIT, (1_505, AlertKind.UNKNOWN_NEAR, Demand.NOTIFY))
    assert (judged.late, judged.late_by_start) == (0, 0)
    assert (judged.missed, judged.missed_but_near) == (1, 1)


def test_a_breach_counts_by_the_truth_alone() -> None:
    """The play ends 89 or 91 s after the breach's start, whatever was reported."""
    for end_s, breaches in ((1_459, 0), (1_461, 1)):
        judged = _judged(play((0, 1500), (1_450, 50), (end_s, 50)))
        assert (judged.breaches, judged.missed) == (breaches, breaches)


def test_every_dispatch_counts_and_those_within_ten_minutes_are_one() -> None:
    far = play((0, 900), (7200, 900))
    judged = _judged(
        far,
        (1_000, AlertKind.CONTACT_PREDICTED, Demand.RESPOND),
        (1_599, AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
        # The unknown position ends with the entry after it, at the next report.
        (2_500, AlertKind.RING_ENTERED, Demand.RESPOND),
        (3_500, AlertKind.RING_CLEARED, Demand.RECORD),
        (4_000, AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
        (5_000, AlertKind.UNKNOWN_NEAR, Demand.NOTIFY),
        (6_000, AlertKind.UNKNOWN_NEAR, Demand.RESPOND),
    )
    assert (judged.dispatches, judged.all_nothing, judged.single_nothing) == (3, 3, 5)
    assert judged.nothing == {"CONTACT_PREDICTED": 1, "RING_ENTERED": 1, "UNKNOWN_NEAR": 1}
    assert _judged(VISIT, (1_000, AlertKind.UNKNOWN_NEAR, Demand.RESPOND)).all_nothing == 0
    assert _judged(VISIT, (800, AlertKind.UNKNOWN_NEAR, Demand.RESPOND)).all_nothing == 1


def test_an_unknown_position_is_one_dispatch_until_it_ends() -> None:
    case = Case("case", 1, "order", "w", ("tag",), (), (Ring(100_000, Demand.RESPOND),), 0, 1 << 40)
    unknown, known = CaseState(case, near={"p": Demand.RESPOND}), CaseState(case)
    listener = Listener(10_000_000)
    listener.note(alert(AlertKind.UNKNOWN_NEAR, Demand.RESPOND, 0), 0)
    listener.note_state(unknown, 0)
    listener.note_state(known, 1_000_000)
    listener.note(alert(AlertKind.CONTACT_PREDICTED, Demand.RESPOND, 1_599_000), 1_599_000)
    listener.note(alert(AlertKind.CONTACT_PREDICTED, Demand.RESPOND, 2_199_000), 2_199_000)
    assert [sent.from_ms for sent in listener.end().dispatches] == [0, 2_199_000]


def test_all_arms_have_the_same_breaches_and_each_regime_its_own_noise() -> None:
    visit = play((0, 1500), (1500, 0), (3000, 1500), is_place=False)
    judged = judge_all(visit, [ARMS["15 s"], ARMS["60 s"]], draws=(1, 2))
    assert len(judged) == 8
    assert {(each.breaches, each.close) for each in judged} == {(1, 1)}
    assert {(each.gaps, each.draw, each.arm) for each in judged} == {
        (gaps.name, draw, arm) for gaps in Gaps for draw in (1, 2) for arm in ("15 s", "60 s")
    }
    assert all(each.sent > 150 if each.arm == "15 s" else 30 < each.sent <= 50 for each in judged)


def test_judgements_are_added_up_by_group_and_survive_a_file() -> None:
    judged = judge_all(VISIT, [ARM], draws=(1, 2))
    sums = merged([*judged, *judged])
    assert len(sums) == len(judged) == 4
    by_group = {(each.gaps, each.draw): each for each in judged}
    for each in sums:
        once = by_group[each.gaps, each.draw]
        assert (each.breaches, each.hours, each.sent) == (2 * once.breaches, 2 * once.hours, 2 * once.sent)
        assert (each.plain_nothing == 2 * once.plain_nothing).all()
        each.nothing["UNKNOWN_NEAR"] += 2
        read = from_json(json.loads(json.dumps(to_json(each))))
        assert to_json(read) == to_json(each)
        assert (read.all_nothing, read.plain_nothing.sum()) == (each.all_nothing, each.plain_nothing.sum())
