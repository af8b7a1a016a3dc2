"""Check that dashboards and alert rules find what the overlay delivers: data sources, and the first event of each counter."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import yaml

from tools.kube.render import Object

COUNTED = re.compile(r"increase\((?P<counter>\w+)(?P<labels>\{[^}]*\})?\[\w+\]\)\)? > 0")
NOT_ITS_OWN = {"tandem_dispatch_canary_steps_total"}
"""Counters that a rule asks only whether they have ever risen, so that their first rise needs no alert."""


def findings(objects: list[Object]) -> Iterator[str]:
    """Faults of all dashboards and alert rules in the ConfigMaps."""
    files = {name: text for obj in objects if obj["kind"] == "ConfigMap" for name, text in obj["data"].items()}
    sources = yaml.safe_load(files.get("sources.yaml", "{}")).get("datasources", ())
    kinds = {source["type"] for source in sources}
    for name, text in files.items():
        if name.endswith(".json"):
            yield from (f"dashboard {name}: {line}" for line in _dashboard(json.loads(text), kinds))
    uids = {source["uid"] for source in sources}
    for source in sources:
        for link in source.get("jsonData", {}).get("exemplarTraceIdDestinations", ()):
            if link["datasourceUid"] not in uids:
                yield f"data source {source['name']}: its exemplars lead to {link['datasourceUid']}, which is no data source"
    for group in yaml.safe_load(files.get("rules.yaml", "{}")).get("groups", ()):
        for rule in group["rules"]:
            yield from (f"alert {rule['alert']}: {line}" for line in _rule(rule["expr"]))


def _dashboard(dashboard: Object, kinds: set[str]) -> Iterator[str]:
    asked = {variable["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "datasource"}
    asked |= {panel["datasource"]["type"] for panel in dashboard["panels"] if "datasource" in panel}
    for kind in sorted(asked - kinds):
        yield f"asks a data source of type {kind}, and Grafana gets none"


def _rule(expression: str) -> Iterator[str]:
    """Counters whose first event the rule misses: `increase` of a series that begins above 0 is 0."""
    if "== 0" in expression:
        return
    for match in COUNTED.finditer(expression):
        series = f"{match['counter']}{match['labels'] or ''}"
        if match["counter"] not in NOT_ITS_OWN and f"{series} offset" not in expression:
            yield f"misses the first event of {match['counter']}: add `or ({series} > 0 unless {series} offset ...)`"
