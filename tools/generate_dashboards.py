"""Write the Grafana dashboards of k8s/observability/dashboards from the literal tables below; with --check, prove that they are fresh.

Data sources are variables, so that they fit whatever Prometheus and whatever store of traces there is.
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
TRACES = {"type": "tempo", "uid": "${traces}"}
WIDTH = 24
TALL = 8


@dataclass(frozen=True)
class Panel:
    """One picture."""

    title: str
    queries: tuple[tuple[str, str], ...]
    """Expression and legend of each."""
    unit: str = "short"
    kind: str = "timeseries"
    red_from: float | None = None
    """Value at which it is an alarm, that of the rule."""
    width: int = 8
    exemplars: bool = False
    """Shows the traces behind a latency."""


@dataclass(frozen=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[Panel, ...]], ...]
    with_trace: bool = False


def quantiles(metric: str, by: str = "le") -> tuple[tuple[str, str], ...]:
    """Median and worst in a hundred of a histogram."""
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
            "Does it work at all",
            (
                Panel(
                    "Services that answer", (('up{job=~"tandem-.*"}', "{{job}} {{instance}}"),), kind="stat", width=8
                ),
                Panel("Reports taken a second", (("sum(rate(tandem_ingest_reports_accepted_total[1m]))", "all"),)),
                Panel(
                    "Since anything was heard of the log",
                    (("tandem_geofence_log_age_seconds", "{{partition}} {{instance}}"),),
                    "s",
                    red_from=30,
                ),
            ),
        ),
        (
            "Is it in time",
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
                Panel("Publish until durable", quantiles("tandem_ingest_publish_seconds"), "s"),
            ),
        ),
        (
            "What waits",
            (
                Panel(
                    "Reports, by lane",
                    (("max by (partition, lane) (tandem_ingest_lag_seconds)", "{{lane}} {{partition}}"),),
                    "s",
                    red_from=5,
                ),
                Panel(
                    "Steps of legs, orders",
                    (
                        ("max by (leg) (tandem_dispatch_outbox_age_seconds)", "steps of {{leg}}"),
                        ("max(tandem_registry_outbox_age_seconds)", "orders and tags"),
                    ),
                    "s",
                    red_from=10,
                ),
                Panel(
                    "Alerts not taken in",
                    (("max by (leg) (tandem_dispatch_alerts_behind)", "{{leg}}"),),
                    red_from=1,
                ),
            ),
        ),
        (
            "Is anybody forgotten",
            (
                Panel(
                    "Deadlines passed and not acted on",
                    (("max by (leg) (tandem_dispatch_overdue_seconds)", "{{leg}}"),),
                    "s",
                    red_from=5,
                    width=6,
                ),
                Panel(
                    "Alerts that a leg lacks",
                    (("max by (leg) (tandem_dispatch_unreconciled)", "{{leg}}"),),
                    red_from=1,
                    width=6,
                ),
                Panel(
                    "Incidents in which a leg shows nothing",
                    (("max by (absent) (tandem_dispatch_leg_absent)", "{{absent}}"),),
                    red_from=1,
                    width=6,
                ),
                Panel(
                    "Since an agency's list was proven",
                    (("max by (agency) (tandem_registry_unproven_seconds)", "{{agency}}"),),
                    "s",
                    red_from=900,
                    width=6,
                ),
            ),
        ),
        (
            "Would it be noticed",
            (
                Panel(
                    "Canaries that come to a leg, a minute",
                    (("sum by (leg) (increase(tandem_dispatch_canary_steps_total[1m]))", "{{leg}}"),),
                ),
                Panel(
                    "Protected persons of whom nobody knows whether they were reached, an hour",
                    (('sum(increase(tandem_dispatch_not_reached_total{leg="warning"}[1h]))', "not reached"),),
                    red_from=1,
                ),
                Panel(
                    "Alerts that a leg had passed over, an hour",
                    (("sum by (leg) (increase(tandem_dispatch_reconciled_total[1h]))", "{{leg}}"),),
                    red_from=1,
                ),
            ),
        ),
        (
            "Is there room",
            (
                Panel(
                    "Disks",
                    (("max by (instance) (tandem_disk_used_ratio)", "{{instance}}"),),
                    "percentunit",
                    red_from=0.7,
                ),
                Panel(
                    "Streams that refuse where they are full",
                    (("max by (stream) (tandem_stream_used_ratio)", "{{stream}}"),),
                    "percentunit",
                    red_from=0.7,
                ),
                Panel(
                    "Reports refused, by reason",
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
            "From the report to both legs; a dot is an incident, and leads to its trace",
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
            "What was done",
            (
                Panel(
                    "Steps an hour, by leg",
                    (("sum by (leg, state) (increase(tandem_dispatch_steps_total[1h]))", "{{leg}} {{state}}"),),
                    kind="bargauge",
                    width=12,
                ),
                Panel(
                    "Copies of evidence",
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


def expressions(dashboard: Dashboard) -> list[str]:
    """All that a dashboard asks of Prometheus."""
    return [query for _, panels in dashboard.rows for panel in panels for query, _ in panel.queries]


def to_json(dashboard: Dashboard) -> str:
    """As Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    if dashboard.with_trace:
        panels.append(_trace_panel(top))
        top += 2 * TALL
    for title, row in dashboard.rows:
        panels.append({"type": "row", "title": title, "gridPos": _place(0, top, WIDTH, 1), "panels": []})
        left, top = 0, top + 1
        for panel in row:
            panels.append(_panel(panel, left, top))
            left += panel.width
        top += TALL
    for number, one in enumerate(panels, 1):
        one["id"] = number
    variables = [_source("metrics", "prometheus", "Prometheus")]
    if any(panel.exemplars for _, row in dashboard.rows for panel in row):
        variables.append(_source("traces", "tempo", "Store of traces"))
    if dashboard.with_trace:
        variables.append({"name": "trace_id", "label": "Trace (32 hex digits)", "type": "textbox", "query": ""})
    content = {
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
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def _source(name: str, kind: str, label: str) -> dict[str, Any]:
    return {"name": name, "label": label, "type": "datasource", "query": kind}


def _place(left: int, top: int, width: int, height: int) -> dict[str, int]:
    return {"x": left, "y": top, "w": width, "h": height}


def _panel(panel: Panel, left: int, top: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_from is not None:
        steps.append({"color": "red", "value": panel.red_from})
    defaults: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.exemplars:
        # ${__value.raw} of an exemplar's label is the trace's id: the same page, with that trace above.
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
        "gridPos": _place(left, top, panel.width, TALL),
        "fieldConfig": {"defaults": defaults, "overrides": overrides},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": query, "legendFormat": legend, "exemplar": panel.exemplars}
            for i, (query, legend) in enumerate(panel.queries)
        ],
    }


def _trace_panel(top: int) -> dict[str, Any]:
    return {
        "type": "traces",
        "title": "The incident's trace; `tandem trace` prints the same, without any store of traces",
        "datasource": TRACES,
        "gridPos": _place(0, top, WIDTH, 2 * TALL),
        "targets": [{"refId": "A", "queryType": "traceql", "query": "${trace_id}"}],
    }


def main() -> int:
    """Exit code 0 where all are fresh by now."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing, and fail where something isn't fresh")
    check = parser.parse_args().check
    stale = 0
    for dashboard in DASHBOARDS:
        path, text = FOLDER / f"{dashboard.uid}.json", to_json(dashboard)
        if path.exists() and path.read_text() == text:
            continue
        if check:
            print(f"{path.name} isn't what tools/generate_dashboards.py makes: run make dashboards", file=sys.stderr)
            stale += 1
        else:
            path.write_text(text)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
