"""Traces come from the streams: an incident from the registry's downtime has its trace, and a kill doesn't change it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from services.common import times
from services.common.clock import wall_us
from services.common.messaging import flow
from services.common.rpc import server as rpc
from tandem.dispatch.v1 import dispatch_pb2
from tandem.registry.v1 import expected_time_pb2, finding_pb2, finding_pb2_grpc
from tests.support.common.postgres import PostgresServer
from tests.support.dispatch import dispatch
from tests.support.registry.registry import NPA, SECRET, WITHIN_S, RegistryMesh, running_registry
from tests.support.registry.traces import INCIDENT, step, trace_of, whole_trace


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


REVIEWER = "spiffe://tandem/reviewer/kim"
OTHER_INCIDENT = "incident-2"


async def test_a_trace_has_its_expected_times_and_gets_findings(registry: RegistryMesh) -> None:
    async with registry.connected() as client:
        for number, incident_id in enumerate((INCIDENT, OTHER_INCIDENT), 1):
            entered = dispatch.alert(10 * number, incident=incident_id)
            await dispatch.publish(client.bus, entered)
            due = {"due_at": times.to_timestamp(wall_us() // 1000 + 30_000), "cause": entered.cause}
            await step(client.bus, 1, dispatch_pb2.OFFERED, incident_id=incident_id, **due)
            await step(client.bus, 2, dispatch_pb2.ACKNOWLEDGED, incident_id=incident_id, cause=entered.cause)
        for incident_id in (INCIDENT, OTHER_INCIDENT):
            (expected,) = (await whole_trace(registry, incident_id, 5)).expected_times
            assert expected.expectation == expected_time_pb2.EXPECTATION_PERSON_ANSWERS
            assert (
                expected.outcome == expected_time_pb2.EXPECTATION_OUTCOME_IN_TIME and expected.met_us <= expected.due_us
            )
        async with rpc.channel(registry.address) as channel:
            await check_findings(registry, channel)


async def check_findings(registry: RegistryMesh, channel: grpc.aio.Channel) -> None:
    """Enters, lists and closes findings; wrong ones name their field, and nobody but a reviewer may read one."""
    stub = finding_pb2_grpc.FindingServiceStub(channel)

    async def call(method: Any, request: Any, who: str = REVIEWER) -> Any:
        return await method(request, metadata=rpc.bearer(who, SECRET), timeout=WITHIN_S)

    async def refused(method: Any, request: Any, who: str = REVIEWER) -> tuple[grpc.StatusCode, str]:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(method, request, who)
        return caught.value.code(), caught.value.details() or ""

    def finding(**changes: str) -> finding_pb2.PutFindingRequest:
        given = {
            "finding_id": "f-1",
            "incident_id": OTHER_INCIDENT,
            "text": "the second unit waited",
            "owner": "112 room",
        }
        return finding_pb2.PutFindingRequest(**{**given, "due_on": "2020-02-29", **changes})

    for changes, field in (
        ({"due_on": "2026-02-30"}, "due_on"),
        ({"due_on": "20260301"}, "due_on"),
        # The end of this day is no time that Python can hold: a stored one would stop the watch over the findings, and the registry.
        ({"due_on": "9999-12-31"}, "due_on"),
        ({"text": " "}, "text"),
        ({"owner": "x" * 101}, "owner"),
        ({"finding_id": "a b"}, "finding_id"),
    ):
        code, text = await refused(stub.PutFinding, finding(**changes))
        assert code is grpc.StatusCode.INVALID_ARGUMENT and text.startswith(f"{field}:"), text
    unknown = await refused(stub.PutFinding, finding(incident_id="incident-of-nobody"))
    assert unknown[0] is grpc.StatusCode.NOT_FOUND
    stored = [(await call(stub.PutFinding, finding())).finding for _ in range(2)]
    assert stored[0] == stored[1] and stored[0].overdue and stored[0].made_by == REVIEWER
    assert (await refused(stub.PutFinding, finding(text="another")))[0] is grpc.StatusCode.ABORTED
    await call(stub.PutFinding, finding(finding_id="f-2", incident_id=INCIDENT, due_on="2099-01-01"))
    listing = finding_pb2.ListFindingsRequest
    assert [found.finding_id for found in (await call(stub.ListFindings, listing())).findings] == ["f-1", "f-2"]
    mine = await call(stub.ListFindings, listing(incident_id=INCIDENT))
    assert [(found.finding_id, found.overdue) for found in mine.findings] == [("f-2", False)]
    for stranger in (NPA, "spiffe://npa/desk/x", "spiffe://tandem/operator/x"):
        assert (await refused(stub.ListFindings, listing(), stranger))[0] is grpc.StatusCode.PERMISSION_DENIED
    close = finding_pb2.CloseFindingRequest(finding_id="f-1", outcome="a second desk is asked at once")
    closed = [(await call(stub.CloseFinding, close)).finding for _ in range(2)]
    assert closed[0] == closed[1] and closed[0].closed_by == REVIEWER and not closed[0].overdue
    close.outcome = "nothing"
    assert (await refused(stub.CloseFinding, close))[0] is grpc.StatusCode.FAILED_PRECONDITION
    open_ = (await call(stub.ListFindings, listing(only_open=True))).findings
    assert [found.finding_id for found in open_] == ["f-2"]
    assert [found.finding_id for found in (await call(stub.ListFindings, listing())).findings] == ["f-2", "f-1"]
    assert "the second unit waited" not in registry.service.log(), "the text of a finding is in no log"
