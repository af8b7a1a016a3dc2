"""A country's traffic: every device reports every 15 s, and incidents begin as often as a country has alerts."""

from __future__ import annotations

from collections import Counter

import pytest

from bench.country import traffic
from bench.country.traffic import Traffic
from bench.mesh import population
from tandem.ingest.v1 import ingest_pb2

WEARERS, SECONDS = 2_000, 600
STARTS_MS = 1_790_000_000_000


def test_incidents_are_as_frequent_as_the_alerts_of_a_country() -> None:
    assert traffic.incidents_per_s(20_000) == pytest.approx(0.2106, abs=1e-4)
    assert (
        traffic.reserved(20_000, traffic.incidents_per_s(20_000), 1800) == 461
    )  # 379 are expected, plus 4 x 19.5, plus 4
    assert traffic.reserved(10, 1.0, 1800) == 10  # no more than there are


def test_every_device_reports_four_times_a_minute_and_each_trigger_once() -> None:
    cases = population.actors(WEARERS)
    source = Traffic(cases, SECONDS)
    triggers: dict[tuple[str, str], float] = {}
    kept = {case.tag_id for case in cases[: traffic.reserved(WEARERS, traffic.incidents_per_s(WEARERS), SECONDS)]}
    seen: set[tuple[str, str]] = set()
    for minute in range(5):
        plan = source.minute(STARTS_MS + minute * 60_000)
        dues_s = [request.due_s for request in plan.requests]
        assert dues_s == sorted(dues_s) and dues_s[0] >= 0 and dues_s[-1] < 60
        messages = [ingest_pb2.ReportRequest.FromString(request.message) for request in plan.requests]
        reports = Counter(position.device_id for message in messages for position in message.positions)
        for case in cases:
            assert abs(reports[case.device_id] - 4) <= 1  # of a minute's batches some begin the next turn
            if case.tag_id not in kept:
                assert abs(reports[case.tag_id] - 4) <= 1
        keys = [(position.device_id, position.report_id) for message in messages for position in message.positions]
        assert len(set(keys)) == len(keys) and seen.isdisjoint(keys)
        seen.update(keys)
        assert plan.triggers.keys() <= set(keys) and triggers.keys().isdisjoint(plan.triggers)
        triggers |= plan.triggers
        for message, request in zip(messages, plan.requests, strict=True):
            assert len(message.positions) == request.reports <= 100
            assert all(0 <= p.fix_time.seconds * 1000 - plan.starts_at_ms < 60_000 for p in message.positions)
    assert {device_id for device_id, _ in triggers} <= kept
    assert len({device_id for device_id, _ in triggers}) == len(triggers)  # a wearer triggers one incident


def test_a_triggered_wearer_reports_on_from_the_place_of_the_trigger() -> None:
    cases = population.actors(WEARERS)
    homes = {case.tag_id: case.home for case in cases}
    source = Traffic(cases, 1200, alerts_a_day=5.0, seed=3)
    triggered: set[str] = set()
    for minute in range(20):
        plan = source.minute(STARTS_MS + minute * 60_000)
        near = Counter(
            position.device_id
            for request in plan.requests
            for position in ingest_pb2.ReportRequest.FromString(request.message).positions
            if position.device_id in homes and abs(position.lat_deg - homes[position.device_id][0]) < 0.001
        )
        assert near == Counter({device: 4 for device in triggered}) + Counter(device for device, _ in plan.triggers)
        triggered |= {device for device, _ in plan.triggers}
    assert triggered
