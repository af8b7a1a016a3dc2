"""Counters in alert rules are exposed as 0 from a process's start, because `increase` of a series that begins at 1 is 0."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from services.common.evidence.collector import CopyMoment
from services.common.messaging import flow
from services.common.observability.metrics import ProcessMetrics
from services.dispatch.domain.leg import Leg
from services.dispatch.leg import record
from services.dispatch.metrics import DispatchMetrics, EvidenceMetrics
from services.geofence.metrics import GeofenceMetrics
from services.ingest.domain import Reason
from services.ingest.metrics import IngestMetrics
from services.registry.metrics import RegistryMetrics

RULES = Path(__file__).parents[2] / "k8s" / "observability" / "rules.yaml"
PARTITION = 4
BORN_LATER = {"tandem_stream_went_back_total", "tandem_publications_lost_total", "tandem_unusable_messages_total"}
"""Counters by stream and reader whose series begin with the first event. Their alert rules also fire for a series that begins above
0."""


def exposed() -> Iterator[tuple[str, dict[str, str]]]:
    """Name and labels of each series that the services expose once they have started."""
    registry = CollectorRegistry()
    ProcessMetrics(registry)
    RegistryMetrics(registry)
    IngestMetrics(registry)
    GeofenceMetrics(registry).watch(PARTITION, lambda: 0.0, sequence=lambda: 0, secondary_waiting=lambda: 0)
    EvidenceMetrics(registry)
    legs = DispatchMetrics(registry)
    for leg in Leg:
        legs.watch(leg, lambda: 0.0, lambda: 0.0, states=record.STEP_STATES)
    for family in registry.collect():
        for sample in family.samples:
            yield sample.name, sample.labels


def test_counters_in_alert_rules_are_exposed_from_the_start() -> None:
    named = set(re.findall(r"increase\((\w+)", RULES.read_text()))
    assert len(named) > 5
    assert named - BORN_LATER <= {name for name, _ in exposed()}
    for counter in BORN_LATER:
        assert f"{counter} unless {counter} offset" in RULES.read_text()


def test_an_evaluator_exposes_its_differ_counter_before_a_difference() -> None:
    assert ("tandem_evaluators_differ_total", {"partition": str(PARTITION)}) in list(exposed())


def test_ingest_exposes_each_refusal_reason_before_the_first_refusal() -> None:
    shown = {labels["reason"] for name, labels in exposed() if name == "tandem_ingest_reports_refused_total"}
    assert shown == {reason.name for reason in Reason}


@pytest.mark.parametrize("leg", sorted(flow.LEGS))
def test_a_leg_exposes_each_kind_of_step_before_its_first_offer(leg: str) -> None:
    series = list(exposed())
    shown = {
        labels["state"] for name, labels in series if name == "tandem_dispatch_steps_total" and labels["leg"] == leg
    }
    assert shown >= {"offered", "acknowledged", "flagged"}
    for counter in ("canary_steps_total", "not_reached_total", "reconciled_total", "report_to_published_ms_count"):
        assert (f"tandem_dispatch_{counter}", {"leg": leg}) in series
    for gauge in ("alerts_behind", "unreconciled", "overdue_seconds", "outbox_age_seconds"):
        assert (f"tandem_dispatch_{gauge}", {"leg": leg}) in series


def test_evidence_copies_are_exposed_by_moment_before_the_first_copy() -> None:
    shown = {labels["moment"] for name, labels in exposed() if name == "tandem_evidence_kept_total"}
    assert shown == {moment.value for moment in CopyMoment}
