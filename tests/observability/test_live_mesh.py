"""Prometheus on a live mesh: after a demo and a drill each panel has data, and each alert rule has the series that it needs.

Run by `make test-observability`. It needs Debian's package prometheus, or the path of the program in PROMETHEUS.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from services.common.observability import spans
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh, tandem
from tests.support.common.ports import free_port
from tools import generate_dashboards

pytestmark = [pytest.mark.observability, pytest.mark.timeout(900)]
FOLDER = Path(__file__).parents[2] / "k8s" / "observability"
RULES = yaml.safe_load((FOLDER / "rules.yaml").read_text())
ALERT_RULES = {rule["alert"]: rule["expr"] for group in RULES["groups"] for rule in group["rules"]}
PANELS = {
    f"{dashboard.title}: {row}: {panel.title}: {legend}": query
    for dashboard in generate_dashboards.DASHBOARDS
    for row, panels in dashboard.rows
    for panel in panels
    for query, legend in panel.queries
}
RATE_INTERVAL = "5m"
"""What Grafana puts for $__rate_interval, longer here, as the demo is over by the time of the check."""
FIRST_EVENT = (
    "the series begins with the first event, of streams that can't be listed before it; the rule also fires for a series that begins "
    "above 0"
)
EMPTY: Mapping[str, str] = {
    "tandem_stream_went_back_total": FIRST_EVENT,
    "tandem_publications_lost_total": FIRST_EVENT,
    "tandem_unusable_messages_total": FIRST_EVENT,
    "tandem_certificate_remaining_seconds": "only a mesh with certificates has it",
    "kubelet_volume_stats_used_bytes": "the kubelet of a cluster exposes it, and no process of the mesh does",
    "kubelet_volume_stats_capacity_bytes": "the kubelet of a cluster exposes it, and no process of the mesh does",
}
"""Metrics that may be without a series on a mesh on which nothing is wrong, with the reason."""


class Prometheus:
    """A running Prometheus that scrapes a mesh, asked over its HTTP API."""

    def __init__(self, address: str) -> None:
        self._address = address

    def get(self, path: str, **parameters: str | float) -> Any:
        """`data` of an answer of the API. Raises AssertionError if it isn't a success."""
        url = f"http://{self._address}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            content = json.load(answer)
        assert content["status"] == "success", content
        return content["data"]

    def series(self, expression: str) -> list[dict[str, Any]]:
        """Result of an instant query."""
        found: list[dict[str, Any]] = self.get("query", query=expression)["result"]
        return found


def until(reached: Callable[[], Any], what: Callable[[], object] = lambda: None) -> Any:
    """Returns the first true value of `reached`. Fails with `what` after PATIENCE_S."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := reached()):
        assert time.monotonic() < deadline, what()
        time.sleep(0.5)
    return value


def job_of(process: str) -> str:
    """Scrape job of a process, as in the manifests: the evaluators share one, and the mesh's one console is the police's."""
    if process.startswith("geofence"):
        return "tandem-geofence"
    return "tandem-console-police" if process == "console" else f"tandem-{process}"


@contextmanager
def prometheus_on(mesh: RunningMesh, folder: Path) -> Iterator[Prometheus]:
    """Starts Prometheus with our rules and the mesh's processes as targets."""
    program = os.environ.get("PROMETHEUS") or shutil.which("prometheus")
    if program is None:
        pytest.skip("prometheus isn't installed: install Debian's package prometheus, or set PROMETHEUS to its path")
    targets: dict[str, list[str]] = {}
    for name, url in mesh.now.metrics_urls.items():
        targets.setdefault(job_of(name), []).append(url.removeprefix("http://"))
    (folder / "rules.yaml").write_text((FOLDER / "rules.yaml").read_text())
    (folder / "prometheus.yaml").write_text(
        yaml.safe_dump(
            {
                "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
                "rule_files": ["rules.yaml"],
                "scrape_configs": [
                    {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
                ],
            }
        )
    )
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            (
                program,
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ),
            stdout=log,
            stderr=log,
        )
    try:
        prometheus = Prometheus(address)

        def scraped() -> bool:
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            try:
                active = prometheus.get("targets")["activeTargets"]
            except OSError:
                return False
            return bool(active) and all(target["health"] == "up" for target in active)

        until(scraped, (folder / "prometheus.log").read_text)
        yield prometheus
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module")
def observed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Prometheus, dict[str, list[str]], str]]:
    """Prometheus after a demo and a drill; the selectors without a series before them, by alert rule; and the demo's incident."""
    if not (os.environ.get("PROMETHEUS") or shutil.which("prometheus")):
        pytest.skip("prometheus isn't installed: install Debian's package prometheus, or set PROMETHEUS to its path")
    folder = tmp_path_factory.mktemp("observed")
    with running_mesh(folder / "m") as mesh, prometheus_on(mesh, folder) as prometheus:
        until(lambda: prometheus.series("tandem_geofence_log_age_seconds"))
        missing_at_start = {alert: without_series(prometheus, expr) for alert, expr in ALERT_RULES.items()}
        played = tandem("demo", "--dir", str(mesh.folder), "--json")
        assert played.returncode == 0, played.stderr
        drilled = tandem("drill", "--dir", str(mesh.folder), "--json")
        assert drilled.returncode == 0, drilled.stderr
        (incident,) = json.loads(played.stdout)["incidents"]
        yield prometheus, missing_at_start, incident["incident_id"]


def selectors(expression: str) -> set[str]:
    """Selectors of an expression, such as `up{job=~"tandem-.*"}`."""
    return {
        f"{name}{matchers}" for name, matchers in re.findall(r"\b((?:tandem|kubelet)_\w+|up)\b(\{[^}]*\})?", expression)
    }


def without_series(prometheus: Prometheus, expression: str) -> list[str]:
    """Selectors of an expression that have no series and no stated reason for that."""
    return [
        selector
        for selector in sorted(selectors(expression))
        if not EMPTY.get(selector.partition("{")[0]) and not prometheus.series(selector)
    ]


Observed = tuple[Prometheus, dict[str, list[str]], str]


def test_each_alert_rule_has_its_series_before_the_first_event(observed: Observed) -> None:
    _, missing_at_start, _ = observed
    assert missing_at_start == {alert: [] for alert in ALERT_RULES} and len(ALERT_RULES) > 20


def test_prometheus_evaluates_each_alert_rule(observed: Observed) -> None:
    prometheus, _, _ = observed

    def evaluated() -> bool:
        rules = [rule for group in prometheus.get("rules")["groups"] for rule in group["rules"]]
        assert [rule["lastError"] for rule in rules if rule.get("lastError")] == []
        return {rule["name"] for rule in rules if rule["health"] == "ok"} == ALERT_RULES.keys()

    until(evaluated)


def test_no_page_fires_on_a_mesh_on_which_nothing_is_wrong(observed: Observed) -> None:
    prometheus, _, _ = observed
    firing = {
        alert["labels"]["alertname"]
        for alert in prometheus.get("alerts")["alerts"]
        if alert["state"] == "firing" and alert["labels"]["severity"] == "page"
    }
    # Nobody sends reports once the demo and the drill are over.
    assert firing <= {"NoReports"}


def test_each_panel_has_data_after_a_demo_and_a_drill(observed: Observed) -> None:
    prometheus, _, _ = observed
    assert len(PANELS) > 25
    empty = dict(PANELS)

    def all_have_data() -> bool:
        for panel, query in list(empty.items()):
            found = prometheus.series(query.replace("$__rate_interval", RATE_INTERVAL))
            # A quantile without observations is NaN.
            if any(float(row["value"][1]) == float(row["value"][1]) for row in found):
                del empty[panel]
        return not empty

    until(all_have_data, lambda: empty)


def test_a_point_of_a_latency_leads_to_the_trace_of_the_incident(observed: Observed) -> None:
    prometheus, _, incident_id = observed
    panels = [panel for board in generate_dashboards.DASHBOARDS for _, row in board.rows for panel in row]
    linked = [query for panel in panels if panel.exemplars for query, _ in panel.queries]
    assert len(linked) > 4
    for query in set(linked):
        shown = query.replace("$__rate_interval", RATE_INTERVAL)

        def traces(shown: str = shown) -> set[str]:
            now_s = time.time()
            found = prometheus.get("query_exemplars", query=shown, start=now_s - 900, end=now_s)
            return {point["labels"]["trace_id"] for series in found for point in series["exemplars"]}

        until(lambda traces=traces: spans.trace_id_of(incident_id) in traces(), lambda shown=shown: shown)  # type: ignore[misc]


def test_the_list_of_empty_metrics_states_a_reason_and_names_only_what_is_asked_for() -> None:
    asked = {
        selector.partition("{")[0] for expr in (*ALERT_RULES.values(), *PANELS.values()) for selector in selectors(expr)
    }
    assert EMPTY.keys() <= asked and all(EMPTY.values())
