"""The loads of bench.chain, their targets, and when what a mesh put off is caught up."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest

from bench import chain
from bench.chain import Load, Measured, Name
from bench.mesh import putting_off
from bench.mesh.machine import Usage
from services.client.load_generator import LoadOutcome

LEGS = ("probation", "police", "warning", "both")


def measured(name: Name, ms: float) -> Measured:
    run = chain.loads(30)[name]
    series = (f"{name}", f"{name}, at the desks", f"{name}, INCIDENTS after receipt", f"{name}, desks after receipt")
    return Measured(
        load=run,
        sent=LoadOutcome(accepted=round(run.shape.reports_per_s * run.seconds) or run.triggers),
        latencies_ms={where: {leg: [ms] * 10 for leg in LEGS} for where in series},
        lost=0,
        used=Usage({"nats": 1.0}, 30.0, 60.0),
        history=Counter({"list: served": 3}),
    )


def met(name: Name, ms: float, busy_loops: int = 0) -> dict[str, bool | None]:
    found = chain.figures_of(measured(name, ms), busy_loops)
    return {figure.name: figure.met for figure in found if figure.met is not None and "both" in figure.name}


def test_the_loads_are_those_of_the_documents() -> None:
    loads = chain.loads(30)
    assert loads[Name.SINGLE].triggers == loads[Name.BATCHED].triggers == 300
    assert loads[Name.QUIET].triggers == 30 and loads[Name.QUIET].seconds == 90
    assert (loads[Name.HISTORY].readers, loads[Name.HISTORY].busy_loops, loads[Name.HISTORY].triggers) == (19, 1, 60)


def test_each_load_has_triggers_in_its_warm_up() -> None:
    for run in chain.loads(1).values():
        assert round(chain.warm_up_s(run) * run.triggers_per_s) >= 3


def test_a_quiet_mesh_is_judged_from_the_receipt_of_the_report() -> None:
    assert met(Name.QUIET, 10.0) == {
        "quiet, desks after receipt: both p50": False,
        "quiet, desks after receipt: both p99": True,
        "quiet, INCIDENTS after receipt: both p50": True,
        "quiet, INCIDENTS after receipt: both p99": True,
    }


def test_loads_are_judged_from_the_due_moment_to_incidents() -> None:
    assert met(Name.SINGLE, 50.0) == {"single: both p50": False, "single: both p99": True}
    assert met(Name.BATCHED, 251.0) == {"batched: both p99": False}
    assert met(Name.HISTORY, 999.0) == {"history: both p99": True}


def test_busy_loops_leave_a_target_for_the_batched_load_only() -> None:
    assert met(Name.BATCHED, 999.0, busy_loops=1) == {"batched: both p99": True}
    assert met(Name.SINGLE, 999.0, busy_loops=1) == {}


def test_every_report_of_a_load_has_to_be_durable() -> None:
    found = {figure.name: figure for figure in chain.figures_of(measured(Name.QUIET, 1.0), 0)}
    assert found["quiet: reports not durable"].value == 0
    assert found["quiet: calls to list: served"].value == 3


# ── put off ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("rates_ms", "after_s"),
    [
        ([100.0] * 60, 0.0),
        ([1900.0] * 20 + [100.0] * 40, 20.0),
        ([100.0] * 10 + [1900.0] * 5 + [100.0] * 45, 15.0),  # what waited began only later
        ([1900.0] * 60, math.inf),  # its level is the whole machine: nothing is caught up
    ],
)
def test_work_is_caught_up_when_processor_time_has_come_down_to_its_level(
    rates_ms: Sequence[float], after_s: float
) -> None:
    found_s, _ = putting_off.level_after_s(rates_ms, cores=2)
    # The window of three seconds leaves it open by so many.
    assert found_s == after_s or abs(found_s - after_s) <= putting_off.WINDOW_S


def test_waiting_ends_with_the_last_second_in_which_something_waits() -> None:
    assert putting_off.none_waits_after_s([0.0, 0.0]) == 0.0
    assert putting_off.none_waits_after_s([9.0, 3.0, 0.0, 1.0, 0.0]) == 4.0
    assert putting_off.none_waits_after_s([9.0, 3.0]) == math.inf
    assert math.isnan(putting_off.none_waits_after_s([math.nan, math.nan]))


def test_a_load_keeps_its_number_of_triggers_when_it_is_shortened() -> None:
    run = chain.loads(30)[Name.SINGLE]
    assert Load(run.shape, run.triggers_per_s, 3.0).triggers == 30
