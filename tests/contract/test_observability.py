"""Alert rules and dashboards: promtool accepts them, a test fires each alert, and each alert and grave log event has a page."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from tools import generate_dashboards

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "k8s" / "observability"
REFERENCE, RESPOND = ROOT / "docs" / "reference", ROOT / "docs" / "how-to" / "respond"
RULES, TESTS = FOLDER / "rules.yaml", FOLDER / "rules.test.yaml"
ALERTS = re.findall(r"^ +- alert: (\w+)$", RULES.read_text(), re.MULTILINE)


def promtool(*arguments: str, folder: Path = FOLDER) -> subprocess.CompletedProcess[str]:
    program = os.environ.get("PROMTOOL") or shutil.which("promtool")
    if program is None:
        pytest.skip("promtool isn't installed: install Debian's package promtool, or set PROMTOOL to its path")
    return subprocess.run((program, *arguments), cwd=folder, capture_output=True, text=True, timeout=240, check=False)


def test_promtool_accepts_the_rules() -> None:
    checked = promtool("check", "rules", "--lint-fatal", RULES.name)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert f"{len(ALERTS)} rules found" in checked.stdout


def test_promtool_accepts_the_configuration() -> None:
    checked = promtool("check", "config", "--syntax-only", "config/prometheus.yaml")
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_each_alert_is_quiet_in_normal_operation_and_fires_in_its_test() -> None:
    tested = promtool("test", "rules", TESTS.name)
    assert tested.returncode == 0, tested.stdout + tested.stderr
    # Each alert must be expected to fire, and to be quiet just before.
    text = TESTS.read_text()
    fires = re.findall(r"alertname: (\w+)\n +exp_alerts:\n +- exp_labels", text)
    quiet = re.findall(r"alertname: (\w+)\n +- eval_time", text)
    assert sorted(fires) == sorted(quiet) == sorted(ALERTS) and ALERTS


def test_the_test_of_each_alert_fails_if_the_alert_never_fires(tmp_path: Path) -> None:
    rules = RULES.read_text()
    deaf, count = re.subn(
        r"^( +expr:)(?: >-\n +)?.*\n(?: +or .*\n)?", r"\1 vector(0) > 1" + "\n", rules, flags=re.MULTILINE
    )
    assert count == len(ALERTS)
    (tmp_path / RULES.name).write_text(deaf)
    (tmp_path / TESTS.name).write_text(TESTS.read_text())
    tested = promtool("test", "rules", TESTS.name, folder=tmp_path)
    assert tested.returncode != 0
    assert set(re.findall(r"alertname: (\w+)", tested.stdout + tested.stderr)) == set(ALERTS)


def counting_alerts() -> dict[str, tuple[str, str]]:
    """Counter and labels of each alert that fires at the first event of a kind, by the alert's name."""
    counters = {}
    for group in yaml.safe_load(RULES.read_text())["groups"]:
        for rule in group["rules"]:
            waits = re.search(r"increase\((\w+)(\{.*?\})?\[\w+\]\)\)? > 0", rule["expr"])
            if waits and "== 0" not in rule["expr"]:
                counters[rule["alert"]] = (waits[1], (waits[2] or "{}").strip("{}"))
    return counters


@pytest.mark.parametrize("alert", sorted(counting_alerts()))
def test_an_alert_fires_for_a_counter_that_is_first_scraped_at_1(alert: str, tmp_path: Path) -> None:
    counter, labels = counting_alerts()[alert]
    born, old = (
        f"{counter}{{{', '.join(filter(None, (labels, f'instance={name!r}')))}}}".replace("'", '"')
        for name in ("born", "old")
    )
    story = {
        "interval": "15s",
        "input_series": [{"series": born, "values": "_x120 1x60"}, {"series": old, "values": "0x180"}],
        "promql_expr_test": [
            {"expr": f'count(ALERTS{{alertname="{alert}"}})', "eval_time": "29m"},
            {
                "expr": f'count(ALERTS{{alertname="{alert}"}})',
                "eval_time": "31m",
                "exp_samples": [{"labels": "{}", "value": 1}],
            },
        ],
    }
    (tmp_path / RULES.name).write_text(RULES.read_text())
    (tmp_path / "new.test.yaml").write_text(
        yaml.safe_dump({"rule_files": [RULES.name], "evaluation_interval": "15s", "tests": [story]})
    )
    tested = promtool("test", "rules", "new.test.yaml", folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


ABSENT_INTERVALS = 80
"""Intervals of 15 s for which a series is absent before its test begins: longer than the window of most rules."""


def absent_first(story: dict[str, Any]) -> dict[str, Any]:
    """The same test of an alert, whose series are absent for 20 min first."""
    shift_s = ABSENT_INTERVALS * seconds(story["interval"])
    series = [{**row, "values": f"_x{ABSENT_INTERVALS} {row['values']}"} for row in story["input_series"]]
    evaluated = [{**row, "eval_time": f"{seconds(row['eval_time']) + shift_s}s"} for row in story["alert_rule_test"]]
    return {**story, "input_series": series, "alert_rule_test": evaluated}


def seconds(duration: str) -> int:
    """A duration of Prometheus, such as 1m30s, in seconds."""
    units = {"h": 3600, "m": 60, "s": 1}
    return sum(int(number) * units[unit] for number, unit in re.findall(r"(\d+)([hms])", duration))


def test_each_alert_does_the_same_for_series_that_are_absent_first(tmp_path: Path) -> None:
    content = yaml.safe_load(TESTS.read_text())
    shifted = [absent_first(story) for story in content["tests"]]
    assert {row["alertname"] for story in shifted for row in story["alert_rule_test"]} == set(ALERTS)
    (tmp_path / RULES.name).write_text(RULES.read_text())
    (tmp_path / "absent.test.yaml").write_text(yaml.safe_dump({**content, "tests": shifted}))
    tested = promtool("test", "rules", "absent.test.yaml", folder=tmp_path)
    assert tested.returncode == 0, tested.stdout + tested.stderr


def test_each_alert_names_a_page_that_names_the_alert() -> None:
    rules = re.findall(r"- alert: (\w+)\n(.*?)(?=\n      - alert: |\Z)", RULES.read_text(), re.DOTALL)
    pages = {name: re.findall(r'runbook: "(docs/\S+\.md)"', rule) for name, rule in rules}
    assert len(pages) > 20 and all(len(found) == 1 for found in pages.values())
    assert [name for name, (page,) in pages.items() if f"`{name}`" not in (ROOT / page).read_text()] == []


def log_events() -> dict[str, str]:
    """Level of each log event in the reference, by name. A row that lists several events gives one level to all."""
    rows = re.findall(r"^\| ((?:`[a-z_]+`(?:, )?)+) \| ([^|]*) \|", (REFERENCE / "log-events.md").read_text(), re.M)
    return {name: level for names, level in rows for name in re.findall(r"`([a-z_]+)`", names)}


def test_each_grave_log_event_has_a_page_and_no_page_names_an_unknown_event() -> None:
    events = log_events()
    pages = [page.read_text() for page in RESPOND.glob("*.md")]
    named = {
        name
        for page in pages
        for line in re.findall(r"(?:Alert rules: [^.]*\.\s+)?Log events: ([^.]*)\.", page)
        for name in re.findall(r"`([a-z_]+)`", line)
    }
    assert named - events.keys() == set()
    grave = {name for name, level in events.items() if "error" in level or "critical" in level}
    assert len(grave) > 40 and {name for name in grave if not any(f"`{name}`" in page for page in pages)} == set()


def test_the_overlays_grafana_has_the_sources_that_the_overlay_deploys_and_exemplars_lead_to_its_traces() -> None:
    ports = {
        document["metadata"]["name"]: {port["port"] for port in document["spec"]["ports"]}
        for name in ("metrics.yaml", "traces.yaml")
        for document in yaml.safe_load_all((FOLDER / name).read_text())
        if document["kind"] == "Service"
    }
    sources = {
        source["uid"]: source
        for source in yaml.safe_load((FOLDER / "config" / "sources.yaml").read_text())["datasources"]
    }
    assert {source["type"] for source in sources.values()} == {"prometheus", "jaeger"}
    for source in sources.values():
        address = urlsplit(source["url"])
        assert address.port in ports[address.hostname or ""], source["name"]
    (metrics,) = [source for source in sources.values() if source["type"] == "prometheus"]
    (link,) = metrics["jsonData"]["exemplarTraceIdDestinations"]
    assert (link["name"], sources[link["datasourceUid"]]["type"]) == ("trace_id", "jaeger")
    assert "--enable-feature=exemplar-storage" in (FOLDER / "metrics.yaml").read_text()
    for dashboard in generate_dashboards.DASHBOARDS:
        content = json.loads(generate_dashboards.to_json(dashboard))
        variables = {variable["name"]: variable["query"] for variable in content["templating"]["list"]}
        assert (variables["metrics"], variables["traces"]) == ("prometheus", "jaeger")
        for panel in content["panels"]:
            for target in panel.get("targets", ()):
                links = [override["properties"] for override in panel.get("fieldConfig", {}).get("overrides", ())]
                assert bool(links) is bool(target.get("exemplar", False)), panel["title"]


def test_the_committed_dashboards_match_their_generator() -> None:
    files = {path.name: path.read_text() for path in (FOLDER / "dashboards").glob("*.json")}
    assert files == {
        f"{dashboard.uid}.json": generate_dashboards.to_json(dashboard) for dashboard in generate_dashboards.DASHBOARDS
    }
