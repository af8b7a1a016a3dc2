"""Test support for real GPS tracks (GeoLife): finds and reads them, and writes a session as input of `tandem backtest`.

The data stay outside the project because of their research licence. Their folder is `$TANDEM_SHARED_DATA`, else `../shared/data` next
to the repository. A test that needs them calls `require_geolife()`, which skips the test with the reason where they are absent.
"""

from __future__ import annotations

import csv
import gzip
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from services.cli.simulate import backtest

WEARER_DEVICE_ID = "tag-wearer"
PROTECTED_DEVICE_ID = "dev-protected"
ORDER_ID = "order-geolife"
RINGS: tuple[tuple[int, str], ...] = ((100, "RESPOND"), (500, "NOTIFY"), (1000, "WARN"))
"""(radius in m, action) of each ring of the order that `write_scenario` writes."""

DEFAULT_MARGIN_S = 120.0
"""Seconds of both tracks played before and after a session."""

_ORDER_SLACK_S = 86_400.0
# Synthetic, with a valid check digit. Wearer and respondent share it, so that they match exactly.
_NATIONAL_ID = "850312-1000003"
_BIRTH_DATE = "1985-03-12"


@dataclass(frozen=True, slots=True)
class Fix:
    """One position fix of one person."""

    epoch_s: float
    """Time of the fix, seconds since 1970-01-01T00:00:00Z."""
    lat_deg: float
    """WGS84 latitude, degrees north."""
    lon_deg: float
    """WGS84 longitude, degrees east."""


@dataclass(frozen=True, slots=True)
class Session:
    """A row of pairs.csv: two people within 2 km of each other for at least 2 minutes."""

    a: str
    """Person who plays the wearer."""
    b: str
    """Person who plays the protected person."""
    t0_s: float
    """Start, epoch seconds."""
    t1_s: float
    """End, epoch seconds."""
    grid_min_m: float
    """Minimum distance on a 5 s grid, m: an upper bound of the true minimum."""

    @property
    def name(self) -> str:
        """Readable, unique name for test ids, such as `002-006-1224846685`."""
        return f"{self.a}-{self.b}-{self.t0_s:.0f}"


def data_root() -> Path:
    """Folder of the shared data: `$TANDEM_SHARED_DATA`, else `<repository>/../shared/data`."""
    configured = os.environ.get("TANDEM_SHARED_DATA")
    return Path(configured) if configured else Path(__file__).resolve().parents[4] / "shared" / "data"


def geolife_dir() -> Path:
    """Folder of the tracks and of pairs.csv; it may not exist."""
    return data_root() / "geolife"


def shared_story(name: str, folder: Path) -> list[dict[str, Any]]:
    """Alerts of a shared story. Its reports are unpacked into `folder`. Skips the test if the story is absent."""
    story = data_root() / "cases" / name
    if not story.is_dir():
        pytest.skip(f"no stories in {story.parent}; set TANDEM_SHARED_DATA to the folder that holds cases/")
    reports = folder / "reports.ndjson"
    reports.write_bytes(gzip.decompress((story / "reports.ndjson.gz").read_bytes()))
    return list(backtest.run_files(story / "scenario.json", reports))


def require_geolife() -> Path:
    """The GeoLife folder; skips the calling test or module where it is absent."""
    folder = geolife_dir()
    if not (folder / "pairs.csv").is_file():
        pytest.skip(
            f"GeoLife tracks not found in {folder}; set TANDEM_SHARED_DATA to the folder that holds geolife/",
            allow_module_level=True,
        )
    return folder


@cache
def load_track(person: str) -> tuple[Fix, ...]:
    """All fixes of a person in file order, with the duplicate times and the two backward time steps of the data."""
    with gzip.open(geolife_dir() / f"{person}.csv.gz", "rt", encoding="utf-8", newline="") as file:
        return tuple(
            Fix(float(row["epoch_s"]), float(row["lat_deg"]), float(row["lon_deg"])) for row in csv.DictReader(file)
        )


@cache
def load_sessions() -> tuple[Session, ...]:
    """All sessions of pairs.csv, in file order."""
    with (geolife_dir() / "pairs.csv").open(encoding="utf-8", newline="") as file:
        return tuple(
            Session(
                a=row["a"],
                b=row["b"],
                t0_s=float(row["t0"]),
                t1_s=float(row["t1"]),
                grid_min_m=float(row["min_m"]),
            )
            for row in csv.DictReader(file)
        )


def window(track: Iterable[Fix], from_s: float, to_s: float) -> list[Fix]:
    """Fixes with `from_s <= epoch_s <= to_s`, sorted by time; equal times keep their file order."""
    return sorted((fix for fix in track if from_s <= fix.epoch_s <= to_s), key=lambda fix: fix.epoch_s)


def session_tracks(session: Session, margin_s: float = DEFAULT_MARGIN_S) -> tuple[list[Fix], list[Fix]]:
    """Tracks of wearer and protected person of a session, with `margin_s` extra seconds at each end."""
    from_s, to_s = session.t0_s - margin_s, session.t1_s + margin_s
    return window(load_track(session.a), from_s, to_s), window(load_track(session.b), from_s, to_s)


def rfc3339(epoch_s: float) -> str:
    """RFC 3339 time in UTC with milliseconds, as the file formats require."""
    stamp = datetime.fromtimestamp(round(epoch_s * 1000) / 1000, UTC)
    return stamp.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse_rfc3339(text: str) -> float:
    """Epoch seconds of an RFC 3339 time."""
    return datetime.fromisoformat(text).timestamp()


def merged(wearer: Sequence[Fix], protected: Sequence[Fix]) -> list[tuple[str, Fix]]:
    """(device id, fix) of both tracks in order of arrival: by time; at equal times the wearer first, then file order."""
    tagged = [(WEARER_DEVICE_ID, fix) for fix in wearer] + [(PROTECTED_DEVICE_ID, fix) for fix in protected]
    return sorted(tagged, key=lambda item: item[1].epoch_s)


def scenario(from_s: float, to_s: float) -> dict[str, Any]:
    """Content of scenario.json: one wearer, one protected person, and one order valid well beyond `from_s`..`to_s`."""
    person = {"national_id": _NATIONAL_ID, "name": "Wearer Synthetic", "birth_date": _BIRTH_DATE}
    return {
        "wearers": [{"wearer_id": "wearer-geolife", **person}],
        "tags": [{"device_id": WEARER_DEVICE_ID, "wearer_id": "wearer-geolife"}],
        "protected_persons": [{"person_id": "person-geolife", "name": "Protected Synthetic"}],
        "devices": [{"device_id": PROTECTED_DEVICE_ID, "person_id": "person-geolife"}],
        "orders": [
            {
                "order_id": ORDER_ID,
                "respondent": person,
                "protected_person_ids": ["person-geolife"],
                "places": [],
                "rings": [{"radius_m": radius_m, "action": action} for radius_m, action in RINGS],
                "valid_from": rfc3339(from_s - _ORDER_SLACK_S),
                "valid_until": rfc3339(to_s + _ORDER_SLACK_S),
            }
        ],
    }


def report_lines(wearer: Sequence[Fix], protected: Sequence[Fix]) -> list[str]:
    """Lines of reports.ndjson for both tracks in order of arrival. They omit `received_at`, which then equals `fix_time`."""
    return [
        json.dumps(
            {
                "device_id": device_id,
                "report_id": f"r{number:06d}",
                "fix_time": rfc3339(fix.epoch_s),
                "lat_deg": fix.lat_deg,
                "lon_deg": fix.lon_deg,
                "accuracy_m": 1.0,
            }
        )
        for number, (device_id, fix) in enumerate(merged(wearer, protected))
    ]


def write_session(session: Session, folder: Path, margin_s: float = DEFAULT_MARGIN_S) -> tuple[Path, Path]:
    """Writes `scenario.json` and `reports.ndjson` of a session into `folder`.

    Returns:
        Paths of the scenario and of the reports.
    """
    wearer, protected = session_tracks(session, margin_s)
    scenario_path, reports_path = folder / "scenario.json", folder / "reports.ndjson"
    scenario_path.write_text(
        json.dumps(scenario(session.t0_s - margin_s, session.t1_s + margin_s), indent=1), encoding="utf-8"
    )
    reports_path.write_text("".join(f"{line}\n" for line in report_lines(wearer, protected)), encoding="utf-8")
    return scenario_path, reports_path
