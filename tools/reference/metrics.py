"""Reference of the metrics, with the alert rules and dashboards that use them, and of the alert rules themselves."""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from typing import Any

import yaml

from tools.reference.markdown import code, codes, page, table
from tools.reference.sources import ROOT, called, calls, service_of, text_of

RULES = ROOT / "k8s" / "observability" / "rules.yaml"
DASHBOARDS = ROOT / "k8s" / "observability" / "dashboards"
_KINDS = {
    "Counter": "counter",
    "CounterMetricFamily": "counter",
    "Gauge": "gauge",
    "GaugeMetricFamily": "gauge",
    "Histogram": "histogram",
    "HistogramMetricFamily": "histogram",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric as Prometheus sees it."""

    name: str
    kind: str
    service: str
    help: str
    labels: tuple[str, ...]

    @property
    def series(self) -> str:
        """Its name in queries."""
        return f"{self.name}_total" if self.kind == "counter" else self.name

    def is_in(self, query: str) -> bool:
        """Whether a query uses it."""
        return re.search(rf"\b{self.series}(_bucket|_sum|_count)?\b", query) is not None


def metrics() -> list[Metric]:
    """All metrics that the services define, by name."""
    found = []
    for path, call in calls():
        name = text_of(call.args[0]) if call.args else None
        if called(call) in _KINDS and name and name.startswith("tandem_"):
            metric = Metric(name, _KINDS[called(call)], service_of(path), text_of(call.args[1]) or "", _labels(call))
            found.append(metric)
    return sorted(found, key=lambda metric: metric.name)


def _labels(call: ast.Call) -> tuple[str, ...]:
    given = [*call.args[2:], *(keyword.value for keyword in call.keywords if keyword.arg in ("labels", "labelnames"))]
    lists = [node for node in given if isinstance(node, ast.List | ast.Tuple)]
    return tuple(filter(None, map(text_of, lists[0].elts))) if lists else ()


def rules() -> list[dict[str, Any]]:
    """The alert rules, in the order of their file."""
    groups = yaml.safe_load(RULES.read_text("utf-8"))["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def _queries() -> dict[str, str]:
    """All queries of each dashboard, by its title."""
    boards = {}
    for path in sorted(DASHBOARDS.glob("*.json")):
        board = json.loads(path.read_text("utf-8"))
        boards[board["title"]] = " ".join(re.findall(r'"expr": "((?:[^"\\]|\\.)*)"', path.read_text("utf-8")))
    return boards


def render() -> str:
    """The page of the metrics."""
    boards = _queries()
    rows = [
        (
            code(metric.series),
            metric.kind,
            metric.service,
            metric.help + (f" (labels {codes(metric.labels)})" if metric.labels else ""),
            ", ".join(_rule_link(rule["alert"]) for rule in rules() if metric.is_in(rule["expr"])),
            ", ".join(title for title, queries in boards.items() if metric.is_in(queries)),
        )
        for metric in metrics()
    ]
    introduction = (
        "Each process serves them at `/metrics` of its metrics port. No label names a person, a device or a place."
    )
    return page(
        "Metrics", introduction, table(("metric", "kind", "service", "what", "alert rules", "dashboards"), rows)
    )


def _rule_link(name: str) -> str:
    return f"[{code(name)}](alert-rules.md#{name.lower()})"


def render_rules() -> str:
    """The page of the alert rules."""
    known = metrics()
    parts = []
    for rule in rules():
        notes = rule["annotations"]
        summary = re.sub(r"\{\{[^}]*\}\}", "…", notes["summary"]).strip()
        link = "../" + notes["runbook"].removeprefix("docs/")
        title = (ROOT / notes["runbook"]).read_text("utf-8").partition("\n")[0].removeprefix("# ")
        used = codes(metric.series for metric in known if metric.is_in(rule["expr"]))
        parts.append(
            f"## {rule['alert']}\n\n"
            + table(
                ("severity", "after", "what to do", "metrics"),
                [
                    (
                        rule["labels"]["severity"],
                        rule.get("for", "at once"),
                        f"[{title}]({link})",
                        used or "those of the cluster",
                    )
                ],
            )
            + f"\n{summary}.\n"
        )
    introduction = (
        "Those of `k8s/observability/rules.yaml`, where a Prometheus loads them. A page wakes somebody; a warning waits for the end "
        "of the shift."
    )
    return page("Alert rules", introduction, *parts)
