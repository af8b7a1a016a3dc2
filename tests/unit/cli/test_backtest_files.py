"""A back-test's reports may add tags and devices on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.simulate import backtest, files
from services.cli.simulate.files import FileError
from services.client.scenario import ReportLine

SCENARIO = {
    "wearers": [{"wearer_id": "w", "national_id": "900101-1000000", "name": "W", "birth_date": "1990-01-01"}],
    "protected_persons": [{"person_id": "p", "name": "P"}],
}
AT = {"received_at": "2026-03-02T10:00:00Z"}


def load(folder: Path, *lines: dict[str, Any]) -> list[ReportLine]:
    scenario, reports = folder / "scenario.json", folder / "reports.ndjson"
    scenario.write_text(json.dumps(SCENARIO))
    reports.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return files.load_reports(reports, files.load_scenario(scenario))


@pytest.mark.parametrize(
    "given",
    [
        {"kind": "tag", "device_id": "new", "wearer_id": "w"},
        {"kind": "device", "device_id": "new", "person_id": "p"},
    ],
)
def test_a_device_may_report_only_after_its_record(tmp_path: Path, given: dict[str, Any]) -> None:
    event = {"kind": "equipment", "device_id": "new", "report_id": "1", "event_time": AT["received_at"]}
    event |= {"event": "BATTERY_LOW"}
    assert [line.number for line in load(tmp_path, given | AT, event)] == [1, 2]
    with pytest.raises(FileError) as failed:
        load(tmp_path, event, given | AT)
    assert (failed.value.line, failed.value.field) == (1, "device_id")


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"kind": "tag", "device_id": "new", "wearer_id": "nobody"} | AT, "wearer_id"),
        ({"kind": "device", "device_id": "new", "person_id": "nobody"} | AT, "person_id"),
        ({"kind": "tag", "device_id": "new", "wearer_id": "w"}, "received_at"),
        ({"kind": "device", "device_id": "a b", "person_id": "p"} | AT, "device_id"),
    ],
)
def test_an_error_in_a_tag_or_device_line_names_line_and_field(
    tmp_path: Path, given: dict[str, Any], field: str
) -> None:
    with pytest.raises(FileError) as failed:
        load(tmp_path, given)
    assert (failed.value.line, failed.value.field) == (1, field)


def test_a_track_of_the_tag_gives_the_same_alerts_as_its_reports(tmp_path: Path) -> None:
    scenario = tmp_path / "scenario.json"
    home = {"place_id": "home", "circle": {"lat_deg": 37.5, "lon_deg": 127.0, "radius_m": 20}}
    order = {
        "order_id": "o",
        "respondent": {"national_id": "900101-1000000", "name": "W", "birth_date": "1990-01-01"},
        "places": [home],
        "valid_from": "2026-03-01T00:00:00Z",
        "valid_until": "2026-06-01T00:00:00Z",
    }
    tags = [{"device_id": name, "wearer_id": "w"} for name in ("tag", "spare")]
    scenario.write_text(json.dumps({**SCENARIO, "tags": tags, "orders": [order]}))
    moments = [
        (f"2026-03-02T10:{second // 60:02}:{second % 60:02}Z", 37.52 - second / 10_000) for second in range(0, 200, 20)
    ]
    reports, csv, gpx = (tmp_path / name for name in ("reports.ndjson", "track.csv", "track.gpx"))
    position = {"device_id": "tag", "lon_deg": 127.0, "accuracy_m": 10}
    reports.write_text(
        "".join(
            json.dumps({**position, "report_id": str(i), "fix_time": time, "lat_deg": lat}) + "\n"
            for i, (time, lat) in enumerate(moments)
        )
    )
    # A recorder may write its points in any order.
    csv.write_text("time,lat,lon\n" + "".join(f"{time},{lat},127.0\n" for time, lat in reversed(moments)))
    points = "".join(f'<trkpt lat="{lat}" lon="127.0"><time>{time}</time></trkpt>' for time, lat in moments)
    gpx.write_text(f'<gpx version="1.1" creator="t"><trk><trkseg>{points}</trkseg></trk></gpx>')

    def alerts(path: Path, device_id: str = "") -> list[tuple[str, str, str]]:
        found = backtest.run_files(scenario, path, device_id=device_id)
        return [(alert["kind"], alert["demand"], alert["decided_at"]) for alert in found]

    expected = alerts(reports)
    assert "RESPOND" in {demand for _, demand, _ in expected}
    assert alerts(csv) == alerts(gpx) == alerts(gpx, "spare") == expected
