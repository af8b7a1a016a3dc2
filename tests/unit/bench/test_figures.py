"""Figures of benchmarks: percentiles by nearest rank, the JSON object of --json, and generated loads."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path

import pytest

from bench import figures, tracing
from bench.mesh import load, machine, population
from bench.mesh.load import Shape
from bench.mesh.offers import Arrivals
from services.common.messaging import flow
from tandem.ingest.v1 import ingest_pb2

SHAPE = Shape("s", reports_per_s=500, batch=10, streams=2)


@pytest.mark.parametrize(
    ("percent", "expected"), [(1, 10), (25, 10), (26, 20), (50, 20), (75, 30), (75.1, 40), (99, 40), (100, 40)]
)
def test_a_percentile_is_the_smallest_value_that_bounds_this_share(percent: float, expected: float) -> None:
    assert figures.percentile([30, 10, 40, 20], percent) == expected


def test_p99_of_200_values_leaves_two_above() -> None:
    assert figures.percentile([float(n) for n in range(1, 201)], 99) == 198


def test_an_empty_sample_meets_no_target() -> None:
    assert figures.percentile([], 99) == math.inf
    assert figures.at_most("p99", figures.percentile([], 99), "ms", target=1000).met is False


@pytest.mark.parametrize("percent", [0, -1, 100.5])
def test_a_percentage_out_of_range_is_rejected(percent: float) -> None:
    with pytest.raises(ValueError, match="percent"):
        figures.percentile([1.0], percent)


def test_targets_are_met_up_to_and_including_the_limit() -> None:
    assert [figures.at_most("f", value, "ms", target=5).met for value in (4, 5, 6)] == [True, True, False]


@pytest.mark.parametrize("as_json", [True, False])
def test_figures_are_shown_with_their_machine_as_json_or_each_on_a_line(
    capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    name = "a name of a figure that is long enough to need two lines on a narrow terminal, p99 at its end"
    listed = [figures.at_most(name, 6.0, "ms", target=5), figures.Figure("b", 2.0, "x", against="a peer 1.0")]
    figures.show({"cores": 2}, {"nats-server": "2"}, listed, as_json=as_json)
    shown = capsys.readouterr().out
    if as_json:
        assert json.loads(shown) == figures.to_json({"cores": 2}, {"nats-server": "2"}, listed)
        return
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert lines[0] == "cores 2, nats-server 2"
    assert f"{name} 6.0 ms 5 NO" in lines and "b 2.0 x a peer 1.0" in lines


def test_the_json_object_has_its_documented_keys_and_is_valid_json() -> None:
    listed = [
        figures.Figure("a", 1.23456, "ms"),
        figures.at_most("b", math.inf, "ms", target=1000.0),
        figures.Figure("c", 2.0, "x", against="a peer 1.0"),
    ]
    text = json.dumps(figures.to_json({"cores": 2}, {"nats-server": "2"}, listed), allow_nan=False)
    assert json.loads(text) == {
        "machine": {"cores": 2},
        "versions": {"nats-server": "2"},
        "figures": [
            {"name": "a", "value": 1.235, "unit": "ms", "target": None, "met": None, "against": None},
            {"name": "b", "value": None, "unit": "ms", "target": 1000.0, "met": False, "against": None},
            {"name": "c", "value": 2.0, "unit": "x", "target": None, "met": None, "against": "a peer 1.0"},
        ],
    }


def test_a_load_has_all_reports_once_in_order_of_time_with_each_trigger_among_them() -> None:
    cases = population.actors(40)
    plan = load.prepare("x", SHAPE, 2, background=cases[:30], triggered=cases[30:], seed=1)
    messages = [ingest_pb2.ReportRequest.FromString(request.message) for request in plan.requests]
    positions = [position for message in messages for position in message.positions]
    keys = {(position.device_id, position.report_id) for position in positions}

    assert len(plan.requests) == 100 and len(positions) == len(keys) == 1000
    assert [message.batch for message in messages] == list(range(100))
    dues_s = [request.due_s for request in plan.requests]
    assert dues_s == sorted(dues_s) and dues_s[0] >= 0 and dues_s[-1] <= 2
    assert {device_id for device_id, _ in plan.triggers} == {party.tag_id for party in cases[30:]}
    assert plan.triggers.keys() <= keys
    for message, due_s in zip(messages, dues_s, strict=True):
        for position in message.positions:
            key = position.device_id, position.report_id
            assert plan.triggers.get(key, due_s) == due_s
    # Only the triggered wearers come near; the others stay 22 km from the protected person.
    homes = {party.tag_id: party.home for party in cases}
    for position in positions:
        if position.device_id in homes:
            away_deg = position.lat_deg - homes[position.device_id][0]
            assert away_deg < 0.001 if (position.device_id, position.report_id) in plan.triggers else away_deg > 0.1


def test_loads_of_the_same_seed_differ_only_in_their_start_times() -> None:
    cases = population.actors(12)
    first, second, third = (
        load.prepare("x", SHAPE, 1, background=cases[:10], triggered=cases[10:], seed=seed) for seed in (1, 1, 2)
    )
    assert first.triggers == second.triggers != third.triggers
    assert [request.due_s for request in first.requests] == [request.due_s for request in second.requests]


def test_a_latency_ends_with_the_first_offer_and_a_missing_leg_is_a_loss() -> None:
    offers = Arrivals()
    triggers = {("tag", "one"): 1.0, ("tag", "two"): 2.0}
    for n, leg in enumerate(flow.LEGS):
        offers.offered(leg, ("tag", "one"), 101.25 + n)
        offers.offered(leg, ("tag", "one"), 150.0)
    offers.offered("probation", ("tag", "two"), 102.5)
    offers.offered("police", ("somebody", "else"), 102.5)

    assert offers.latencies_ms(100.0, triggers) == {
        "probation": [250.0, 500.0],
        "police": [1250.0, math.inf],
        "warning": [2250.0, math.inf],
        "both": [1250.0, math.inf],
    }
    assert offers.lost(triggers) == 1


def test_an_offer_counts_from_the_receipt_of_its_report_too() -> None:
    arrivals = Arrivals()
    for leg, ms in (("probation", 4.0), ("police", 7.0), ("warning", 9.0)):
        arrivals.offered(leg, ("tag", "one"), 100.0, after_receipt_ms=ms)
    after_ms = arrivals.after_receipt_ms([("tag", "one"), ("tag", "two")])
    assert after_ms["both"] == [7.0, math.inf] and after_ms["warning"] == [9.0, math.inf]


def test_the_quiet_load_is_triggers_alone_one_in_each_interval() -> None:
    plan = load.prepare_quiet("q", population.actors(5), interval_s=3.0, seed=1)
    dues_s = [request.due_s for request in plan.requests]
    assert [int(due_s // 3) for due_s in dues_s] == [0, 1, 2, 3, 4]
    assert list(plan.triggers.values()) == dues_s
    assert all(request.reports == 1 for request in plan.requests)


def test_usage_of_a_process_is_counted_in_cpu_seconds() -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("this system has no /proc")
    before = machine.usage({"me": os.getpid()})
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass
    used = machine.usage({"me": os.getpid(), "new": os.getpid()}).since(before)
    assert used.by_process.keys() == {"me"} and 0.1 <= used.by_process["me"] <= 5
    assert used.total >= used.by_process["me"] and used.idle >= 0


def test_the_fsync_probe_takes_time_and_leaves_no_file(tmp_path: Path) -> None:
    assert machine.fsync_ms(tmp_path) > 0
    assert list(tmp_path.iterdir()) == []


def test_the_interval_of_a_median_is_binomial() -> None:
    # The 4th and the 12th of 15: tables of the sign test give 1 - 2 * P(at most 3 of 15) = 96.5 %.
    assert tracing.interval(range(1, 16)) == (4, 12)
    assert tracing.interval([3.0, 1.0, 2.0, 6.0, 5.0, 4.0]) == (1.0, 6.0)
    assert tracing.interval([1.0] * 5) == (-math.inf, math.inf)
    assert tracing.together([tracing.Turn(300, 10), tracing.Turn(100, 20)]) == tracing.Turn(200, 12.5)


@pytest.mark.parametrize(
    ("rate", "pairs", "met"), [(98, 15, True), (102, 15, True), (96, 15, False), (104, 15, False), (100, 14, False)]
)
def test_tracing_passes_only_by_the_median_of_enough_pairs(rate: float, pairs: int, met: bool) -> None:
    # Outliers in a few pairs and in the CPU time don't change the median of the rates.
    wild = [(tracing.Turn(on, 20), tracing.Turn(100, 10)) for on in (1, 2, 3, 900, 901, 902)]
    turns = wild + [(tracing.Turn(rate, 20), tracing.Turn(100, 10))] * (pairs - len(wild))
    assert all(figure.met is not False for figure in tracing.of({"single": turns})) is met
