"""The inputs that users get wrong most, each with its exact answer: one line, without an error number or a library's own text."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli.command_line import run

EXAMPLES = Path(__file__).parents[4] / "examples"
SCENARIO, REPORTS = str(EXAMPLES / "scenario.json"), str(EXAMPLES / "reports.ndjson")
POSITION = {"report_id": "1", "fix_time": "2026-01-01T00:00:00Z", "lat_deg": 37.5, "lon_deg": 127, "accuracy_m": 5}

TO_SEOUL = ("--legal-basis", "STALKING_9_1_3_2", "--recipient", "spiffe://npa/desk/seoul")

COMMANDS: tuple[tuple[tuple[str, ...], str], ...] = (
    (("trac",), "No such command 'trac'. Did you mean 'trace'?"),
    (("evidence", "verfy", "--help-me"), "No such option: --help-me. Did you mean '--help'?"),
    (("up", "--clockrate", "3"), "No such option: --clockrate. Did you mean '--clock-rate'?"),
    (("evidence", "incident-1", "--basis", "X"), "No such option: --basis. Did you mean '--legal-basis'?"),
    (("up", "--clock-rate", "fast"), "--clock-rate: 'fast' isn't a whole number (example: 10)"),
    (("up", "--partitions", "0"), "--partitions: must be 1 or more, not 0"),
    (("up", "--base-port", "70000"), "--base-port: must be 65,000 or less, not 70000"),
    (("put", "wearers", "w.json"), "kind: 'wearers' is not one of 'wearer', 'tag', 'person', 'device', 'order'."),
    (("backtest", "--scenario", SCENARIO, "--reports", "none.ndjson"), "none.ndjson: there is no such file or folder"),
    (("import", "folder"), "folder: is a folder; name a file"),
    (
        ("import", "empty.csv"),
        "empty.csv: the first line must name the columns, among them one of wearer_id, order_id, device_id (see examples/)",
    ),
    (("import", "column.csv"), "column.csv: the column person_id is missing"),
    (("import", "utf16.csv"), "utf16.csv: is text in UTF-16: save it as UTF-8 (in Excel: CSV UTF-8)"),
    (
        ("import", "damaged.csv"),
        "damaged.csv: line 3 isn't text in UTF-8: save the file as UTF-8 (in Excel: CSV UTF-8)",
    ),
    (
        ("backtest", "--scenario", "unknown.json", "--reports", REPORTS),
        "unknown.json: wearers[0].wearerid: isn't a field of Wearer; did you mean wearer_id?",
    ),
    (
        ("backtest", "--scenario", "broken.json", "--reports", REPORTS),
        "broken.json: line 2: isn't JSON: Unterminated string starting at at column 1",
    ),
    (
        ("backtest", "--scenario", "enum.json", "--reports", REPORTS),
        "enum.json: orders[0].rings[0].action: must be one of RECORD, WARN, NOTIFY, RESPOND",
    ),
    (
        ("backtest", "--scenario", "date.json", "--reports", REPORTS),
        "date.json: orders[0].valid_from: must be an RFC 3339 time (example: 2026-07-06T09:00:00+09:00)",
    ),
    (
        ("backtest", "--scenario", SCENARIO, "--reports", "number.ndjson"),
        "number.ndjson: line 1: lat_deg: must be a number (example: 37.5)",
    ),
    (
        ("backtest", "--scenario", SCENARIO, "--reports", REPORTS, "--rules", "rules.toml"),
        "rules.toml: line 1: isn't TOML: Expected ']' at the end of a table declaration",
    ),
    (
        ("send", "track.gpx", "--device", "tag-1"),
        "track.gpx: isn't GPX: Error parsing XML: no element found: line 1, column 10",
    ),
    (("send", "track.txt", "--device", "tag-1"), "track.txt: its name must end in one of .gpx, .csv, .ndjson"),
    (
        ("send", "track.gpx", "--device", "tag 1"),
        "--device: must be 1 to 64 characters of A-Z a-z 0-9 . _ - with single dots inside only",
    ),
    (("incidents", "--dir", "folder"), "no mesh runs on folder: start one with `tandem up --dir folder`"),
    (("logs", "--dir", "folder"), "folder has no logs: start a mesh there with `tandem up --dir folder`"),
    (("logs", "ingst", "--dir", "run"), "run has no log of 'ingst'. Did you mean 'ingest'?"),
    (("up", "--dir", "rules.toml"), "--dir: HERE/rules.toml: exists, and isn't a folder"),
    (("evidence", "verify", "none.tar"), "none.tar: there is no such file or folder"),
    (
        ("evidence", "make", "incident-1", *TO_SEOUL, "--reviewer", "KIM"),
        "a bundle needs --reviewer: a name of a-z, 0-9 and - (example: kim)",
    ),
    (
        ("report", "incident-1", *TO_SEOUL, "--out", "report.pdf", "--reviewer", "KIM"),
        "a report from a mesh needs --reviewer: a name of a-z, 0-9 and - (example: kim)",
    ),
    (("ledger", "verify", "--database", "none.db"), "--database: there is no file none.db"),
    (("certs", "moj"), "moj: isn't a SPIFFE id (example: spiffe://moj/desk/seoul)"),
    (
        ("certs", "spiffe://acme/gateway"),
        "spiffe://acme/gateway: no role has this id (examples: spiffe://vendor/acme, spiffe://moj/desk/seoul)",
    ),
)


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    wearers = (EXAMPLES / "wearers.csv").read_text("utf-8")
    (folder / "folder").mkdir()
    (folder / "run" / "logs").mkdir(parents=True)
    (folder / "run" / "logs" / "ingest.log").write_text('{"event": "serving", "level": "info"}\n')
    (folder / "empty.csv").touch()
    (folder / "column.csv").write_text("device_id\nphone-1\n")
    (folder / "utf16.csv").write_text(wearers, "utf-16")
    (folder / "damaged.csv").write_bytes(wearers.encode().replace("변".encode(), "변".encode()[:2]))
    (folder / "unknown.json").write_text('{"wearers": [{"wearerid": "W-1"}]}')
    (folder / "broken.json").write_text('{"wearers": [], \n"}')
    ring = {"radius_m": 100, "action": "ARREST"}
    (folder / "enum.json").write_text(json.dumps({"orders": [{"order_id": "O-1", "rings": [ring]}]}))
    (folder / "date.json").write_text(json.dumps({"orders": [{"order_id": "O-1", "valid_from": "2026-13-01"}]}))
    (folder / "number.ndjson").write_text(json.dumps(POSITION | {"device_id": "tag-1", "lat_deg": "north"}))
    (folder / "rules.toml").write_text("[a\n")
    (folder / "track.gpx").write_text("<gpx><trk>")
    point = '<trkpt lat="37.5" lon="127"></trkpt>'
    (folder / "still.gpx").write_text(f'<gpx version="1.1" creator="t"><trk><trkseg>{point}</trkseg></trk></gpx>')
    (folder / "nobody.json").write_text("{}")
    (folder / "track.txt").touch()
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


@pytest.mark.parametrize(("arguments", "expected"), COMMANDS, ids=[" ".join(words)[:60] for words, _ in COMMANDS])
def test_a_wrong_input_gets_one_line(arguments: tuple[str, ...], expected: str) -> None:
    ended = run(*arguments)
    assert (ended.stderr, ended.stdout) == (f"{expected}\n".replace("HERE", str(Path.cwd())), "")
    assert ended.code == 2
    assert "Errno" not in ended.stderr and "codec" not in ended.stderr


LINES = (
    (
        "wearers.csv",
        "W-1,900131-1234560,홍길동,1990-31-01,M,,,,,1",
        "line 2: birth_date: must be a date YYYY-MM-DD between 1900 and 2100 (example: 1990-01-31)",
    ),
    (
        "wearers.csv",
        "W-1,9001311234,홍길동,1990-01-31,M,,,,,1",
        "line 2: national_id: must be 13 digits, as YYMMDDNNNNNNN or YYMMDD-NNNNNNN (example: 900101-1234567)",
    ),
    (
        "wearers.csv",
        "W-1,900131-1234560,홍길동,1990-01-31,male,,,,,1",
        "line 2: sex: must be F, M or empty (example: M)",
    ),
    (
        "devices.csv",
        "phone 1,P-1,demo,1",
        "line 2: device_id: must be 1 to 64 characters of A-Z a-z 0-9 . _ - with single dots inside only (example: phone-1)",
    ),
    ("devices.csv", "phone-1,P-1,demo,new", "line 2: source_version: must be a whole number, 0 or more (example: 3)"),
    ("devices.csv", "phone-1", "line 2: has another number of columns than the header"),
)


@pytest.mark.parametrize(("table", "line", "expected"), LINES)
def test_a_wrong_line_of_a_table_is_named_with_an_example(table: str, line: str, expected: str, folder: Path) -> None:
    header = (EXAMPLES / table).read_text("utf-8").splitlines()[0]
    (folder / table).write_text(f"{header}\n{line}\n", "utf-8")
    ended = run("import", table, "--dry-run")
    assert ended.code == 2
    assert ended.stdout.splitlines()[0] == expected
