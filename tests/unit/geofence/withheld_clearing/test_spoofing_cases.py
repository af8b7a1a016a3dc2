"""Shared stories of spoofed tags, if they are present: no ring is cleared, and the desks are notified."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.geofence.geolife import shared_story

CASES = ("26b_spoof_away_while_inside", "26c_spoof_1400m_15s")


@pytest.mark.parametrize("name", CASES)
def test_no_ring_that_demands_a_response_is_cleared(name: str, tmp_path: Path) -> None:
    alerts = shared_story(name, tmp_path)
    assert not [alert for alert in alerts if alert["kind"] == "RING_CLEARED"]
    emitted = [(alert["target_id"], alert["demand"]) for alert in alerts if alert["kind"] == "SPOOFING_SUSPECTED"]
    assert emitted == [("home", "NOTIFY"), ("p1", "NOTIFY")]
    assert {alert["ring_m"] for alert in alerts if alert["kind"] == "RING_OPEN"} == {100.0, 1000.0, 2000.0}
