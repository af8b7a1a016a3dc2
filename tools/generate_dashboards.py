"""Write the Grafana dashboards in k8s/observability/dashboards from the tables below; with --check, fail if they are stale.

Data sources are dashboard variables, so that the dashboards work with any Prometheus and any Jaeger.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parent.parent / "k8s" / "observability" / "dashboards"
METRICS = {"type": "prometheus", "uid": "${metrics}"}
TRACES = {"type": "jaeger", "uid": "${traces}"}
WIDTH = 24
TALL = 8


@dataclass(frozen=True)
class Panel:
    """A panel of a dashboard."""

    title: str
    queries: tuple[tuple[str, str], ...]
    """PromQL expression and legend of each query."""
    unit: str = "short"
    kind: str = "timeseries"
    red_from: float | None = None
    """Value from which the panel is red, the threshold of the alert rule."""
    width: int = 8
    exemplars: bool = False
    """Whether it shows exemplars, which link latencies to traces."""


@dataclass(frozen=True)
class Dashboard:
    """A dashboard with its rows of panels."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    with_trace: bool = False


def quantiles(metric: str, by: str = "le") -> tuple[tuple[str, str], ...]:
    """Queries for p50 and p99 of a histogram."""
    legend = "".join(f" {{{{{label.strip()}}}}}" for label in by.split(",")[1:])
    return tuple(
        (f"histogram_quantile({q}, sum by ({by}) (rate({metric}_bucket[$__rate_interval])))", f"p{q * 100:g}{legend}")
        for q in (0.5, 0.99)
    )


HEALTH = Dashboard(
    "tandem-health",
    "Tandem: mesh health",
    (
        (
            "Availability",
            (
                Panel("Services up", (('up{job=~"tandem-.*"}', "{{job}} {{instance}}"),), kind="stat", width=8),
                Panel("Accepted reports per second", (("sum(rate(tandem_ingest_reports_accepted_total[1m]))", "all"),)),
                Panel(
                    "Time since the last message from the log",
                    (("tandem_geofence_log_age_seconds", "{{partition}} {{instance}}"),),
                    "s",
                    red_from=30,
                ),
            ),
        ),
        (
            "Latency",
            (
                Panel(
                    "Report to alert",
                    quantiles("tandem_geofence_report_to_alert_seconds"),
                    "s",
                    red_from=1,
                    exemplars=True,
                ),
                Panel(
                    "Report to offer, by leg",
                    quantiles("tandem_dispatch_report_to_published_ms", "le, leg"),
                    "ms",
                    red_from=1000,
                    exemplars=True,
                ),
                Panel("Publish to durable", quantiles("tandem_ingest_publish_seconds"), "s"),
            ),
        ),
        (
            "Backlog",
            (
                Panel(
                    "Report lag, by lane",
                    (("max by (partition, lane) (tandem_ingest_lag_seconds)", "{{lane}} {{partition}}"),),
                    "s",
                    red_from=5,
                ),
                Panel(
                    "Outbox age of legs and registry",
                    (
                        ("max by (leg) (tandem_dispatch_outbox_age_seconds)", "steps of {{leg}}"),
                        ("max(tandem_registry_outbox_age_seconds)", "orders and tags"),
                    ),
                    "s",
                    red_from=10,
                ),
                Panel(
                    "Alerts not yet accepted, by leg",
                    (("max by (leg) (tandem_dispatch_alerts_behind)", "{{leg}}"),),
                    red_from=1,
                ),
            ),
        ),
        (
            "Missed work",
            (
                Panel(
                    "Overdue deadlines, by leg",
                    (("max by (leg) (tandem_dispatch_overdue_seconds)", "{{leg}}"),),
                    "s",
                    red_from=5,
                    width=6,
                ),
                Panel(
                    "Alerts missing from a leg",
                    (("max by (leg) (tandem_dispatch_unreconciled)", "{{leg}}"),),
                    red_from=1,
                    width=6,
                ),
                Panel(
                    "Incidents with an absent leg",
                    (("max by (absent) (tandem_dispatch_leg_absent)", "{{absent}}"),),
                    red_from=1,
                    width=6,
                ),
                Panel(
                    "Time since an agency's list was proven",
                    (("max by (agency) (tandem_registry_unproven_seconds)", "{{agency}}"),),
                    "s",
                    red_from=900,
                    width=6,
                ),
            ),
        ),
        (
            "Detection",
            (
                Panel(
                    "Canary steps per minute, by leg",
                    (("sum by (leg) (increase(tandem_dispatch_canary_steps_total[1m]))", "{{leg}}"),),
                ),
                Panel(
                    "Protected persons not known to be reached, per hour",
                    (('sum(increase(tandem_dispatch_not_reached_total{leg="warning"}[1h]))', "not reached"),),
                    red_from=1,
                ),
                Panel(
                    "Reconciled alerts per hour, by leg",
                    (("sum by (leg) (increase(tandem_dispatch_reconciled_total[1h]))", "{{leg}}"),),
                    red_from=1,
                ),
            ),
        ),
        (
            "Who goes first",
            (
                Panel(
                    "Oldest work that is put off, by class",
                    (("max by (class) (tandem_work_oldest_seconds)", "{{class}}"),),
                    "s",
                    red_from=5,
                ),
                Panel(
                    "Work that is put off, by class",
                    (
                        ("sum by (class) (tandem_work_waiting)", "{{class}}"),
                        ("sum(tandem_geofence_secondary_waiting)", "figures and digests"),
                    ),
                ),
                Panel(
                    "Work beside the response after the maximum delay, per minute",
                    (("sum by (class) (increase(tandem_work_overdue_total[1m]))", "{{class}}"),),
                ),
            ),
        ),
        (
            "Capacity",
            (
                Panel(
                    "Disk usage",
                    (("max by (instance) (tandem_disk_used_ratio)", "{{instance}}"),),
                    "percentunit",
                    red_from=0.7,
                ),
                Panel(
                    "Usage of streams that refuse when full",
                    (("max by (stream) (tandem_stream_used_ratio)", "{{stream}}"),),
                    "percentunit",
                    red_from=0.7,
                ),
                Panel(
                    "Refused reports per second, by reason",
                    (("sum by (reason) (rate(tandem_ingest_reports_refused_total[5m]))", "{{reason}}"),),
                ),
            ),
        ),
    ),
)

REVIEW = Dashboard(
    "tandem-review",
    "Tandem: incident review",
    (
        (
            "Latency from the report to both legs; a dot is an incident and links to its trace",
            (
                Panel(
                    "Report to alert",
                    quantiles("tandem_geofence_report_to_alert_seconds"),
                    "s",
                    red_from=1,
                    width=12,
                    exemplars=True,
                ),
                Panel(
                    "Report to offer, by leg",
                    quantiles("tandem_dispatch_report_to_published_ms", "le, leg"),
                    "ms",
                    red_from=1000,
                    width=12,
                    exemplars=True,
                ),
            ),
        ),
        (
            "Activity",
            (
                Panel(
                    "Steps per hour, by leg",
                    (("sum by (leg, state) (increase(tandem_dispatch_steps_total[1h]))", "{{leg}} {{state}}"),),
                    kind="bargauge",
                    width=12,
                ),
                Panel(
                    "Evidence copies per hour",
                    (
                        ("sum by (moment) (increase(tandem_evidence_kept_total[1h]))", "{{moment}}"),
                        ("sum(increase(tandem_evidence_failed_total[1h]))", "failed"),
                    ),
                    width=12,
                ),
            ),
        ),
    ),
    with_trace=True,
)

DASHBOARDS = (HEALTH, REVIEW)


def to_json(dashboard: Dashboard) -> str:
    """The JSON of a dashboard that Grafana imports."""
    panels: list[dict[str, Any]] = []
    top = 0
    if dashboard.with_trace:
        panels.append(_trace_panel(top))
        top += 2 * TALL
    for title, row in dashboard.rows:
        panels.append({"type": "row", "title": title, "gridPos": _place(0, top, WIDTH, height=1), "panels": []})
        left, top = 0, top + 1
        for panel in row:
            panels.append(_panel(panel, left, top))
            left += panel.width
        top += TALL
    for number, content in enumerate(panels, 1):
        content["id"] = number
    variables = [_source("metrics", "prometheus", "Prometheus")]
    if any(panel.exemplars for _, row in dashboard.rows for panel in row):
        variables.append(_source("traces", "jaeger", "Jaeger"))
    if dashboard.with_trace:
        variables.append({"name": "trace_id", "label": "Trace (32 hex digits)", "type": "textbox", "query": ""})
    document = {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["tandem"],
        "timezone": "browser",
        "schemaVersion": 39,
        "refresh": "15s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": variables},
        "panels": panels,
    }
    return json.dumps(document, indent=1, ensure_ascii=False) + "\n"


def _source(name: str, kind: str, label: str) -> dict[str, Any]:
    return {"name": name, "label": label, "type": "datasource", "query": kind}


def _place(left: int, top: int, width: int, *, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, left: int, top: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.exemplars:
        # ${__value.raw} of an exemplar's label is the trace id. The link opens the review dashboard with that trace.
        link = f"/d/{REVIEW.uid}?var-trace_id=${{__value.raw}}&var-metrics=${{metrics}}&var-traces=${{traces}}"
        by_name = {"id": "byName", "options": "trace_id"}
        links = [{"id": "links", "value": [{"title": "the incident's trace", "url": link}]}]
        overrides = [{"matcher": by_name, "properties": links}]
    else:
        overrides = []
    return {
        "type": panel.kind,
        "title": panel.title,
        "datasource": METRICS,
        "gridPos": _place(left, top, panel.width, height=TALL),
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "exemplar": panel.exemplars}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _trace_panel(top: int) -> dict[str, Any]:
    return {
        "type": "traces",
        "title": "The incident's trace; `tandem trace` prints it without a trace store",
        "datasource": TRACES,
        "gridPos": _place(0, top, WIDTH, height=2 * TALL),
        # Without a query type, Grafana's Jaeger source takes the query for a trace id.
        "targets": [{"refId": "A", "query": "${trace_id}"}],
    }


def main() -> int:
    """Runs the command line. Returns exit code 0 if all dashboards are fresh."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a dashboard is stale")
    check = parser.parse_args().check
    stale = 0
    for dashboard in DASHBOARDS:
        path, text = FOLDER / f"{dashboard.uid}.json", to_json(dashboard)
        if path.exists() and path.read_text() == text:
            continue
        if check:
            print(
                f"{path.name} differs from the output of tools/generate_dashboards.py: run `make dashboards`",
                file=sys.stderr,
            )
            stale += 1
        else:
            path.write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
