"""Battery charges: only accepted devices count, charging starts the estimate afresh, and the time until empty follows from the fall."""

from __future__ import annotations

import json

from services.ingest.domain import ReportedBatteries, ReportedCharge
from services.ingest.endpoints import phones

HOUR_MS = 3_600_000


def test_the_charge_of_a_device_whose_report_was_refused_is_not_noted() -> None:
    batteries = ReportedBatteries()
    batteries.accepted([ReportedCharge("tag-1", 50, 1), ReportedCharge("tag-2", 5, 1)], ["tag-1"])
    assert [device_id for device_id, _ in batteries.lowest_first(100)] == ["tag-1"]


def test_a_battery_is_empty_at_the_rate_since_it_was_charged_last() -> None:
    batteries = ReportedBatteries()
    for charge_pct, hours in ((40, 0), (38, 1), (90, 2), (80, 4)):
        batteries.accepted([ReportedCharge("tag-1", charge_pct, hours * HOUR_MS)], ["tag-1"])
    battery = batteries.get("tag-1")
    assert battery and battery.charge_pct == 80 and battery.empty_ms == 20 * HOUR_MS, "5 percent an hour"
    batteries.accepted([ReportedCharge("tag-1", 10, 3 * HOUR_MS)], ["tag-1"])
    assert batteries.get("tag-1") == battery, "a late report says nothing about now"


def test_too_small_a_fall_gives_no_estimate_and_an_unchanged_charge_is_not_shared() -> None:
    batteries = ReportedBatteries()
    for minutes, charge_pct in enumerate((50, 50, 49.9, 49)):
        batteries.accepted([ReportedCharge("tag-1", charge_pct, minutes * 60_000)], ["tag-1"])
        batteries.unshared() if minutes == 0 else None
    battery = batteries.get("tag-1")
    assert battery and battery.empty_ms is None
    assert [charge.charge_pct for charge in batteries.unshared()] == [49] and not batteries.unshared()
    other = ReportedBatteries()
    other.accepted_elsewhere([ReportedCharge("tag-1", 49, 7)])
    assert other.get("tag-1") and not other.unshared(), "what another process said isn't repeated"


def test_phones_state_their_charge_and_rubbish_is_ignored() -> None:
    position = {"id": "app", "lat": "37.5", "lon": "127", "accuracy": "5"}
    for text, expected in (("42", 42.0), ("0", 0.0), ("101", None), ("-1", None), ("full", None), ("", None)):
        assert phones.parse_osmand(position | {"batt": text}, 1_000_000).charge_pct == expected, text
    for level, charged in ((0.42, 42.0), (-1, None), (True, None), ("x", None), (2, None)):
        location = {
            "timestamp": "2026-03-02T10:00:00Z",
            "battery": {"level": level},
            "coords": {"latitude": 37.5, "longitude": 127, "accuracy": 5},
        }
        body = json.dumps({"device_id": "app", "location": location}).encode()
        assert phones.parse_traccar(body, 1_000_000).charge_pct == charged, level
