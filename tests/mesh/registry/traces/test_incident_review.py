"""Traces and metrics of a mesh for reviewers and on-call engineers: one trace per incident, and metrics that link to it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import grpc.aio
import pytest
from google.protobuf import json_format
from opentelemetry.proto.trace.v1.trace_pb2 import Span as OtlpSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status

from services.client import mesh as meshes
from services.client.actors import DESKS, MOJ_RECORDS, REVIEWER, VENDOR, VENDOR_ID, HeadEnd
from services.client.calls import call
from services.client.mesh import OPERATOR
from services.common import times
from services.common.messaging import flow, pull
from services.common.observability import spans
from services.local import processes
from tandem.common.v1 import alert_pb2, log_pb2
from tandem.ingest.v1 import ingest_pb2
from tandem.registry.v1 import registry_pb2, trace_pb2
from tests.support.common.mesh import PATIENCE_S, RunningMesh, running_mesh, tandem
from tests.support.common.otlp import Collector, collecting
from tools import generate_dashboards

ROOT = Path(__file__).parents[4]
SENT_IN = f"00-{'ab' * 16}-{'cd' * 8}-01"
ORDINARY = 400


@dataclass(frozen=True)
class Reviewed:
    """A mesh after its demo, with the trace of the demo's incident."""

    mesh: RunningMesh
    collector: Collector
    incident: dict[str, Any]
    """The incident in the output of `tandem demo --json`."""
    trace: trace_pb2.GetTraceResponse

    @property
    def incident_spans(self) -> list[trace_pb2.Span]:
        """Spans of the incident's trace, without those of linked traces."""
        return [span for span in self.trace.spans if span.trace_id == self.trace.trace_id]


@pytest.fixture(scope="module")
def reviewed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reviewed]:
    with collecting() as (collector, endpoint), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        with running_mesh(tmp_path_factory.mktemp("mesh") / "m", "--clock-rate", "60") as mesh:
            played = tandem("demo", "--dir", str(mesh.folder), "--json")
            assert played.returncode == 0, played.stderr
            (incident,) = json.loads(played.stdout)["incidents"]
            yield Reviewed(mesh, collector, incident, _complete(mesh, incident["incident_id"]))


def _complete(mesh: RunningMesh, incident_id: str) -> trace_pb2.GetTraceResponse:
    """The trace that `tandem trace` prints beside its arrivals, once it has the last spans of the demo."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        printed = tandem("trace", incident_id, "--dir", str(mesh.folder), "--json")
        assert printed.returncode == 0, printed.stderr
        trace = json_format.Parse(printed.stdout, trace_pb2.GetTraceResponse(), ignore_unknown_fields=True)
        names = [span.name for span in trace.spans]
        if sum("stood down" in name for name in names) == 4 and names.count("ledger: read") == 2:
            return trace
        assert time.monotonic() < deadline, names
        time.sleep(0.2)


def test_one_trace_has_spans_of_all_four_services(reviewed: Reviewed) -> None:
    assert {span.service.split("-")[0] for span in reviewed.incident_spans} == {
        "ingest",
        "geofence",
        "dispatch",
        "registry",
    }
    assert {span.service for span in reviewed.incident_spans} >= {f"dispatch-{leg}" for leg in flow.LEGS}
    assert {span.name for span in reviewed.incident_spans} >= {
        "incident opened", "report received", "evaluated", "alert", "probation offered", "probation accepted",
        "police offered", "police accepted", "warning offered", "warning delivered", "ledger: read",
    }  # fmt: skip
    (in_force,) = [span for span in reviewed.trace.spans if span.trace_id != reviewed.trace.trace_id]
    assert (in_force.name, in_force.service) == ("order in force", "registry")
    assert [link.span_id for link in reviewed.incident_spans[0].links] == [in_force.span_id]


def test_spans_follow_each_other_without_gaps(reviewed: Reviewed) -> None:
    spans = {span.span_id: span for span in reviewed.incident_spans}
    assert len(spans) == len(reviewed.incident_spans)
    roots = [span for span in reviewed.incident_spans if not span.parent_span_id]
    assert [root.name for root in roots] == ["incident opened"]
    followed = 0
    ends = {(span.attributes.get("assignment_id", "none"), span.end_us) for span in reviewed.incident_spans}
    for span in reviewed.incident_spans:
        assert span.end_us >= span.start_us, "a negative span"
        assert not span.parent_span_id or span.parent_span_id in spans, "an orphan"
        if span.name in ("evaluated", "alert") or span.name.endswith(("offered", "told", "stood down")):
            followed += 1
            parent = spans[span.parent_span_id]
            # A step starts at the end of its alert, or at the end of the previous step if the alert ended earlier.
            waited = span.start_us > parent.end_us and (span.attributes.get("assignment_id"), span.start_us) in ends
            assert waited or span.start_us == parent.end_us
    assert followed > 10
    by_assignment: dict[str, list[trace_pb2.Span]] = {}
    for span in sorted(reviewed.incident_spans, key=lambda span: (span.start_us, span.end_us)):
        if "assignment_id" in span.attributes:
            by_assignment.setdefault(span.attributes["assignment_id"], []).append(span)
    assert len(by_assignment) == 4
    for steps in by_assignment.values():
        assert all(later.start_us >= earlier.end_us for earlier, later in pairwise(steps))
    opening = {
        name: next(span for span in reviewed.incident_spans if span.name == name)
        for name in ("report received", "evaluated")
    }
    first_alert = min(
        (span for span in reviewed.incident_spans if span.name == "alert"), key=lambda span: span.start_us
    )
    lengths = [span.end_us - span.start_us for span in (*opening.values(), first_alert)]
    assert sum(lengths) <= roots[0].end_us - roots[0].start_us + 1


def test_the_trace_has_the_times_of_the_legs(reviewed: Reviewed) -> None:
    clock = reviewed.mesh.now.clock
    for leg in reviewed.incident["legs"]:
        accepted = [span for span in reviewed.incident_spans if span.name == f"{leg['agency']} accepted"]
        at_us = clock.to_wall_us(times.from_rfc3339(leg["acknowledged_at"]))
        assert at_us in {span.end_us for span in accepted}


def test_an_otlp_back_end_gets_each_span_once(reviewed: Reviewed) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        spans = _complete(reviewed.mesh, reviewed.incident["incident_id"]).spans
        wanted = sorted((span.trace_id, span.span_id, span.parent_span_id, span.service) for span in spans)
        exported = sorted(_exported(reviewed))
        if exported == wanted:
            break
        assert time.monotonic() < deadline, (set(exported) ^ set(wanted), len(exported), len(wanted))
        time.sleep(0.2)


def test_the_back_end_gets_no_orphan_and_opentelemetrys_conventions(reviewed: Reviewed) -> None:
    wanted = {span.span_id for span in reviewed.trace.spans}
    deadline = time.monotonic() + PATIENCE_S
    while not wanted <= {span.span_id.hex() for _, span in reviewed.collector.spans()}:
        assert time.monotonic() < deadline, "spans that never came"
        time.sleep(0.2)
    spans = [span for _, span in reviewed.collector.spans()]
    known = {(span.trace_id, span.span_id) for span in spans}
    roots: dict[bytes, int] = {}
    for span in spans:
        assert not span.parent_span_id or (span.trace_id, span.parent_span_id) in known, f"{span.name} is an orphan"
        roots[span.trace_id] = roots.get(span.trace_id, 0) + (not span.parent_span_id)
        assert (len(span.trace_id), len(span.span_id)) == (16, 8) and any(span.trace_id) and any(span.span_id)
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.kind == OtlpSpan.SPAN_KIND_INTERNAL and span.status.code == Status.STATUS_CODE_UNSET
        # Names are of low cardinality, and own attributes have the own namespace.
        assert not re.search(r"[0-9a-f]{8}|#|[0-9]{4}", span.name), span.name
        assert all(re.fullmatch(r"tandem\.[a-z][a-z0-9_]*", attribute.key) for attribute in span.attributes)
    assert set(roots.values()) == {1}
    resources = reviewed.collector.resources()
    assert {resource["service.namespace"] for resource in resources} == {"tandem"}
    assert {resource["service.name"] for resource in resources} == {span.service for span in reviewed.trace.spans}
    assert reviewed.collector.scopes() == {"services.registry.traces"}


def _exported(reviewed: Reviewed) -> list[tuple[str, str, str, str]]:
    trace_ids_of_incident = {span.trace_id for span in reviewed.trace.spans}
    return [
        (span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(), service)
        for service, span in reviewed.collector.spans()
        if span.trace_id.hex() in trace_ids_of_incident
    ]


def test_an_ordinary_report_gives_no_span_and_keeps_the_trace_context_of_its_sender(reviewed: Reviewed) -> None:
    accepted = _counted(reviewed, "ingest", "tandem_ingest_reports_accepted_total")
    asyncio.run(_report(reviewed.mesh.now))
    assert _counted(reviewed, "ingest", "tandem_ingest_reports_accepted_total") == accepted + ORDINARY + 1
    # Facts come only from alerts and steps. At this clock rate the demo's wearer is silent by now, which gives another alert.
    deadline = time.monotonic() + PATIENCE_S
    while True:
        messages, traces = asyncio.run(_of_incidents(reviewed.mesh.now))
        facts = _counted(reviewed, "registry", "tandem_registry_trace_facts_total")
        exported = {span.trace_id.hex() for _, span in reviewed.collector.spans()}
        if facts == messages > 0 and reviewed.trace.trace_id in exported:
            break
        assert time.monotonic() < deadline, (facts, messages, len(exported))
        time.sleep(0.2)
    in_force = {span.trace_id for span in reviewed.trace.spans} - {reviewed.trace.trace_id}
    assert exported <= traces | in_force


async def _of_incidents(running: meshes.MeshConnection) -> tuple[int, set[str]]:
    """Number of stream messages about incidents, and the trace ids of these incidents."""
    async with running.nats.bus_as("registry") as bus:
        info = {"subjects_filter": "incident.>"}
        by_subject = (await bus.api(f"STREAM.INFO.{flow.INCIDENTS.name}", info))["state"]["subjects"]
        steps = sum(count for subject, count in by_subject.items() if subject.split(".")[1] in flow.LEGS)
        last = (await bus.bounds_of(flow.ALERTS.name)).last
        alerts = pull.between(bus, flow.ALERTS.name, 1, last=last)
        of_incidents = [
            id_ async for message in alerts if (id_ := alert_pb2.Alert.FromString(message.data).incident_id)
        ]
    return steps + len(of_incidents), {spans.trace_id_of(of_incident) for of_incident in of_incidents}


async def _report(running: meshes.MeshConnection) -> None:
    """Send 400 reports of a wearer without an order, then one with a trace context, and check that the log entry has it."""
    async with meshes.connect(running) as clients:
        moj = clients.identity(MOJ_RECORDS)
        wearer = registry_pb2.Wearer(
            wearer_id="free", national_id="9001011234567", name="x", birth_date="1990-01-01", source_version=1
        )
        await call(clients.registry.PutWearer, registry_pb2.PutWearerRequest(wearer=wearer), moj)
        tag = registry_pb2.Tag(device_id="free-tag", wearer_id="free", source_version=1, vendor_id=VENDOR_ID)
        await call(clients.registry.PutTag, registry_pb2.PutTagRequest(tag=tag), moj)

        def position(number: int) -> ingest_pb2.Position:
            at = times.to_timestamp(clients.clock.now_ms() - 600_000 + number * 1_000)
            return ingest_pb2.Position(
                device_id="free-tag", report_id=str(number), fix_time=at, lat_deg=37.1, lon_deg=127.1, accuracy_m=5
            )

        async with HeadEnd(clients) as head_end:
            assert not await head_end.carry([position(0)])
            for first in range(1, ORDINARY, 50):
                count = min(50, ORDINARY - first)
                assert not await head_end.carry([position(first + n) for n in range(count)])
        metadata = (*clients.identity(VENDOR), (spans.TRACEPARENT, SENT_IN))
        request = ingest_pb2.ReportBatchRequest(positions=[position(ORDINARY)])
        await clients.ingest.ReportBatch(request, metadata=metadata, timeout=5)
        async with running.nats.bus_as("registry") as bus:
            last = await bus.api("STREAM.MSG.GET.LOG_0", {"last_by_subj": flow.log_subject(0, "report")})
        entry = log_pb2.LogEntry.FromString(base64.b64decode(last["message"]["data"]))
        assert list(entry.positions.report_id) == [str(ORDINARY)]
        headers = base64.b64decode(last["message"]["hdrs"]).decode()
        assert f"{spans.SENDERS}: 1:{SENT_IN}\r\n" in headers


def test_log_lines_of_an_incident_have_its_trace_id(reviewed: Reviewed) -> None:
    incident_id, seen = reviewed.incident["incident_id"], set()
    for path in (reviewed.mesh.folder / "logs").glob("*.log"):
        for line in path.read_text().splitlines():
            if line.startswith("{") and f'"incident_id": "{incident_id}"' in line:
                seen.add(path.stem)
                assert json.loads(line)["trace_id"] == reviewed.trace.trace_id
    assert seen >= {"geofence-0", "geofence-1", *(f"dispatch-{leg}" for leg in flow.LEGS)}


async def _shown(running: meshes.MeshConnection, who: str, incident_id: str) -> grpc.StatusCode | set[str]:
    """Names of the spans that a caller sees, or the status code of the rejection."""
    async with meshes.connect(running) as clients:
        request = trace_pb2.GetTraceRequest(incident_id=incident_id)
        try:
            answer = await call(clients.traces.GetTrace, request, clients.identity(who))
        except grpc.aio.AioRpcError as error:
            return error.code()
        return {span.name for span in answer.spans}


def test_each_role_sees_only_its_spans_and_other_roles_are_rejected(reviewed: Reviewed) -> None:
    running, incident_id = reviewed.mesh.now, reviewed.incident["incident_id"]

    def seen(who: str, which: str = incident_id) -> grpc.StatusCode | set[str]:
        return asyncio.run(_shown(running, who, which))

    for stranger in (VENDOR, MOJ_RECORDS, DESKS["warning"]):
        assert seen(stranger) is grpc.StatusCode.PERMISSION_DENIED
    every = cast(set[str], seen(REVIEWER))
    assert every >= {span.name for span in reviewed.trace.spans}
    of_ledger = {name for name in every if name.startswith("ledger")}
    # At this clock rate a receipt that is half a second late is half a minute late in mesh time, so such steps may occur.
    person_flags = {name for name in every if re.match("warning (no|reached|duress)", name)}
    own = {leg: {name for name in every if re.match(f"{leg} (noted|misses|sees)", name)} for leg in flow.LEGS}
    assert of_ledger
    assert seen(OPERATOR) == every - of_ledger - person_flags
    assert seen(DESKS["police"]) == every - of_ledger - own["probation"] - own["warning"]
    assert seen(DESKS["probation"]) == every - of_ledger - person_flags - own["police"] - own["warning"]
    assert seen(REVIEWER, "incident-of-nobody") is grpc.StatusCode.NOT_FOUND
    assert seen(REVIEWER, "no id at all") is grpc.StatusCode.INVALID_ARGUMENT


# ── metrics ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def _scrape(reviewed: Reviewed, name: str, accept: str = "") -> str:
    service = next(service for service in processes.SERVICES if service.name == name)
    base_port = int(reviewed.mesh.now.addresses["registry"].rpartition(":")[2]) - processes.SERVICES[0].offset
    url = f"http://127.0.0.1:{base_port + service.more_ports['TANDEM_METRICS_PORT']}/metrics"
    with urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": accept}), timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def _counted(reviewed: Reviewed, service: str, metric: str) -> float:
    text = _scrape(reviewed, service)
    return sum(float(value) for value in re.findall(rf"^{metric}(?:{{.*}})? (\S+)$", text, re.MULTILINE))


def test_the_services_expose_all_metrics_of_rules_and_dashboards(reviewed: Reviewed) -> None:
    shown = {service.name for service in processes.SERVICES if "TANDEM_METRICS_PORT" in service.more_ports}
    exposed: set[str] = set()
    assert shown >= {"registry", "ingest", "geofence-0", *(f"dispatch-{leg}" for leg in flow.LEGS)}
    for name in shown:
        for metric, kind in re.findall(r"^# TYPE (\S+) (\w+)$", _scrape(reviewed, name), re.MULTILINE):
            exposed |= {f"{metric}{end}" for end in (("_bucket", "_sum", "_count") if kind == "histogram" else ("",))}
    texts = [(ROOT / "k8s" / "observability" / "rules.yaml").read_text()]
    texts += [
        query
        for dashboard in generate_dashboards.DASHBOARDS
        for _, panels in dashboard.rows
        for panel in panels
        for query, _ in panel.queries
    ]
    named = {name for text in texts for name in re.findall(r"\btandem_\w+", text)}
    assert len(named) > 15
    assert named <= exposed, named - exposed


def test_counters_of_the_rules_exist_before_their_first_count(reviewed: Reviewed) -> None:
    texts = [_scrape(reviewed, f"geofence-{replica}") for replica in range(2)]
    assert all('\ntandem_evaluators_differ_total{partition="0"} ' in text for text in texts)
    refused = set(
        re.findall(r'^tandem_ingest_reports_refused_total{reason="(\w+)"}', _scrape(reviewed, "ingest"), re.M)
    )
    assert refused == {"INVALID", "CLOCK_AHEAD", "UNKNOWN_DEVICE", "REVOKED", "NOT_YOURS", "TOO_OFTEN"}
    for leg in flow.LEGS:
        states = re.findall(
            rf'^tandem_dispatch_steps_total{{leg="{leg}",state="(\w+)"}}', _scrape(reviewed, f"dispatch-{leg}"), re.M
        )
        assert {"offered", "leg_absent", "flagged"} <= set(states)


def test_latencies_have_exemplars_with_the_trace_id(reviewed: Reviewed) -> None:
    text = "".join(_scrape(reviewed, name, "application/openmetrics-text") for name in ("geofence-0", "geofence-1"))
    found = re.findall(r'^tandem_geofence_report_to_alert_seconds_bucket.*# {trace_id="(\w+)"}', text, re.MULTILINE)
    assert reviewed.trace.trace_id in found
    assert 'trace_id="' not in _scrape(reviewed, "geofence-0"), "the older format has none"
    for leg in ("probation", "police"):
        text = _scrape(reviewed, f"dispatch-{leg}", "application/openmetrics-text")
        pattern = r'^tandem_dispatch_report_to_published_ms_bucket.*# {trace_id="(\w+)"}'
        assert reviewed.trace.trace_id in re.findall(pattern, text, re.MULTILINE)
