"""The OTLP exporter with the registry's variables from the manifests, and a collector that requires a client certificate."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace.export import SpanExportResult

from services.common.certificates import files_of
from services.local import authority
from services.registry.traces.domain.spans import TraceSpan
from services.registry.traces.export import readable
from tests.support.common.otlp import collecting
from tools.kube import identities
from tools.kube.render import K8S, containers, render

ENDPOINT, KEY, CERT = (f"OTEL_EXPORTER_OTLP_{name}" for name in ("ENDPOINT", "CLIENT_KEY", "CLIENT_CERTIFICATE"))
SPAN = TraceSpan("0" * 31 + "1", "0" * 15 + "1", "", "registry", "incident", 1_000, 2_000)


def variables() -> dict[str, str]:
    """Environment variables of the OTLP exporter in the rendered deployment of the registry."""
    (deployment,) = (
        item for item in render(K8S / "base") if (item["kind"], item["metadata"]["name"]) == ("Deployment", "registry")
    )
    environment = containers(deployment)[0]["env"]
    return {entry["name"]: entry["value"] for entry in environment if entry["name"].startswith("OTEL_")}


@pytest.mark.parametrize("proves_itself", [True, False])
def test_spans_are_exported_only_with_a_client_certificate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proves_itself: bool
) -> None:
    registry, collector = identities.identity_of("registry"), identities.identity_of("otel-collector")
    authority.issue(tmp_path, (registry, collector), authority.LOOPBACK, lifetime=timedelta(hours=1))
    theirs, ours = files_of(tmp_path, collector), files_of(tmp_path, registry)
    pairs = [(theirs.key.read_bytes(), theirs.cert.read_bytes())]
    credentials = grpc.ssl_server_credentials(pairs, theirs.authority.read_bytes(), require_client_auth=True)
    with collecting(credentials) as (collector_spans, endpoint):
        given = variables()
        assert {ENDPOINT, KEY, CERT} < given.keys()
        for name, value in given.items():
            monkeypatch.setenv(name, value.replace("/tls/", f"{ours.cert.parent}/"))
        monkeypatch.setenv(ENDPOINT, endpoint)
        if not proves_itself:
            monkeypatch.delenv(KEY)
            monkeypatch.delenv(CERT)
        exporter = OTLPSpanExporter(timeout=3)
        result = exporter.export([readable(SPAN)])
        exporter.shutdown()
        assert (result is SpanExportResult.SUCCESS) is proves_itself
        assert [service for service, _ in collector_spans.spans()] == (["registry"] if proves_itself else [])
