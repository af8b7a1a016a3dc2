"""Shared stories of the decision, if they are present next to the project: nobody is sent for a silence that means nothing, and rings
are cleared by devices that report rarely."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from tests.support.geofence.geolife import parse_rfc3339, shared_story

BEGIN_S = parse_rfc3339("2026-03-02T10:00:00Z")
"""Second 0 of the stories."""


def alerts(name: str, tmp_path: Path) -> list[dict[str, Any]]:
    """Alerts of a story; prints how many demand what."""
    found = shared_story(name, tmp_path)
    print(f"{name}: {dict(Counter(alert['demand'] for alert in found))}")
    return found


def responses(found: list[dict[str, Any]]) -> list[float]:
    """Seconds of the demands to respond."""
    return [parse_rfc3339(alert["at"]) - BEGIN_S for alert in found if alert["demand"] == "RESPOND"]


def test_a_battery_that_was_warned_of_sends_nobody_within_half_an_hour(tmp_path: Path) -> None:
    assert not [at_s for at_s in responses(alerts("22_battery_dead_5km", tmp_path)) if at_s <= 1800 + 300]


def test_a_phone_that_reports_each_four_minutes_clears_the_ring(tmp_path: Path) -> None:
    found = alerts("41_phone_each_4min", tmp_path)
    assert [alert for alert in found if alert["kind"] == "RING_CLEARED" and alert["ring_m"] == 100]


def test_a_tag_that_reports_each_200_s_sends_at_most_24_responses_in_8_hours(tmp_path: Path) -> None:
    assert len(responses(alerts("41b_tag_each_200s_900m", tmp_path))) <= 24


def test_a_hearing_without_reception_sends_nobody(tmp_path: Path) -> None:
    found = alerts("47_court_anywhere_no_gps", tmp_path)
    assert not responses(found)
    assert [alert for alert in found if alert["kind"] == "UNKNOWN_NEAR" and alert["demand"] == "NOTIFY"]
