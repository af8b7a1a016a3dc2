"""A back-test's reports may add tags and devices on the way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.simulate import files
from services.cli.simulate.files import FileError

SCENARIO = {
    "wearers": [{"wearer_id": "w", "national_id": "900101-1000000", "name": "W", "birth_date": "1990-01-01"}],
    "protected_persons": [{"person_id": "p", "name": "P"}],
}
AT = {"received_at": "2026-03-02T10:00:00Z"}


def load(folder: Path, *lines: dict[str, Any]) -> list[files.ReportLine]:
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
