"""Back-tests with a rules file: its checks, and the comparison of two rule sets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from services.cli.commands import simulate
from services.cli.simulate import backtest, files
from services.cli.simulate.files import FileError
from services.common.failure import MISUSED, CommandFailed

EXAMPLES = Path(__file__).parents[3] / "examples"
FILES = (EXAMPLES / "scenario.json", EXAMPLES / "reports.ndjson")


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, "utf-8")
    return path


def alert_line(kind: str, at_s: int, **changes: object) -> dict[str, Any]:
    at = f"2026-03-02T10:00:{at_s:02d}.000Z"
    alert = {"order_id": "o", "target_id": "p", "kind": kind, "ring_m": 100.0, "demand": "RESPOND", "at": at}
    return alert | {"alert_id": f"alert-{at_s}", "decided_at": at} | changes


# ── rules files ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rules_file_sets_the_fields_of_the_rules(tmp_path: Path) -> None:
    path = write(tmp_path, "a", 'rules_id = "night"\nclear_margin_m = 50\nclear_after_s = 90\nlate_after_s = 30\n')
    found = files.load_rules(path)
    assert (found.rules_id, found.clear_margin_m, found.clear_after_s, found.late_after_s) == ("night", 50, 90, 30)


@pytest.mark.parametrize(
    ("text", "line", "field"),
    [
        ('rules_id = "a"\nclear_after = 5\n', 2, "clear_after"),
        ('rules_id = "a"\n\nclear_after_s = "5"\n', 3, "clear_after_s"),
        ('rules_id = "a"\nclear_after_s = 5.5\n', 2, "clear_after_s"),
        ('rules_id = "a"\nclear_after_s = true\n', 2, "clear_after_s"),
        ('rules_id = "a"\nclear_after_s = -1\n', 2, "clear_after_s"),
        ('rules_id = "a"\nclear_after_s = 99999999999\n', 2, "clear_after_s"),
        ('rules_id = "a"\nclear_after_s = 4000\n', 2, "clear_after_s"),
        ("rules_id = 7\n", 1, "rules_id"),
        ("clear_after_s = 5\n", None, "rules_id"),
        ('rules_id = "a b"\n', 1, "rules_id"),
        ('rules_id = "a"\n[rules]\nclear_after_s = 5\n', 2, "rules"),
        ('rules_id = "a"\nclear_after_s = \n', 2, ""),
        ('rules_id = "a', None, ""),
    ],
)
def test_an_error_in_a_rules_file_names_line_and_field(tmp_path: Path, text: str, line: int | None, field: str) -> None:
    with pytest.raises(FileError) as failed:
        files.load_rules(write(tmp_path, "a", text))
    assert (failed.value.line, failed.value.field) == (line, field)


def test_an_absent_or_binary_rules_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_bytes(b"rules_id = \xff")
    for name in ("broken.toml", "none.toml"):
        with pytest.raises(FileError):
            files.load_rules(tmp_path / name)


# ── the back-test ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_rules_file_replaces_the_rules_in_the_reports(tmp_path: Path) -> None:
    patient = files.load_rules(write(tmp_path, "a", 'rules_id = "patient"\nclear_after_s = 3600\n'))
    assert "RING_CLEARED" not in {alert["kind"] for alert in backtest.run_files(*FILES, patient)}
    reports = tmp_path / "reports.ndjson"
    own = {"kind": "rules", "received_at": "2026-03-02T10:00:00Z", "rules_id": "own", "clear_after_s": 1}
    reports.write_text(json.dumps(own) + "\n" + FILES[1].read_text())
    assert "RING_CLEARED" in {alert["kind"] for alert in backtest.run_files(FILES[0], reports)}
    assert "RING_CLEARED" not in {alert["kind"] for alert in backtest.run_files(FILES[0], reports, patient)}


def test_the_command_prints_and_counts_the_changed_alerts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = write(tmp_path, "a", 'rules_id = "a"\n')
    b = write(tmp_path, "b", 'rules_id = "b"\nclear_after_s = 3600\n')
    simulate.backtest(*FILES, rules=a, against=b)
    printed = capsys.readouterr()
    changes = [json.loads(line) for line in printed.out.splitlines()]
    # Under b the 100 m ring isn't cleared, so it is open at the end.
    assert [(change["change"], (change["a"] or change["b"])["kind"]) for change in changes] == [
        ("ONLY_A", "RING_CLEARED"),
        ("ONLY_B", "RING_OPEN"),
    ]
    assert "only in a: 1, only in b: 1, changed: 0" in printed.err

    simulate.backtest(*FILES, rules=a, against=a)
    printed = capsys.readouterr()
    assert printed.out == "" and "only in a: 0, only in b: 0, changed: 0" in printed.err


def test_a_comparison_needs_two_valid_rules_files(tmp_path: Path) -> None:
    bad = write(tmp_path, "bad", "clear_after_s = 1\n")
    a = write(tmp_path, "a", 'rules_id="a"')
    misused: list[dict[str, Any]] = [{"against": bad}, {"rules": bad}, {"rules": a, "against": bad}]
    misused += [{"rules": a, "against": a, "requests": True}]
    for chosen in misused:
        with pytest.raises(CommandFailed) as failed:
            simulate.backtest(*FILES, **chosen)
        assert failed.value.exit_code == MISUSED


def test_the_requests_of_a_back_test_leave_the_alerts_as_they_are() -> None:
    alerts = list(backtest.run_files(*FILES))
    lines = list(backtest.run_files(*FILES, requests=True))
    requests = [line for line in lines if line["kind"] == "SENSING_REQUEST"]
    for request in requests:
        assert list(request) == ["request_id", "kind", "device_id", "interval_s", "decided_at", "until"]
        assert request["interval_s"] is None or 30 <= request["interval_s"] <= 170
    assert requests and len({request["request_id"] for request in requests}) == len(requests)

    def content(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {name: value for name, value in line.items() if not name.endswith("_id") and name != "contact"}
            for line in found
        ]

    # The additional entry of the log changes the ids, which are hashes of the sequence, and lets the fold decide on contacts.
    others = [line for line in lines if line["kind"] not in ("SENSING_REQUEST", "CONTACT_REQUEST")]
    assert content(others) == content(alerts)


# ── comparison ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_missing_alert_does_not_shift_the_later_alerts() -> None:
    a = [alert_line("RING_ENTERED", second) for second in (1, 20, 40)]
    b = [alert_line("RING_ENTERED", second) for second in (20, 40)]
    assert [(change.what, change.a) for change in backtest.compare_alerts(a, b)] == [("ONLY_A", a[0])]
    assert [(change.what, change.b) for change in backtest.compare_alerts(b, a)] == [("ONLY_B", a[0])]


def test_a_changed_demand_or_time_is_a_change_and_changed_ids_are_not() -> None:
    a = [alert_line("PANIC", 5), alert_line("RING_ENTERED", 10), alert_line("RING_CLEARED", 30)]
    b = [
        alert_line("PANIC", 5, alert_id="another"),
        alert_line("RING_ENTERED", 10, demand="NOTIFY"),
        alert_line("RING_CLEARED", 45, demand="RECORD"),
    ]
    changes = backtest.compare_alerts(a, b)
    assert [(change.what, change.fields) for change in changes] == [
        ("CHANGED", ["demand"]),
        ("CHANGED", ["at", "decided_at", "demand"]),
    ]


def test_alerts_of_different_targets_orders_rings_or_kinds_are_never_paired() -> None:
    a = [alert_line("RING_ENTERED", 10)]
    for changes in ({"target_id": "q"}, {"order_id": "o2"}, {"ring_m": 1000.0}, {"kind": "RING_CLEARED"}):
        found = backtest.compare_alerts(a, [a[0] | changes])
        assert sorted(change.what for change in found) == ["ONLY_A", "ONLY_B"]
