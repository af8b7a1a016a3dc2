"""Requests that bench.ingest sends to ingest and to its peers, and the figures that it computes from the results."""

from __future__ import annotations

import itertools
import math

import pytest

from bench.figures import Figure
from bench.ingestion import figures, reports, valkey
from bench.ingestion.figures import Results
from bench.ingestion.reports import BATCH, DEVICES, Reports
from bench.ingestion.saturated import Saturated
from bench.ingestion.slow_store import OverloadResult
from bench.mesh.load import Shape
from bench.mesh.machine import Usage
from services.client.load_generator import LoadOutcome
from services.common import times
from services.ingest import translate
from tandem.ingest.v1 import ingest_pb2

GROUPS = DEVICES // BATCH


def test_batches_are_valid_messages_and_no_report_repeats() -> None:
    numbers = itertools.count(1)
    hundreds, singles = Reports(BATCH, numbers), Reports(1, numbers)
    sent = [ingest_pb2.ReportRequest.FromString(source.next()) for _ in range(3) for source in (hundreds, singles)]
    # These requests cover all devices once more.
    more = [ingest_pb2.ReportRequest.FromString(hundreds.next()) for _ in range(GROUPS)]
    positions = [position for request in (*sent, *more) for position in request.positions]

    assert [len(request.positions) for request in sent] == [BATCH, 1] * 3
    assert [request.together for request in sent] == [False, True] * 3
    keys = {(position.device_id, position.report_id) for position in positions}
    assert len(keys) == len(positions) == 3 * BATCH + 3 + GROUPS * BATCH
    assert len({position.device_id for position in positions}) == DEVICES
    for position in positions[:BATCH]:
        assert (position.lat_deg, position.lon_deg) == reports.place(reports.device_number(position.device_id))
        translate.parse_position(position)  # raises where a field is missing or out of range


def test_a_unary_batch_holds_the_same_reports_as_one_on_a_stream() -> None:
    on_stream = ingest_pb2.ReportRequest.FromString(Reports(1, itertools.count(7)).next())
    by_itself = ingest_pb2.ReportBatchRequest.FromString(
        Reports(1, itertools.count(7), ingest_pb2.ReportBatchRequest).next()
    )
    on_stream.positions[0].ClearField("fix_time")
    by_itself.positions[0].ClearField("fix_time")
    assert list(on_stream.positions) == list(by_itself.positions)


def test_a_numbered_batch_can_be_found_by_its_number() -> None:
    source = Reports(BATCH, itertools.count(GROUPS + 3))
    number, message = source.next_numbered()
    request = ingest_pb2.ReportRequest.FromString(message)
    assert request.batch == number == GROUPS + 3
    assert {position.report_id for position in request.positions} == {reports.report_id(number)}
    # The device numbers of a batch differ modulo its size, so each device has a separate bit.
    bits = {reports.device_number(position.device_id) % BATCH for position in request.positions}
    assert bits == set(range(BATCH))


def test_peers_get_the_same_reports() -> None:
    request = ingest_pb2.ReportRequest.FromString(Reports(BATCH, itertools.count(5)).next())
    columns = Reports(BATCH, itertools.count(5)).next_columns()
    assert list(columns.device_ids) == [position.device_id for position in request.positions]
    assert {columns.report_id} == {position.report_id for position in request.positions}
    assert list(zip(columns.lat_deg, columns.lon_deg, strict=True)) == [
        (position.lat_deg, position.lon_deg) for position in request.positions
    ]


def test_valkey_gets_one_well_formed_command_a_report() -> None:
    columns = Reports(2, itertools.count(5)).next_columns()
    lines = valkey.commands(columns).decode().split("\r\n")
    assert lines.pop() == ""
    commands = []
    while lines:
        words = int(lines.pop(0).removeprefix("*"))
        command, lines = lines[: 2 * words], lines[2 * words :]
        assert [int(length.removeprefix("$")) for length in command[::2]] == [len(word) for word in command[1::2]]
        commands.append(command[1::2])
    shared = ("r", columns.report_id, "t", str(columns.fix_time_s))
    assert commands == [
        ["XADD", "reports", "*", "d", device_id, *shared, "lat", str(lat_deg), "lon", str(lon_deg), "acc", "10.0"]
        for device_id, lat_deg, lon_deg in zip(columns.device_ids, columns.lat_deg, columns.lon_deg, strict=True)
    ]


def test_a_load_is_due_in_order_and_no_fix_is_later_than_its_due_time() -> None:
    plan = reports.plan(Reports(10, itertools.count(1)), Shape("s", 500, batch=10, streams=2), 4, seed=1)
    dues_s = [request.due_s for request in plan.requests]
    assert len(plan.requests) == 200 and dues_s == sorted(dues_s) and dues_s[0] >= 0 and dues_s[-1] <= 4
    for i, due in enumerate(plan.requests):
        request = ingest_pb2.ReportRequest.FromString(due.message)
        assert request.batch == i and len(request.positions) == due.reports == 10
        ahead_ms = times.from_timestamp(request.positions[0].fix_time) - (plan.starts_at_ms + 1000 * due.due_s)
        assert -1001 < ahead_ms <= 0


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def saturated(reports_per_s: float, cpu_s: float = 0.0) -> Saturated:
    return Saturated(reports_per_s, 10.0, Usage({"ingest": cpu_s}, idle=5.0, total=20.0))


def figures_of(results: Results) -> dict[str, Figure]:
    all_figures = figures.of(results)
    by_name = {figure.name: figure for figure in all_figures}
    assert len(by_name) == len(all_figures), "each name once"
    return by_name


def test_rates_are_medians_and_ratios_are_between_medians() -> None:
    results = Results()
    results.saturated["batched"] = [saturated(90_000, 8), saturated(160_000, 10), saturated(150_000, 9)]
    results.saturated["single"] = [saturated(11_999)]
    results.saturated["stock"] = [saturated(3_000), saturated(4_000), saturated(1)]
    results.saturated["valkey"] = [saturated(300_000)]
    by_name = figures_of(results)

    assert by_name["batched: reports durable"] == Figure(
        "batched: reports durable", 150_000, "reports/s", 150_000, True
    )
    assert by_name["single: reports durable"].met is False
    assert by_name["batched: cpu of ingest"].value == 90 and by_name["batched: machine idle"].value == 25
    # Two cores have 60 s in 30 s; 15 s were idle, and ingest used 27 s.
    assert by_name["batched: cpu of all else"].value == pytest.approx(60)
    assert by_name["batched: over stock"] == Figure("batched: over stock", 50, "x", 40, True, "stock 3000 reports/s")
    assert (by_name["batched: over valkey"].value, by_name["batched: over valkey"].met) == (0.5, None)
    assert "batched: over postgis" not in by_name


def test_latencies_of_all_repeats_are_pooled_and_an_outlier_is_visible() -> None:
    shape = figures.LATENCIES[0]
    quick = LoadOutcome(accepted=98, answered_after_s=[0.002] * 98)
    slow = LoadOutcome(accepted=1, answered_after_s=[0.006, 0.007], late=2)
    results = Results()
    results.latency[shape.name] = [quick, slow]
    by_name = figures_of(results)

    p50, p99 = (by_name[f"{shape.name}: due to durable {percentile}"] for percentile in ("p50", "p99"))
    assert (p50.value, p50.met) == (2, True) and (p99.value, p99.met) == (6, False)
    assert by_name[f"{shape.name}: due to durable max"].value == 7
    refused = by_name[f"{shape.name}: reports refused"]
    assert (refused.value, refused.met) == (1, False)
    assert by_name[f"{shape.name}: requests sent late"].value == 2


def test_memory_may_grow_only_at_first() -> None:
    steady = OverloadResult(10.0, resident_mib=[50.0 + n for n in range(30)] + [80.0, 90.0, 85.0], acknowledged={1, 2})
    growing = OverloadResult(10.0, resident_mib=[50.0] * 31 + [83.0], lost=1)
    brief = OverloadResult(10.0, resident_mib=[50.0] * 30)

    of_steady, of_growing, of_brief = (figures_of(Results(overload=result)) for result in (steady, growing, brief))
    growth = "memory: growth after 30 s"
    assert (of_steady[growth].value, of_steady[growth].met) == (10, True)
    assert of_steady["memory: reports durable"].value == 2 * BATCH / 10
    assert (of_growing[growth].value, of_growing[growth].met) == (33, False)
    assert of_growing["memory: acknowledged reports lost"].met is False
    assert (of_brief[growth].value, of_brief[growth].met) == (math.inf, False)
