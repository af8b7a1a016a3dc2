"""Why no earlier report decided: each report before the decision names the rule that held it back, as the fold had it."""

from __future__ import annotations

import random
from io import StringIO

import pytest
from rich.console import Console

from services.cli.commands import explain
from services.court.explain import refold
from services.geofence import translate
from services.geofence.domain import fold
from services.geofence.domain.demands import AlertKind
from services.geofence.domain.entries import Demand, Entry
from services.geofence.domain.state import State
from tests.support.explained import T0_MS, Log, approach, case_entry, respond


def held_back(story: Log) -> list[tuple[str, str]]:
    """Device and rule of each report before the response was decided."""
    earlier = story.explain(story.stored(respond(story))).to_json(positions=False)["earlier"]
    return [(report["device_id"], report["held_back_by"]) for report in earlier]


def test_each_report_before_the_decision_names_the_rule_that_held_it_back() -> None:
    story = Log()
    story.add(0, case_entry())
    story.at(1, "t1", 900)  # her position isn't known yet
    story.at(2, "d1", 0)
    story.at(31, "t1", 500)
    story.at(61, "t1", 105)
    story.at(91, "t1", 60)
    assert held_back(story) == [("t1", "NO_POSITION"), ("d1", "FAR"), ("t1", "FAR"), ("t1", "UNLIKELY")]


def test_a_position_jump_waits_for_its_confirmation() -> None:
    story = Log()
    story.add(0, case_entry())
    for i in range(6):
        story.at(1 + 10 * i, "d1", 0)
        story.at(2 + 10 * i, "t1", 6_000 + i)
    story.at(62, "t1", 20)
    story.at(64, "t1", 22)
    assert held_back(story)[-1] == ("t1", "UNCONFIRMED")


def test_why_not_earlier_agrees_with_the_fold() -> None:
    """The evaluation after the deciding report enters the ring, and no evaluation before it does."""
    story = approach()
    alert = respond(story)
    explained = story.explain(story.stored(alert))
    assert explained.refold.earlier and all(report.evaluation.held_back_by for report in explained.refold.earlier)
    state = State(0, log_id="log", clock_rate=1, clock_anchor_ms=T0_MS)
    for message in story.messages[: alert.sequence]:
        fold.step(
            state, Entry(message.sequence, message.stamp_ms, translate.stored_body(message.subject, message.data))
        )
    case_state = state.cases[alert.case_id]
    ring = next(ring for ring in case_state.case.rings if ring.action is Demand.RESPOND)
    case_state.ring(case_state.case.targets[0], ring).leave()
    found = refold.evaluate(state, case_state, case_state.case.targets[0], ring=ring, device_id="t1", is_late=False)
    assert found.held_back_by is None and found.p == alert.probability and found.distance_mm == alert.distance_mm


def test_the_table_of_earlier_reports_is_shown() -> None:
    story = approach()
    shown = StringIO()
    Console(file=shown, width=120).print(*explain.tables(story.explain(story.stored(respond(story))), False), sep="\n")
    assert "why not earlier" in shown.getvalue() and "probability of being inside was below 1 %" in shown.getvalue()


@pytest.mark.parametrize("seed", range(12))
def test_an_earlier_report_is_held_back_exactly_while_the_fold_has_not_entered_the_ring(seed: int) -> None:
    """Random walks round her home with late reports and jumps: the explanation of each report is the fold's own decision at it."""
    story = Log()
    rng = random.Random(seed)
    north_m = 600.0
    story.add(0, case_entry())
    for turn in range(150):
        at_s = 1.0 + 10 * turn
        north_m = 0.93 * north_m + rng.gauss(0, 90)
        jump_m = rng.uniform(-3000, 3000) if rng.random() < 0.05 else 0.0
        story.at(at_s, "t1", north_m + jump_m, fix_s=at_s - (rng.uniform(0, 50) if rng.random() < 0.1 else 0))
        if rng.random() < 0.6:
            story.at(at_s + 1, "d1", rng.gauss(0, 10))
    nearest = [alert for alert in story.alerts if alert.ring_mm == 100_000]
    entered = [alert for alert in nearest if alert.kind is AlertKind.RING_ENTERED and alert.demand is Demand.RESPOND]
    left = [alert.sequence for alert in nearest if alert.kind is AlertKind.RING_CLEARED]
    ends = [next((end for end in left if end > alert.sequence), len(story.messages) + 1) for alert in entered]
    assert entered
    for alert in entered:
        for report in story.explain(story.stored(alert)).refold.earlier:
            is_open = any(begin.sequence <= report.sequence < end for begin, end in zip(entered, ends, strict=True))
            assert (report.evaluation.held_back_by is None) is is_open, (alert.sequence, report)
