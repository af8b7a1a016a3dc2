"""Traces come from the streams: an incident from the registry's downtime has its trace, and a kill doesn't change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.messaging import flow
from tandem.dispatch.v1 import dispatch_pb2
from tests.support.common.postgres import PostgresServer
from tests.support.dispatch import dispatch
from tests.support.registry.registry import RegistryMesh, running_registry
from tests.support.registry.traces import INCIDENT, step, trace_of


@pytest.fixture(params=["sqlite", "postgres"])
def registry(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RegistryMesh]:
    url = ""
    if request.param == "postgres":
        server: PostgresServer = request.getfixturevalue("postgres")
        url = server.new_database()
    with running_registry(tmp_path, 1, url) as running:
        yield running


async def test_an_incident_during_the_registrys_downtime_has_its_trace(registry: RegistryMesh) -> None:
    async with registry.connected() as client:
        bus = client.bus
        await bus.publish(flow.alert_subject(0, "junk"), b"\xff\xff")
        entered = dispatch.alert(7, incident=INCIDENT)
        await dispatch.publish(bus, entered)
        await step(bus, 1, dispatch_pb2.OFFERED, cause=entered.cause)
        await step(bus, 2, dispatch_pb2.ACKNOWLEDGED, cause=entered.cause)
        # The log has no entry 7, as after its retention, so the times in the alert are used instead.
        spans = await trace_of(registry, 5)
        assert [span.name for span in spans] == [
            "incident opened", "report received", "alert", "police offered", "police accepted",
        ]  # fmt: skip
        registry.service.kill()
        await dispatch.publish(bus, dispatch.alert(9, incident=INCIDENT, ends=True))
        await step(bus, 3, dispatch_pb2.STOOD_DOWN)
        registry.service.start()
        after = await trace_of(registry, 8)
        assert [span for span in after if span.span_id in {earlier.span_id for earlier in spans}] == spans
        assert len({span.span_id for span in after}) == len(after) == 8
        assert (
            '"event": "trace_message_skipped"' in registry.service.log() and "Traceback" not in registry.service.log()
        )
