"""Figures of a country's minutes: growth, idle share, and what counts towards the targets."""

from __future__ import annotations

import math

import pytest

from bench.country import minutes
from bench.country.minutes import Minute
from bench.mesh.machine import Usage


def minute(number: int, ms: float = 20.0, event: str = "", idle: float = 90.0) -> Minute:
    return Minute(
        used=Usage({"nats": 3.0, "bench": 6.0}, idle, 120.0),
        in_incidents_ms=[ms] * 10,
        at_desks_ms=[ms / 2] * 10,
        memory_mib={"nats": 100.0 + 2 * number, "bench": 900.0},
        disk_mib=1000.0 + 24.0 * number,
        event=event,
    )


def test_growth_is_the_slope_after_the_warm_up() -> None:
    assert minutes.growth([900.0, 0.0, 10.0, 13.0, 16.0]) == pytest.approx(3.0)
    assert minutes.growth([10.0, 13.0]) == pytest.approx(3.0)
    assert minutes.growth([10.0]) == 0.0


def test_figures_are_of_all_minutes_and_the_idle_share_of_those_without_an_event() -> None:
    measured = [minute(1), minute(2), minute(3, event="reconnect burst", idle=0.0), minute(4, ms=80.0)]
    found = {figure.name: figure for figure in minutes.figures_of("P = 1", measured, 0)}
    assert found["P = 1: machine idle, median minute"].value == 75.0
    assert found["P = 1: incidents"].value == 40
    assert found["P = 1: both legs in INCIDENTS p50"].value == 20.0
    assert (
        found["P = 1: both legs in INCIDENTS p99"].value == 80.0 and not found["P = 1: both legs in INCIDENTS p99"].met
    )
    assert found["P = 1: both legs at the desks p99"].value == 40.0
    assert found["P = 1: processor time of nats"].value == pytest.approx(50.0)  # 12 s in 240 s
    assert found["P = 1: memory of nats"].value == 108.0
    assert found["P = 1: growth of nats"].value == pytest.approx(2.0)
    assert "P = 1: memory of bench" not in found
    assert found["P = 1: growth of the disk in a day"].value == pytest.approx(24.0 * 1440 / 1024)


def test_a_lost_incident_misses_the_targets() -> None:
    found = {figure.name: figure for figure in minutes.figures_of("P = 4", [minute(1, ms=math.inf)], 1)}
    assert found["P = 4: incidents lost"].met is False
    assert found["P = 4: both legs in INCIDENTS p99"].met is False


def test_the_table_has_a_row_for_each_minute_also_without_incidents() -> None:
    empty = Minute(Usage({}, 0.0, 0.0), [], [], {"nats": 1.0}, 5.0)
    assert minutes.table([minute(1), empty]).row_count == 2
