"""The scenario suite: breaches and near-breaches as a prosecutor reads them, each with the alerts that must be emitted."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from services.common import times
from tests.support.geofence import scenarios

FILES = scenarios.files()
MIN_SCENARIOS = 40
FIRST = scenarios.FOLDER / "first-fix-inside.json"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exactly_the_expected_alerts_are_emitted(path: Path) -> None:
    scenario = scenarios.load(path)
    assert scenario.faults(scenario.alerts()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_restart_before_every_arrival_changes_nothing(path: Path) -> None:
    scenario = scenarios.load(path)
    assert scenario.alerts(restart=True) == scenario.alerts()


def test_there_are_enough_scenarios_with_unique_names_and_stories() -> None:
    loaded = [scenarios.load(path) for path in FILES]
    assert len(loaded) >= MIN_SCENARIOS
    assert len({scenario.name for scenario in loaded}) == len({scenario.story for scenario in loaded}) == len(loaded)


# ── the suite itself ─────────────────────────────────────────────────────────────────────────────────────────────────


def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(FIRST.read_text())
    return found


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda must: must.pop(), "unexpected"),
        (lambda must: must.append(must[-1]), "missing"),
        (lambda must: must[-1].update(by_s=19), "missing"),
        (lambda must: must[-1].update(not_before_s=21, by_s=30), "missing"),
        (lambda must: must[-1].update(demand="NOTIFY"), "missing"),
        (lambda must: must[-1].update(ring_m=99), "missing"),
        (lambda must: must[-1].update(target="another"), "missing"),
        (lambda must: must[-1].update(order="another"), "missing"),
        (lambda must: must[-1].update(late=True), "missing"),
    ],
)
def test_a_scenario_that_is_not_met_fails(change: Callable[[list[dict[str, Any]]], object], fault: str) -> None:
    changed = content()
    change(changed["must"])
    scenario = scenarios.parse(changed)
    assert scenario.faults(scenario.alerts())[0].startswith(fault)


def test_another_number_of_incidents_fails() -> None:
    scenario = scenarios.parse(content() | {"incidents": 2})
    assert scenario.faults(scenario.alerts()) == ["incidents: 1, not 2"]


@pytest.mark.parametrize("where", ["", "origin", "orders", "timeline", "must"])
def test_an_unknown_word_of_the_format_is_rejected(where: str) -> None:
    changed = copy.deepcopy(content())
    part = changed[where] if where else changed
    (part[0] if isinstance(part, list) else part)["comment"] = "?"
    with pytest.raises(ValueError, match="comment"):
        scenarios.parse(changed)


def test_a_path_is_walked_at_one_speed_and_metres_are_metres() -> None:
    # He comes straight from 600 m at 10 m/s, so the 100 m ring is entered at second 50, on a report.
    changed = content()
    changed["timeline"] = [
        changed["timeline"][0],
        {"what": "He comes", "device": "his-tag", "path_m": [[0, 600], [0, 350], [0, 0]], "from_s": 0, "to_s": 60}
        | {"every_s": 10},
    ]
    scenario = scenarios.parse(changed)
    entered = next(alert for alert in scenario.alerts() if alert["ring_m"] == 100)
    assert abs(times.from_rfc3339(entered["at"]) - scenario.begins_ms - 50_000) < 20
