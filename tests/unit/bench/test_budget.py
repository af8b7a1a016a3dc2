"""The arithmetic of bench.incident: an incident's processor time above the idle mesh's, and the comparison of two versions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bench import incident
from bench.figures import Figure
from bench.mesh import budget, trees
from bench.mesh.budget import Interval
from services.common.failure import CommandFailed


def test_an_incident_costs_the_time_above_the_idle_mesh() -> None:
    idle = Interval(10.0, {"nats": 0.1, "ingest": 0.2, "bench": 5.0})
    busy = Interval(20.0, {"nats": 1.2, "ingest": 0.4, "bench": 30.0})
    assert budget.per_incident_ms(busy, idle, 10) == pytest.approx(
        {"nats": 100.0, "ingest": 0.0, "bench": 2000.0, "total": 100.0}
    )


def test_the_total_leaves_out_the_simulated_people_and_the_supervisor() -> None:
    assert budget.with_total({"nats": 1.0, "registry": 2.0, "tandem up": 4.0, "bench": 8.0})["total"] == 3.0


def test_rates_are_milliseconds_of_processor_time_each_second() -> None:
    assert Interval(4.0, {"registry": 0.1}).rates_ms() == pytest.approx({"registry": 25.0, "total": 25.0})


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ([100.0, 200.0, 50.0], [25.0, 60.0, 10.0], 0.25),  # the median of 0.25, 0.3 and 0.2, not of the medians
        ([100.0], [50.0], 0.5),
    ],
)
def test_a_ratio_is_the_median_of_the_ratios_of_pairs(
    before: Sequence[float], after: Sequence[float], expected: float
) -> None:
    (compared,) = budget.compare([{"total": v} for v in before], [{"total": v} for v in after], "ms")
    assert compared.ratio == expected


@pytest.mark.parametrize("before", [0.0, -1.5])
def test_there_is_no_ratio_to_a_value_that_is_not_positive(before: float) -> None:
    (compared,) = budget.compare([{"total": before}], [{"total": 1.0}], "ms")
    assert math.isnan(compared.ratio)


def test_only_figures_that_every_run_has_are_compared() -> None:
    before: Sequence[Mapping[str, float]] = [{"nats": 1.0, "gone": 1.0}]
    assert [compared.name for compared in budget.compare(before, [{"nats": 1.0, "new": 1.0}], "ms")] == ["nats"]


def test_each_version_runs_first_in_every_other_pair() -> None:
    assert list(trees.in_pairs(3)) == [("before", "after"), ("after", "before"), ("before", "after")]


def test_a_series_is_a_column_of_the_table() -> None:
    shown = incident.columns(
        [
            Figure("fsync of 4 KiB, median", 0.2, "ms"),
            Figure("idle: nats", 20.0, incident.RATE),
            Figure("answered: nats", 4.0, incident.MILLISECONDS),
            Figure("answered: total", 40.0, incident.MILLISECONDS),
            Figure("answered: above idle in the last 5 s", 1.0, incident.RATE),
        ]
    )
    assert shown == {"idle (ms/s)": {"nats": 20.0}, "answered (ms/incident)": {"nats": 4.0, "total": 40.0}}


def test_a_folder_without_services_is_no_worktree(tmp_path: Path) -> None:
    with pytest.raises(CommandFailed, match="has no folder `services`"):
        trees.run(tmp_path, "bench.incident", [])


def test_a_benchmark_without_a_copy_in_the_worktree_is_run_over_its_services(tmp_path: Path) -> None:
    (tmp_path / "services").mkdir()
    with pytest.raises(CommandFailed, match=r"bench\.figures ended with 0"):  # found, though the worktree has none
        trees.run(tmp_path, "bench.figures", [])


def test_the_worktree_s_own_copy_of_a_benchmark_comes_first(tmp_path: Path) -> None:
    for folder in ("services", "bench"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "__init__.py").write_text("")
    (tmp_path / "bench" / "incident.py").write_text(
        "import json, sys\n"
        "print(json.dumps({'figures': [{'name': sys.argv[2], 'value': 1.0}, {'name': 'lost', 'value': None}]}))\n"
    )
    assert trees.values(trees.run(tmp_path, "bench.incident", ["--incidents=5"])) == {"--incidents=5": 1.0}
