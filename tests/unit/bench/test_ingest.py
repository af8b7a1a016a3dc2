"""What bench.ingest sends, to ingest and to its peers, and the figures that it makes of what came back."""

from __future__ import annotations

import itertools
import math

import pytest

from bench.figures import Figure
from bench.ingestion import figures, reports, valkey
from bench.ingestion.figures import Results
from bench.ingestion.reports import BATCH, DEVICES, Reports
from bench.ingestion.saturated import Saturated
from bench.ingestion.slow_store import Held
from bench.mesh.load import Shape
from bench.mesh.machine import Usage
from services.cli.simulate.load_generator import LoadOutcome
from services.common import times
from services.ingest import translate
from tandem.ingest.v1 import ingest_pb2

GROUPS = DEVICES // BATCH


def test_batches_are_whole_messages_and_no_report_comes_twice() -> None:
    numbers = itertools.count(1)
    hundreds, singles = Reports(BATCH, numbers), Reports(1, numbers)
    sent = [ingest_pb2.ReportRequest.FromString(one.next()) for _ in range(3) for one in (hundreds, singles)]
    # All devices have had their turn, so these come from the same ones again.
    more = [ingest_pb2.ReportRequest.FromString(hundreds.next()) for _ in range(GROUPS)]
    positions = [position for one in (*sent, *more) for position in one.positions]

    assert [len(one.positions) for one in sent] == [BATCH, 1] * 3
    assert [one.together for one in sent] == [False, True] * 3
    keys = {(position.device_id, position.report_id) for position in positions}
    assert len(keys) == len(positions) == 3 * BATCH + 3 + GROUPS * BATCH
    assert len({position.device_id for position in positions}) == DEVICES
    for position in positions[:BATCH]:
        assert (position.lat_deg, position.lon_deg) == reports.place(reports.device_number(position.device_id))
        translate.parse_position(position)  # raises where anything is missing or out of range


def test_a_batch_by_itself_holds_the_same_as_one_on_a_stream() -> None:
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
    # The devices of a batch differ in their number modulo its size, so a bit for each tells them apart.
    found = {reports.device_number(position.device_id) % BATCH for position in request.positions}
    assert found == set(range(BATCH))


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
        taken, lines = lines[: 2 * words], lines[2 * words :]
        assert [int(length.removeprefix("$")) for length in taken[::2]] == [len(word) for word in taken[1::2]]
        commands.append(taken[1::2])
    said = ("r", columns.report_id, "t", str(columns.fix_time_s))
    assert commands == [
        ["XADD", "reports", "*", "d", device_id, *said, "lat", str(lat_deg), "lon", str(lon_deg), "acc", "10.0"]
        for device_id, lat_deg, lon_deg in zip(columns.device_ids, columns.lat_deg, columns.lon_deg, strict=True)
    ]


def test_a_load_is_due_in_order_and_its_fixes_are_never_ahead_of_that() -> None:
    plan = reports.plan(Reports(10, itertools.count(1)), Shape("s", 500, batch=10, streams=2), 4, seed=1)
    dues_s = [request.due_s for request in plan.requests]
    assert len(plan.requests) == 200 and dues_s == sorted(dues_s) and dues_s[0] >= 0 and dues_s[-1] <= 4
    for i, one in enumerate(plan.requests):
        request = ingest_pb2.ReportRequest.FromString(one.message)
        assert request.batch == i and len(request.positions) == one.reports == 10
        ahead_ms = times.from_timestamp(request.positions[0].fix_time) - (plan.starts_at_ms + 1000 * one.due_s)
        assert -1001 < ahead_ms <= 0


# ── figures ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def saturated(reports_per_s: float, cpu_s: float = 0.0) -> Saturated:
    return Saturated(reports_per_s, 10.0, Usage({"ingest": cpu_s}, idle=5.0, total=20.0))


def figures_of(results: Results) -> dict[str, Figure]:
    found = figures.of(results)
    by_name = {one.name: one for one in found}
    assert len(by_name) == len(found), "each name once"
    return by_name


def test_rates_are_medians_and_ratios_are_between_medians() -> None:
    results = Results()
    results.saturated["batched"] = [saturated(90_000, 8), saturated(160_000, 10), saturated(150_000, 9)]
    results.saturated["single"] = [saturated(11_999)]
    results.saturated["stock"] = [saturated(3_000), saturated(4_000), saturated(1)]
    results.saturated["valkey"] = [saturated(300_000)]
    found = figures_of(results)

    assert found["batched: reports durable"] == Figure("batched: reports durable", 150_000, "reports/s", 150_000, True)
    assert found["single: reports durable"].met is False
    assert found["batched: cpu of ingest"].value == 90 and found["batched: machine idle"].value == 25
    # In 30 s two cores have 60, of which 15 were idle and 27 ingest's.
    assert found["batched: cpu of all else"].value == pytest.approx(60)
    assert found["batched: over stock"] == Figure("batched: over stock", 50, "x", 40, True, "stock 3000 reports/s")
    assert (found["batched: over valkey"].value, found["batched: over valkey"].met) == (0.5, None)
    assert "batched: over postgis" not in found


def test_latencies_of_all_repeats_count_together_and_an_outlier_is_seen() -> None:
    shape = figures.LATENCIES[0]
    quick = LoadOutcome(accepted=98, answered_after_s=[0.002] * 98)
    slow = LoadOutcome(accepted=1, answered_after_s=[0.006, 0.007], late=2)
    results = Results()
    results.latency[shape.name] = [quick, slow]
    found = figures_of(results)

    p50, p99 = (found[f"{shape.name}: due to durable {one}"] for one in ("p50", "p99"))
    assert (p50.value, p50.met) == (2, True) and (p99.value, p99.met) == (6, False)
    assert found[f"{shape.name}: due to durable max"].value == 7
    refused = found[f"{shape.name}: reports refused"]
    assert (refused.value, refused.met) == (1, False)
    assert found[f"{shape.name}: requests sent late"].value == 2


def test_memory_may_grow_at_first_and_not_afterwards() -> None:
    steady = Held(10.0, resident_mib=[50.0 + n for n in range(30)] + [80.0, 90.0, 85.0], acknowledged={1, 2})
    growing = Held(10.0, resident_mib=[50.0] * 31 + [83.0], lost=1)
    brief = Held(10.0, resident_mib=[50.0] * 30)

    of_steady, of_growing, of_brief = (figures_of(Results(held=one)) for one in (steady, growing, brief))
    growth = "memory: growth after 30 s"
    assert (of_steady[growth].value, of_steady[growth].met) == (10, True)
    assert of_steady["memory: reports durable"].value == 2 * BATCH / 10
    assert (of_growing[growth].value, of_growing[growth].met) == (33, False)
    assert of_growing["memory: acknowledged reports lost"].met is False
    assert (of_brief[growth].value, of_brief[growth].met) == (math.inf, False)
