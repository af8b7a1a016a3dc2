"""GeoLife's real tracks as days of a wearer, for studies of the decision, and the rings of their orders."""

from __future__ import annotations

import csv
import gzip
import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from services.geofence.domain.entries import Demand, Ring

RINGS = (Ring(2_000_000, Demand.WARN), Ring(1_000_000, Demand.NOTIFY), Ring(100_000, Demand.RESPOND))
REPORT_INTERVAL_MS = 15_000
"""Interval of a tag's reports."""
PHONE_INTERVAL_MS = 60_000
"""Interval of a phone's reports, and of a tag's reports in a filled gap."""
LONG_GAP_MS = 1_800_000
DAY_MS = 86_400_000
Row = tuple[int, str, int, int]
"""Time, device, latitude and longitude, 1e-7 degrees."""


def folder() -> Path:
    """Folder of the GeoLife tracks; it may not exist."""
    data = os.environ.get("TANDEM_SHARED_DATA")
    return (Path(data) if data else Path(__file__).resolve().parents[2] / "shared" / "data") / "geolife"


def days_of(path: Path) -> Iterator[list[Row]]:
    """Fixes of a person by day (UTC), at most one every 15 s."""
    day: list[Row] = []
    with gzip.open(path, "rt", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            at_ms = round(float(row["epoch_s"]) * 1000)
            if day and at_ms < day[-1][0] + REPORT_INTERVAL_MS:
                continue
            if day and at_ms // DAY_MS != day[-1][0] // DAY_MS:
                yield day
                day = []
            day.append((at_ms, "tag", round(float(row["lat_deg"]) * 1e7), round(float(row["lon_deg"]) * 1e7)))
    yield day


def filled(day: list[Row]) -> list[Row]:
    """A day whose long gaps are filled with the position before the gap."""
    rows = day[:1]
    for before, row in pairwise(day):
        if row[0] - before[0] > LONG_GAP_MS:
            rows += [(at_ms, *before[1:]) for at_ms in range(before[0] + PHONE_INTERVAL_MS, row[0], PHONE_INTERVAL_MS)]
        rows.append(row)
    return rows
