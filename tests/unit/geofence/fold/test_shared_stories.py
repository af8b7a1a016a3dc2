"""Shared stories of the decision, if they are present next to the project: how much a wearer, her and the desks get at most."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.geofence.geolife import data_root, parse_rfc3339, shared_story

Alerts = list[dict[str, Any]]
SECOND_0 = parse_rfc3339("2026-03-02T10:00:00Z")


def of(alerts: Alerts, kind: str, *, demand: str = "", ring_m: float = 0) -> Alerts:
    return [
        alert
        for alert in alerts
        if alert["kind"] == kind and demand in ("", alert.get("demand")) and ring_m in (0, alert.get("ring_m"))
    ]


def few_warnings(alerts: Alerts) -> int:
    count = len(of(alerts, "DISTANCE_CHANGED"))
    assert count <= 3
    return count


def response_after_the_encounter(alerts: Alerts) -> float:
    at_s = parse_rfc3339(of(alerts, "RING_ENTERED", demand="RESPOND")[0]["decided_at"]) - SECOND_0
    assert at_s <= 640 and not of(alerts, "RING_CLEARED")
    return at_s


def dead_letter_of_the_second(alerts: Alerts) -> str:
    [letter] = of(alerts, "PARKED")
    assert "another content" in letter["reason"] and not of(alerts, "RING_ENTERED")
    return str(letter["reason"])


def no_least_distance_beyond_the_ring(alerts: Alerts) -> list[tuple[float, float]]:
    found = [(alert["ring_m"], alert["min_distance_m"]) for alert in of(alerts, "RING_CLEARED")]
    assert found and all(least_m <= ring_m for ring_m, least_m in found)
    return found


def at_most_two_responses(alerts: Alerts) -> int:
    count = len([alert for alert in alerts if alert.get("demand") == "RESPOND"])
    assert 1 <= count <= 2
    return count


def no_all_clear(alerts: Alerts) -> int:
    assert of(alerts, "RING_ENTERED", ring_m=100) and not of(alerts, "RING_CLEARED", ring_m=100)
    return 0


CHECKS: dict[str, Callable[[Alerts], object]] = {
    "02_train_60s": few_warnings,
    "05b_bus_encounter_60s": response_after_the_encounter,
    "10a_dup_id_same_time_other_place": dead_letter_of_the_second,
    "25b_her_phone_back_after": no_least_distance_beyond_the_ring,
    "26b_spoof_away_while_inside": no_all_clear,
    "26c_spoof_1400m_15s": no_all_clear,
    "45_overconfident": at_most_two_responses,
    "48_same_train_180m": at_most_two_responses,
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_shared_story_stays_within_its_limit(name: str, tmp_path: Path) -> None:
    print(f"{name}: {CHECKS[name](shared_story(name, tmp_path))}")


def test_each_shared_story_has_a_test() -> None:
    """A story that is added to the folder needs a limit, here or in another test of this package."""
    stories = data_root() / "cases"
    if not stories.is_dir():
        pytest.skip(f"no stories in {stories}; set TANDEM_SHARED_DATA to the folder that holds cases/")
    texts = [path.read_text() for path in Path(__file__).parents[1].rglob("test_*.py")]
    assert not [story.name for story in stories.iterdir() if not any(f'"{story.name}"' in text for text in texts)]
