"""Tracks from GPX, CSV and NDJSON files: their reports, their faults, and the due times of reports."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.cli.commands.send import Pace
from services.cli.simulate import tracks
from services.cli.simulate.tracks import ReportedTrack
from services.common import times
from services.common.failure import MISUSED, CommandFailed
from tandem.common.v1 import log_pb2
from tandem.ingest.v1 import ingest_pb2

START_MS = times.from_rfc3339("2026-03-02T10:00:00Z")
POINT = '<trkpt lat="37.5" lon="127"><time>2026-03-02T10:00:{second:02d}Z</time></trkpt>'
LINE = {"fix_time": "2026-03-02T10:00:00Z", "lat_deg": 37.5, "lon_deg": 127}


def read(folder: Path, name: str, text: str, device_id: str = "tag-1") -> ReportedTrack:
    path = folder / name
    path.write_text(text, "utf-8")
    return tracks.read(path, device_id, 10.0)


def gpx(*points: str) -> str:
    inside = "".join(points)
    return f'<?xml version="1.0"?><gpx version="1.1" creator="t"><trk><trkseg>{inside}</trkseg></trk></gpx>'


def positions(track: ReportedTrack) -> list[ingest_pb2.Position]:
    assert all(isinstance(report, ingest_pb2.Position) for report in track.reports)
    return [report for report in track.reports if isinstance(report, ingest_pb2.Position)]


def faults(track: ReportedTrack) -> list[tuple[int, str]]:
    return [(fault.line, fault.field) for fault in track.faults]


# ── GPX ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_points_of_a_gpx_track_become_positions_with_its_times(tmp_path: Path) -> None:
    offset = '<trkpt lat="37.6" lon="127.1"><ele>30</ele><time>2026-03-02T19:00:01.500+09:00</time></trkpt>'
    bare = '<trkpt lat="-37.7" lon="-127.2"><time>2026-03-02T10:00:02</time></trkpt>'
    track = read(tmp_path, "t.GPX", "\ufeff" + gpx(POINT.format(second=0), offset, bare))
    found = positions(track)
    assert [tracks.time_ms(position) - START_MS for position in found] == [0, 1500, 2000]
    assert [(position.lat_deg, position.lon_deg) for position in found] == [(37.5, 127), (37.6, 127.1), (-37.7, -127.2)]
    assert {(position.device_id, position.accuracy_m) for position in found} == {("tag-1", 10)}
    assert track.timed and not track.faults


def test_a_gpx_track_without_times_gets_even_intervals(tmp_path: Path) -> None:
    route = '<gpx version="1.1" creator="t"><rte>' + '<rtept lat="37.5" lon="127"/>' * 3 + "</rte></gpx>"
    for text in (gpx(*['<trkpt lat="37.5" lon="127"/>'] * 3), route):
        track = read(tmp_path, "t.gpx", text)
        moments_ms = [tracks.time_ms(report) for report in track.reports]
        assert not track.timed and not track.faults
        assert [moment_ms - moments_ms[0] for moment_ms in moments_ms] == [0, 15_000, 30_000]


def test_unusable_points_of_a_gpx_track_are_named(tmp_path: Path) -> None:
    untimed, wrong = '<trkpt lat="37.5" lon="127"/>', POINT.replace("37.5", "97.5").format(second=1)
    track = read(tmp_path, "t.gpx", gpx(untimed, POINT.format(second=0), wrong))
    assert [str(fault) for fault in track.faults] == [
        "point 1: time: is missing, or isn't a time (example: 2026-07-06T00:00:00Z)",
        "point 3: lat_deg: must be from -90 to 90",
    ]
    assert len(track.reports) == 1


def test_a_gpx_track_whose_times_cannot_be_read_is_not_sent_as_one_without_times(tmp_path: Path) -> None:
    written_at = "<metadata><time>2026-03-02T10:00:00Z</time></metadata><trk>"
    bad = gpx('<trkpt lat="37.5" lon="127"><time>2026-13-02T10:00:00Z</time></trkpt>').replace("<trk>", written_at)
    assert faults(read(tmp_path, "t.gpx", bad)) == [(1, "time")]
    untimed = gpx('<trkpt lat="37.5" lon="127"/>').replace("<trk>", written_at)
    assert not read(tmp_path, "t.gpx", untimed).timed


# ── CSV ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "header",
    [
        "time,lat,lon,accuracy",
        "\ufeffTimestamp, Latitude ,Longitude,accuracy_m",
        "epoch_s,lat_deg,lon_deg,accuracy",
        '"time","lat","lng","accuracy"',
    ],
)
def test_columns_are_found_by_their_usual_names(header: str, tmp_path: Path) -> None:
    text = f"{header}\r\n2026-03-02T19:00:00+09:00,37.5,127,\r\n\r\n1772445601.25,37.6,-127.5,3.5\r\n"
    track = read(tmp_path, "t.csv", text)
    assert not track.faults
    assert [
        (tracks.time_ms(position) - START_MS, position.lat_deg, position.lon_deg, position.accuracy_m)
        for position in positions(track)
    ] == [
        (0, 37.5, 127, 10),
        (1250, 37.6, -127.5, 3.5),
    ]


def test_unknown_columns_are_ignored(tmp_path: Path) -> None:
    (found,) = positions(read(tmp_path, "t.csv", 'name,lon,time,lat\n"a, b",127,1772445600,37.5\n'))
    assert (found.lat_deg, found.lon_deg) == (37.5, 127)


def test_csv_lines_of_other_devices_are_left_out(tmp_path: Path) -> None:
    lines = "tag-1,1772445600,37.5,127\ntag-2,1772445601,38,128\n,1772445602,37.5,127\n"
    track = read(tmp_path, "t.csv", f"device_id,time,lat,lon\n{lines}")
    assert [tracks.time_ms(report) - START_MS for report in track.reports] == [0, 2000] and track.others == 1
    with pytest.raises(CommandFailed, match="holds no report of tag-3"):
        read(tmp_path, "t.csv", "device,time,lat,lon\ntag-2,1772445601,38,128\n", "tag-3")


@pytest.mark.parametrize(
    ("line", "field"),
    [
        ("yesterday,37.5,127,1", "Time"),
        ("2026-03-02T10:00:00,37.5,127,1", "Time"),
        ("1e30,37.5,127,1", "Time"),
        ("nan,37.5,127,1", "Time"),
        ("1772445600000,37.5,127,1", "Time"),
        (",37.5,127,1", "Time"),
        ("1772445600,north,127,1", "lat"),
        ("1772445600,nan,127,1", "lat"),
        ("1772445600,90.1,127,1", "lat"),
        ("1772445600,37.5,1e999,1", "lon"),
        ("1772445600,37.5,,1", "lon"),
        ("1772445600,37.5,127,-1", "accuracy"),
        ("1772445600,37.5,127,0", "accuracy"),
        ("1772445600,37.5,127", ""),
        ("1772445600,37.5,127,1,1", ""),
        ('1772445600,37.5,127,"1', ""),
        ("\x00\x01", ""),
        ("9" * 200_000 + ",37.5,127,1", ""),
    ],
)
def test_a_bad_line_is_named_with_its_column_and_other_lines_are_read(line: str, field: str, tmp_path: Path) -> None:
    good = "1772445600,37.5,127,1\n"
    track = read(tmp_path, "t.csv", f"Time,lat,lon,accuracy\n{good}{line}\n{good}")
    assert faults(track) == [(3, field)]
    assert [tracks.time_ms(report) for report in track.reports] == [START_MS] * 2


def test_a_huge_file_is_read(tmp_path: Path) -> None:
    lines = "".join(f"{1_772_445_600 + n},37.5,127\n" for n in range(100_000))
    track = read(tmp_path, "t.csv", f"time,lat,lon\n{lines}")
    assert len({report.report_id for report in track.reports}) == 100_000
    assert tracks.time_ms(track.reports[-1]) - START_MS == 99_999_000


# ── NDJSON ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_ndjson_lines_become_reports_and_other_devices_are_left_out(tmp_path: Path) -> None:
    lines = [
        LINE | {"report_id": "r-1", "accuracy_m": 3, "received_at": "2026-03-02T11:00:00Z"},
        LINE | {"device_id": "tag-2"},
        LINE | {"device_id": "tag-1", "kind": "position"},
        {"kind": "equipment", "event": "STRAP_OPEN", "event_time": "2026-03-02T10:00:05Z"},
    ]
    track = read(tmp_path, "t.ndjson", "\ufeff" + "\n\n".join(map(json.dumps, lines)))
    first, second, event = track.reports
    assert isinstance(first, ingest_pb2.Position) and (first.report_id, first.accuracy_m) == ("r-1", 3)
    assert isinstance(second, ingest_pb2.Position) and second.accuracy_m == 10
    assert isinstance(event, ingest_pb2.EquipmentEvent) and event.event == log_pb2.STRAP_OPEN
    assert {report.device_id for report in track.reports} == {"tag-1"} and track.others == 1
    assert tracks.time_ms(event) - START_MS == 5000


@pytest.mark.parametrize(
    ("line", "field"),
    [
        (json.dumps(LINE | {"lat_deg": 91}), "lat_deg"),
        (json.dumps(LINE | {"fix_time": "yesterday"}), "fix_time"),
        (json.dumps(LINE | {"report_id": "a b"}), "report_id"),
        (json.dumps(LINE | {"kind": "order"}), "kind"),
        (json.dumps(LINE | {"kind": []}), "kind"),
        (json.dumps(LINE | {"lat_deg": {}}), "lat_deg"),
        (json.dumps({"kind": "equipment", "event_time": "2026-03-02T10:00:05Z"}), "event"),
        ("[]", ""),
        ("rubbish", ""),
        ("[" * 100_000, ""),
        ('{"lat_deg": ' + "9" * 5000 + "}", ""),
    ],
)
def test_a_bad_line_of_ndjson_is_named(line: str, field: str, tmp_path: Path) -> None:
    track = read(tmp_path, "t.ndjson", f"{json.dumps(LINE)}\n{line}\n{json.dumps(LINE)}\n")
    assert faults(track) == [(2, field)]
    assert len(track.reports) == 2


# ── any file ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("t.gpx", "", "Error parsing XML"),
        ("t.gpx", "rubbish", "Error parsing XML"),
        ("t.gpx", gpx(POINT.replace("37.5", "north")), "north"),
        ("t.gpx", gpx(), "holds no report"),
        ("t.gpx", "<html><body/></html>", "holds no report"),
        ("t.csv", "", "line 1: must name the columns"),
        ("t.csv", "1772445600,37.5,127\n", "line 1: must name the columns; one of time, timestamp"),
        ("t.csv", "\ntime,lat\n", "line 2: must name the columns; one of lon, lng"),
        ("t.csv", "time,lat,latitude,lon\n", "the columns lat and latitude fill the same field"),
        ("t.csv", 'time,lat,"lon\n', "line 1: unexpected end"),
        ("t.csv", "time,lat,lon\n", "holds no report"),
        ("t.ndjson", " \n", "holds no report"),
        ("t.ndjson", json.dumps(LINE | {"device_id": "tag-2"}), "holds no report of tag-1"),
        ("t.kml", "", "must end in one of .gpx, .csv, .ndjson"),
    ],
)
def test_a_file_without_a_track_is_refused(name: str, text: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(CommandFailed) as failed:
        read(tmp_path, name, text)
    assert expected in failed.value.message and failed.value.exit_code == MISUSED


@pytest.mark.parametrize("name", ["t.gpx", "t.csv", "t.ndjson"])
def test_an_absent_or_binary_file_is_refused(name: str, tmp_path: Path) -> None:
    for content in (b"\xff\xfe\x00", None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(CommandFailed) as failed:
            tracks.read(tmp_path / name, "tag-1", 10.0)
        assert failed.value.exit_code == MISUSED
        (tmp_path / name).unlink(missing_ok=True)


def test_a_report_id_depends_on_content_and_line(tmp_path: Path) -> None:
    text = "time,lat,lon\n1772445600,37.5,127\n1772445600,37.5,127\n"
    ids = [report.report_id for report in read(tmp_path, "a.csv", text).reports]
    assert ids[0] != ids[1]
    assert ids == [report.report_id for report in read(tmp_path, "b.csv", text).reports]
    assert ids[0] != read(tmp_path, "c.csv", text + "\n").reports[0].report_id


# ── pace ─────────────────────────────────────────────────────────────────────────────────────────────────────────────

NOW_MS = START_MS + 86_400_000


def a_track(tmp_path: Path, *seconds: float) -> ReportedTrack:
    return read(tmp_path, "t.csv", "time,lat,lon\n" + "".join(f"{START_MS / 1000 + s},37.5,127\n" for s in seconds))


@pytest.mark.parametrize(
    ("pace", "due_ms", "given_ms"),
    [
        (Pace(10, as_recorded=False), [0, 1000, 1000, 3000], [0, 1000, 500, 3000]),
        (Pace(10, as_recorded=True), [0, 1000, 1000, 3000], [-86_400_000, -86_390_000, -86_395_000, -86_370_000]),
        (Pace(0, as_recorded=False), [0, 0, 0, 0], [-30_000, -20_000, -25_000, 0]),
        (Pace(0, as_recorded=True), [0, 0, 0, 0], [-86_400_000, -86_390_000, -86_395_000, -86_370_000]),
    ],
)
def test_reports_are_due_by_the_times_of_their_track(
    pace: Pace, due_ms: list[int], given_ms: list[int], tmp_path: Path
) -> None:
    track = a_track(tmp_path, 0, 10, 5, 30)
    planned, _ = pace.round(track, NOW_MS)
    assert [due - NOW_MS for due, _ in planned] == due_ms
    assert [tracks.time_ms(report) - NOW_MS for _, report in planned] == given_ms
    assert ([report for _, report in planned] == track.reports) == pace.as_recorded


def test_each_round_has_new_ids_and_begins_after_the_previous_round(tmp_path: Path) -> None:
    track, pace = a_track(tmp_path, 0, 10, 20), Pace(10, as_recorded=False)
    first, next_round_ms = pace.round(track, NOW_MS)
    second, _ = pace.round(track, next_round_ms)
    assert next_round_ms == NOW_MS + 3000
    assert len({report.report_id for _, report in first + second}) == 6
    assert pace.round(track, NOW_MS)[0] == first


def test_a_single_position_is_repeated_at_the_interval_of_a_tag(tmp_path: Path) -> None:
    assert Pace(10, as_recorded=False).round(a_track(tmp_path, 0), NOW_MS)[1] == NOW_MS + 1500
