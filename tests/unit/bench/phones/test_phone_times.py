"""Figures of `bench.phones`: what never arrived counts as infinite, and phones and pages are counted apart."""

from __future__ import annotations

import math

from bench.phones.__main__ import PhoneTimes


def test_phones_and_pages_are_counted_apart_and_what_never_came_is_infinite() -> None:
    found = PhoneTimes(
        reported_ms={1: 1_000.0, 2: 2_000.0, 3: 3_000.0},
        arrived_ms={2: 2_250.0, 1: 1.0},
        her_painted_ms={1: 1_100.0},
        on_pages={1},
        offered_ms={"a": 500.0},
        unit_painted_ms={"a": 900.0, "other": 1.0},
        idle_percents=[40.0],
    )
    by_name = {figure.name: figure for figure in found.figures()}
    assert by_name["report to her phone, number"].value == 2
    assert by_name["report to her phone, p99"].value == math.inf and by_name["report to her phone, p99"].met is False
    assert by_name["report to her screen, p99"].value == 100 and by_name["report to her screen, p99"].met
    assert by_name["offer to the unit's screen, p99"].value == 400 and by_name["offer to the unit's screen, p99"].met
