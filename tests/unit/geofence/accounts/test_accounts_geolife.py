"""Real tracks with shuffled or delayed reports: the final accounts equal those of the run in order (I9).

A few sessions and two seeds; under `make test-soak` all sessions that come within a ring, and 20 seeds (half an hour).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.cli.simulate import backtest
from tests.support.geofence.geolife import (
    Session,
    load_sessions,
    parse_rfc3339,
    require_geolife,
    rfc3339,
    write_session,
)
from tests.support.geofence.meos_oracle import Interval, merge

SHUFFLED_S, DELAYED_S = 600, 6_600

Accounts = dict[float, tuple[list[Interval], float]]
"""By ring, metres: stretches inside of all final accounts (epoch seconds), and the least distance (metres)."""


def delays_s(rng: random.Random, how: str) -> Iterator[float]:
    """The delay of each report, seconds; with `delayed`, half of the reports have none."""
    while True:
        yield rng.uniform(0, SHUFFLED_S) if how == "shuffled" else rng.choice((0.0, rng.uniform(0, DELAYED_S)))


def late(lines: list[str], how: str, seed: int) -> Iterator[str]:
    """The reports in their order of arrival by a seed."""
    reports: list[dict[str, Any]] = [json.loads(line) for line in lines]
    arrivals = [
        (parse_rfc3339(report["fix_time"]) + delay_s, report)
        for report, delay_s in zip(reports, delays_s(random.Random(seed), how), strict=False)
    ]
    for arrives_s, report in sorted(arrivals, key=lambda arrival: arrival[0]):
        yield json.dumps(report | {"received_at": rfc3339(arrives_s)}) + "\n"


def final(alerts: list[dict[str, Any]]) -> Accounts:
    """The union of all final accounts."""
    last = {alert.get("amends") or alert["alert_id"]: alert for alert in alerts if alert.get("inside") is not None}
    found: dict[float, tuple[list[Interval], list[float]]] = {}
    for alert in last.values():
        if alert["inside"]:
            inside, least = found.setdefault(alert["ring_m"], ([], []))
            inside += [(parse_rfc3339(from_), parse_rfc3339(to)) for from_, to in alert["inside"]]
            least.append(alert["min_distance_m"])
    return {ring_m: (merge(inside), min(least)) for ring_m, (inside, least) in found.items()}


def responses(alerts: list[dict[str, Any]]) -> int:
    """How often somebody was sent because the nearest ring was entered."""
    return sum((alert["kind"], alert["demand"]) == ("RING_ENTERED", "RESPOND") for alert in alerts)


def play(sessions: Sequence[Session], how: str, seeds: range, folder: Path) -> None:
    """Plays each session in order and by each seed, prints the figures and fails if accounts differ."""
    sent = [0, 0]
    inside_s = [0.0, 0.0]
    differ = []
    for session in sessions:
        scenario, reports = write_session(session, folder)
        lines = reports.read_text().splitlines()
        in_order = list(backtest.run_files(scenario, reports))
        expected = final(in_order)
        for seed in seeds:
            reports.write_text("".join(late(lines, how, seed)))
            alerts = list(backtest.run_files(scenario, reports))
            found = final(alerts)
            differ += [f"{session.name}, seed {seed}"] if found != expected else []
            for i, (run, accounts) in enumerate(((in_order, expected), (alerts, found))):
                sent[i] += responses(run)
                inside_s[i] += sum(to - from_ for inside, _ in accounts.values() for from_, to in inside)
    print(
        f"{how}: {len(sessions)} sessions, {len(seeds)} seeds: inside {inside_s[1]:.3f} of {inside_s[0]:.3f} s, "
        f"{sent[1]} responses, {sent[0]} in order"
    )
    assert differ == []
    assert inside_s[0] > 1_000


@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["shuffled", "delayed"])
def test_the_final_accounts_are_those_of_the_run_in_order(how: str, tmp_path: Path) -> None:
    require_geolife()
    play(load_sessions()[::9], how, range(2), tmp_path)


@pytest.mark.soak
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("how", ["shuffled", "delayed"])
def test_twenty_seeds_of_all_sessions_change_no_account(how: str, tmp_path: Path) -> None:
    require_geolife()
    play([session for session in load_sessions() if session.grid_min_m < 1_100], how, range(20), tmp_path)
