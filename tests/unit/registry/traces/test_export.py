"""The export of spans: an incident's spans are built once it is quiet, and at the latest after a fixed time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from services.common.priority import PriorityGate
from services.registry.metrics import RegistryMetrics
from services.registry.traces import export
from services.registry.traces.export import Exporter
from services.registry.traces.service import IncidentFacts, ReadProgress

WITHIN_S = 60.0


class CountedTraces:
    """Stand-in for the traces, which counts how often an incident's facts are read."""

    def __init__(self) -> None:
        self.read: list[str] = []
        self.changed = asyncio.Event()

    async def facts_of(self, incident_id: str) -> IncidentFacts:
        self.read.append(incident_id)
        self.changed.set()
        return IncidentFacts(incident_id, (), (), {})

    async def progress(self) -> ReadProgress:
        return ReadProgress({}, 0)


@pytest.fixture
def exporting(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Exporter, CountedTraces, CollectorRegistry]]:
    """An exporter with a back end that isn't there, and its traces and metrics."""
    monkeypatch.setenv(export.ENDPOINTS[0], "http://127.0.0.1:9")
    monkeypatch.setattr(export, "OTLPSpanExporter", lambda: None)
    monkeypatch.setattr(export, "BatchSpanProcessor", lambda _: object())
    traces, collector = CountedTraces(), CollectorRegistry()
    yield Exporter(traces, PriorityGate(), RegistryMetrics(collector)), traces, collector  # type: ignore[arg-type]


async def until_read(exporter: Exporter, traces: CountedTraces, count: int) -> None:
    """Runs the exporter until it has read `count` incidents."""
    running = asyncio.create_task(exporter.run())
    try:
        async with asyncio.timeout(WITHIN_S):
            while len(traces.read) < count:
                traces.changed.clear()
                await traces.changed.wait()
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_many_facts_of_an_incident_are_one_export(
    exporting: tuple[Exporter, CountedTraces, CollectorRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "QUIET_S", 0.05)
    exporter, traces, collector = exporting
    for incident_id in ("incident-1", "incident-2", "incident-1", "incident-1"):
        exporter.notify(incident_id)
    assert collector.get_sample_value("tandem_registry_exports_put_off") == 2
    await until_read(exporter, traces, 2)
    assert sorted(traces.read) == ["incident-1", "incident-2"]
    assert collector.get_sample_value("tandem_registry_exports_put_off") == 0


async def test_an_incident_that_is_never_quiet_is_exported_too(
    exporting: tuple[Exporter, CountedTraces, CollectorRegistry], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "QUIET_S", 1_000_000.0)
    monkeypatch.setattr(export, "EXPORT_WITHIN_S", 0.0)
    exporter, traces, _ = exporting
    exporter.notify("incident-1")
    await until_read(exporter, traces, 1)
    assert traces.read == ["incident-1"]
