"""Shared stories of spoofed tags, if they are present: no ring is cleared, and the desks are notified."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from services.cli.simulate import backtest
from tests.support.geofence.geolife import data_root

CASES = ("26b_spoof_away_while_inside", "26c_spoof_1400m_15s")


@pytest.mark.parametrize("name", CASES)
def test_no_ring_that_demands_a_response_is_cleared(name: str, tmp_path: Path) -> None:
    folder = data_root() / "cases" / name
    if not (folder / "scenario.json").is_file():
        pytest.skip(f"the shared story {folder} isn't there; set TANDEM_SHARED_DATA to the folder that holds cases/")
    reports = tmp_path / "reports.ndjson"
    reports.write_bytes(gzip.decompress((folder / "reports.ndjson.gz").read_bytes()))
    alerts = list(backtest.run(folder / "scenario.json", reports))
    assert not [alert for alert in alerts if alert["kind"] == "RING_CLEARED"]
    emitted = [(alert["target_id"], alert["demand"]) for alert in alerts if alert["kind"] == "SPOOFING_SUSPECTED"]
    assert emitted == [("home", "NOTIFY"), ("p1", "NOTIFY")]
    assert {alert["ring_m"] for alert in alerts if alert["kind"] == "RING_OPEN"} == {100.0, 1000.0, 2000.0}
