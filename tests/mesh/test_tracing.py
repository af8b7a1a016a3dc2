"""Traces of incidents, received over real OTLP."""

from __future__ import annotations

import pytest

from services.common import tracing
from services.common.tracing import IncidentTracer
from tests.support.spans import collector


def test_spans_of_different_processes_make_one_tree(monkeypatch: pytest.MonkeyPatch) -> None:
    with collector(monkeypatch) as taken:
        geofence, police = IncidentTracer("geofence"), IncidentTracer("dispatch-police")
        police.step("police offered", "incident-1", 2_000_000, 2_005_000, {"leg": "police"})
        geofence.root("incident-1", 2_000_000, 2_003_000, {"kind": "RING_ENTERED"})
        geofence.step("decided", "incident-2", 1, 2, {})
        geofence.close()
        police.close()
    [root, other] = taken.spans["geofence"]
    [offered] = taken.spans["dispatch-police"]
    assert offered.trace_id == root.trace_id != other.trace_id
    assert offered.parent_span_id == root.span_id and not root.parent_span_id
    assert (offered.start_time_unix_nano, offered.end_time_unix_nano) == (2_000_000_000, 2_005_000_000)


def test_without_an_endpoint_nothing_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(tracing.ENDPOINT, raising=False)
    tracer = IncidentTracer("geofence")
    tracer.root("incident-1", 1, 2, {})
    assert tracer._provider is None
    tracer.close()
