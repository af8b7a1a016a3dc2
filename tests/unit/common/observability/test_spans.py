"""Durations of a trace are read at one glance: milliseconds below a second, seconds from there on, with equally many decimals."""

from __future__ import annotations

import pytest

from services.common.observability.spans import duration


@pytest.mark.parametrize(
    ("us", "text"),
    [
        (0, "0.0 ms"),
        (4_840, "4.8 ms"),
        (999_949, "999.9 ms"),
        (999_950, "1.00 s"),
        (2_014_500, "2.01 s"),
        (75_100_000, "75.10 s"),
        (999_990_000, "999.99 s"),
        (3_725_100_000, "3725.1 s"),
        (86_400_000_000, "86400.0 s"),
        (-12_000, "-12.0 ms"),
        (-2_014_500, "-2.01 s"),
    ],
)
def test_a_duration_is_short_and_has_its_unit(us: int, text: str) -> None:
    assert duration(us) == text and len(text) <= 9
